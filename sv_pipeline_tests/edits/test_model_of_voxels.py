"""Any sequence of edits of a graph with voxels agrees with a plain model, and every invariant holds after each step."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scipy.ndimage import distance_transform_edt

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.algorithms.voxel_cut import snap_distance
from sv_pipeline.edits import CommittedEdit, Reason
from sv_pipeline.edits.pointing import resolved
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.segmentation.base.base import read_base
from sv_pipeline_tests.edits.machines import AT_LENGTH, IN_CI, run_shard
from sv_pipeline_tests.edits.tissue import (
    Recipe,
    but_operations,
    copy_of,
    edges_of,
    fast_folder,
    locks_and_scopes,
    new_table,
    template_of,
)
from sv_pipeline_tests.edits.voxel_model import Done, Pair, VoxelModel, canonical, pair
from sv_pipeline_tests.reference_data import contacts

RECIPES = (
    Recipe((13, 20, 11), 9, 1, voxel_offset=(16, 8, 3)),
    Recipe((8, 8, 8), 5, 2, labels_per_object=9),  # one chunk
    Recipe((30, 7, 5), 8, 3, labels_per_object=3, voxel_offset=(5, 3, 1)),
    Recipe((17, 15, 9), 3, 4, labels_per_object=1, voxel_offset=(3, 0, 100)),  # pieces in many chunks
    Recipe((22, 9, 8), 30, 5, labels_per_object=6, chunk_size=(7, 5, 4)),
)
CUTS_NOT_MADE = frozenset({*Refusal, Reason.VOXEL_CUT, Reason.SUPERVOXEL_SPLIT_REQUIRED})
SPLITS: list[dict[str, object]] = [
    {},
    {"offset": (3, 3, 3)},
    {"offset": (3, 3, 3)},
    {"offset": (3, 3, 3), "region_memory": 0},
    {"offset": (3, 3, 3), "allow_partial": True},
]
"""The whole volume at once; a region that grows; one that may not; one bridge at a time."""
RESOLUTION = (8.0, 8.0, 40.0)
Voxel = list[int]


class EditsOfVoxels(RuleBasedStateMachine):
    """Edits of a graph with voxels, and of the model."""

    recipe: Recipe
    backend: str

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()
        table = new_table(self.backend, self.open.enter_context(fast_folder()))
        self.tissue = self.open.enter_context(copy_of(template_of(self.recipe), table))
        voxels = self.tissue.voxels()
        self.model = VoxelModel.of(voxels, self.tissue.objects(voxels))
        self.generation = self.tissue.generation
        self.storage = np.asarray(read_base(self.tissue.graph.watershed_url).volume.scales[0].chunk_size)
        self.targets: dict[int, tuple[Done, bool]] = {}
        """Operation -> what it is about, and whether it has put it in force."""
        self.moments: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.rows = self.tissue.rows()

    # -- choices ------------------------------------------------------------------------------------------------------

    def voxel(self, data: st.DataObject, where: np.ndarray, name: str) -> Voxel:
        """A voxel out of a mask."""
        found = np.flatnonzero(where)
        at = found[data.draw(st.integers(0, len(found) - 1), name)]
        return [int(i) for i in np.unravel_index(at, where.shape)]

    def active_edges(self) -> set[Pair]:
        return {ends for ends, edge in edges_of(self.tissue).items() if edge.active}

    # -- edits --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), options=st.sampled_from(SPLITS))
    def split_an_object(self, data: st.DataObject, options: dict[str, object]) -> None:
        self.split(data, "object", options)

    @rule(data=st.data(), options=st.sampled_from(SPLITS))
    def split_a_supervoxel(self, data: st.DataObject, options: dict[str, object]) -> None:
        self.split(data, "supervoxel", options)

    def split(self, data: st.DataObject, within: str, options: dict[str, object]) -> None:
        """By one or more points on each side."""
        model = self.model
        first = self.voxel(data, model.voxels > 0, "source")
        own = model.objects == model.objects[tuple(first)]
        if within == "supervoxel":
            own = model.voxels == model.voxels[tuple(first)]
        own[tuple(first)] = False
        if not own.any():
            return
        sources, sinks = [first], [self.voxel(data, own, "sink")]
        for side in data.draw(st.lists(st.sampled_from([sources, sinks]), max_size=2), "more"):
            rest = own.copy()
            rest[tuple(np.transpose(sources + sinks))] = False
            if rest.any():
                side.append(self.voxel(data, rest, "another"))
        self.split_between(sources, sinks, options)

    def split_between(self, sources: list[Voxel], sinks: list[Voxel], options: dict[str, object]) -> None:
        request = self.tissue.split_request(sources, sinks, **options)
        cut = int(self.model.objects[tuple(sources[0])])
        allowed = CUTS_NOT_MADE
        if request.allow_partial or not request.region_memory:
            allowed |= {Reason.STILL_CONNECTED}
        edit = self.try_it(lambda: edits.split(self.tissue.graph, request, volume=self.tissue.volume), allowed)
        if edit is not None:
            self.follow_split(edit, cut, sources, sinks, partial=request.allow_partial)
            done = Done("split", as_pairs(edit.edges), links_of(edit), sources, sinks)
            done.parted_nothing = edit.still_one_object
            self.targets[edit.operation_id] = done, True

    def follow_split(
        self, edit: CommittedEdit, cut: int, sources: list[Voxel], sinks: list[Voxel], *, partial: bool
    ) -> None:
        voxels = self.tissue.voxels()
        self.model.check_voxels(voxels, edit, {cut})
        objects = self.tissue.objects(voxels)
        _, numbers = np.unique(objects, return_inverse=True)
        parts = numbers.reshape(objects.shape) + (1 if (voxels > 0).all() else 0)
        self.model.check_split(parts, cut)
        assert set(np.unique(objects[self.model.objects == cut]).tolist()) == set(edit.roots.tolist())
        sides = [set(parts[tuple(np.transpose(points))].tolist()) for points in (sources, sinks)]
        assert bool(sides[0] & sides[1]) is edit.still_one_object
        assert partial or not edit.still_one_object
        event("parted" if not edit.still_one_object else "still one object, as is allowed")
        self.settle(edit, voxels, parts)

    @rule(data=st.data(), near=st.booleans())
    def merge(self, data: st.DataObject, near: bool) -> None:
        """Of two objects that touch, or any two."""
        model = self.model
        source = self.voxel(data, model.voxels > 0, "source")
        others = (model.voxels > 0) & (model.objects != model.objects[tuple(source)])
        if not others.any():
            return
        sink = self.voxel(data, others, "sink")
        options = {"offset": (3, 3, 3)} if near else {}
        request = self.tissue.merge_request(source, sink, **options)
        before = self.active_edges()
        edit = self.try_it(lambda: edits.merge(self.tissue.graph, request, volume=self.tissue.volume), {Reason.TOO_FAR})
        if edit is not None:
            ends = pair(*(int(model.voxels[tuple(point)]) for point in (source, sink)))
            objects = model.united([ends])
            self.settle(edit, self.tissue.voxels(), objects)
            done = Done("merge", self.active_edges() - before, [])
            assert done.edges
            self.targets[edit.operation_id] = done, True

    @precondition(lambda self: self.targets)
    @rule(back=st.sampled_from([True, True, False]))
    def undo_or_redo_the_last(self, back: bool) -> None:
        self.undo_or_redo(max(self.targets), back)

    @precondition(lambda self: self.targets)
    @rule(data=st.data(), back=st.sampled_from([True, True, False]))
    def undo_or_redo_any(self, data: st.DataObject, back: bool) -> None:
        self.undo_or_redo(data.draw(st.sampled_from(sorted(self.targets)), "operation"), back)

    @precondition(lambda self: self.taken_back)
    @rule(data=st.data())
    def redo_what_was_undone(self, data: st.DataObject) -> None:
        self.undo_or_redo(data.draw(st.sampled_from(self.taken_back), "operation"), False)

    @property
    def taken_back(self) -> list[int]:
        """Splits of supervoxels that are not in force."""
        return [op for op, (done, made) in sorted(self.targets.items()) if made and done.links and not done.in_force]

    def undo_or_redo(self, operation: int, back: bool) -> None:
        """Of any operation, undos and redos among them."""
        done, made = self.targets[operation]
        undone = back is made
        if done.links and undone:
            self.undo_split_of_supervoxels(operation, done, back)
        elif done.links:
            self.split_again(operation, done, back)
        else:
            self.revert_edges(operation, done, back, activate=(done.kind == "split") is undone)

    def revert(self, operation: int, back: bool) -> CommittedEdit:
        return (edits.undo if back else edits.redo)(self.tissue.graph, operation, "tester")

    def undo_split_of_supervoxels(self, operation: int, done: Done, back: bool) -> None:
        model = self.model
        now = {new: model.now(new) for new in done.fragments}
        if not done.in_force:
            self.refused(lambda: self.revert(operation, back), {Reason.NOTHING_TO_UNDO, Reason.OVERLAPPED})
            return
        if not model.alive.issuperset(now.values()):
            self.refused(lambda: self.revert(operation, back), {Reason.OVERLAPPED})
            return
        firsts: dict[int, int] = {}
        joined = [(now[firsts.setdefault(old, new)], now[new]) for old, new in done.links]
        joined += sorted(model.living(done.edges))
        objects = model.united(joined)
        edited = {model.object_of[sv] for edge in joined for sv in edge}
        edit = self.revert(operation, back)
        voxels = self.tissue.voxels()
        model.check_voxels(voxels, edit, edited)
        for new in set(links_of(edit)):
            assert new[0] in now.values()
        successor = dict(links_of(edit))
        for old, new in done.links:
            model.renamed[old] = successor[now[new]]
        self.settle(edit, voxels, objects)
        done.in_force = False
        self.targets[edit.operation_id] = done, False
        event("supervoxels are one again")

    def split_again(self, operation: int, done: Done, back: bool) -> None:
        model = self.model
        if done.in_force:
            reasons = {Reason.NOTHING_TO_UNDO, Reason.OVERLAPPED}
            self.refused(lambda: self.revert(operation, back), reasons)
            return
        whole = {model.now(old) for old, _ in done.links} <= model.alive
        cut = int(model.objects[tuple(done.sources[0])])
        allowed = CUTS_NOT_MADE | {Reason.SEVERAL_ROOTS}
        edit = self.try_it(lambda: self.revert(operation, back), allowed)
        if edit is None:
            return
        self.follow_split(edit, cut, done.sources, done.sinks, partial=done.parted_nothing)
        if whole:
            assert len(edit.supervoxels)
            done.edges, done.links, done.in_force = as_pairs(edit.edges), links_of(edit), True
        else:
            done = Done("split", as_pairs(edit.edges), links_of(edit), done.sources, done.sinks)
        done.parted_nothing = edit.still_one_object
        self.targets[edit.operation_id] = done, True
        event("supervoxels are split again")

    def revert_edges(self, operation: int, done: Done, back: bool, *, activate: bool) -> None:
        model = self.model
        active = self.active_edges()
        edges = model.living(done.edges)
        todo = edges - active if activate else edges & active
        if not todo:
            self.refused(lambda: self.revert(operation, back), {Reason.NOTHING_TO_UNDO})
            return
        objects = model.united(todo) if activate else model.parted(active, todo)
        same = np.array_equal(canonical(objects), canonical(model.objects))
        edit = self.try_it(lambda: self.revert(operation, back), {Reason.STILL_CONNECTED} if same else set())
        if edit is not None:
            assert activate or not same or done.parted_nothing
            assert edit.still_one_object or activate or not same
            now = self.active_edges()
            assert (todo <= now) if activate else (edit.still_one_object or not todo & now)
            self.settle(edit, self.tissue.voxels(), objects)
            self.targets[edit.operation_id] = done, back is not self.targets[operation][1]

    # -- what is refused ----------------------------------------------------------------------------------------------

    @rule(data=st.data(), kind=st.sampled_from(["split", "merge", "background", "outside", "same", "undo"]))
    def ask_for_the_wrong_thing(self, data: st.DataObject, kind: str) -> None:
        model, tissue = self.model, self.tissue
        source = self.voxel(data, model.voxels > 0, "source")
        own = model.objects == model.objects[tuple(source)]
        wrong = {
            "split": (model.voxels > 0) & ~own,
            "merge": own,
            "background": model.voxels == 0,
        }.get(kind, own)
        if not wrong.any():
            return
        sink = self.voxel(data, wrong, "sink")
        if kind == "outside":
            sink[data.draw(st.integers(0, 2))] += 1000
        if kind == "same":
            sink = source
        if kind == "background":
            self.is_moved_to_the_nearest(source, sink, own)
        elif kind == "undo":
            self.refused(lambda: edits.undo(tissue.graph, 10_000, "tester"), {Reason.NOTHING_TO_UNDO})
        elif kind == "merge":
            request = tissue.merge_request(source, sink)
            reasons = {Reason.SAME_ROOT, Reason.SAME_POINT, Reason.TOO_FAR}
            self.refused(lambda: edits.merge(tissue.graph, request, volume=tissue.volume), reasons)
        else:
            reasons = {
                "split": {Reason.SEVERAL_ROOTS},
                "outside": {Reason.OUTSIDE},
                "same": {Reason.SAME_POINT},
            }[kind]
            split = tissue.split_request(source, sink)
            self.refused(lambda: edits.split(tissue.graph, split, volume=tissue.volume), reasons)

    def is_moved_to_the_nearest(self, source: Voxel, sink: Voxel, own: np.ndarray) -> None:
        """A point beside an object means the nearest voxel, in nm, of the object that the other point is on."""
        tissue = self.tissue
        request = tissue.split_request(source, sink)
        expected = float(distance_transform_edt(~own, sampling=RESOLUTION)[tuple(sink)])
        if expected > snap_distance(RESOLUTION):
            self.refused(lambda: edits.split(tissue.graph, request, volume=tissue.volume), {Reason.BACKGROUND})
            return
        found = resolved(tissue.graph, request, tissue.volume).sinks
        assert found.coordinates is not None
        place = found.coordinates[0] - tissue.offset
        assert own[tuple(place)]
        assert np.isclose(np.linalg.norm((place - sink) * np.array(RESOLUTION)), expected)
        assert found.pointed.tolist() == [(np.array(sink) + tissue.offset).tolist()]

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def try_it(self, edit: object, allowed: object) -> CommittedEdit | None:
        """The edit, or None if it was refused for one of the allowed reasons."""
        try:
            return edit()  # type: ignore[operator,no-any-return]
        except edits.EditRefused as error:
            refusal = error
        assert refusal.reason in allowed, refusal  # type: ignore[operator]
        event(f"refused: {refusal.reason}")
        self.nothing_changed()
        return None

    def refused(self, edit: object, reasons: set[Reason]) -> None:
        assert self.try_it(edit, reasons) is None, f"should be refused: {reasons}"

    def nothing_changed(self) -> None:
        rows = self.tissue.rows()
        assert but_operations(rows) == but_operations(self.rows)
        assert self.tissue.generation == self.generation
        self.rows = rows

    def settle(self, edit: CommittedEdit, voxels: np.ndarray, objects: np.ndarray) -> None:
        """An edit was made: this is what must be there now."""
        changed = voxels != self.model.voxels
        self.model.voxels, self.model.objects = voxels, objects
        self.generation += 1 if len(edit.supervoxels) else 0
        self.moments.append((edit.logical_time, voxels, canonical(objects)))
        assert changed.any() == bool(len(edit.supervoxels))
        graph = self.tissue.graph
        record = graph.fork.record(edit.operation_id)
        written = np.zeros_like(changed)
        for box in () if record is None else record.boxes:
            at = box.shifted(-self.tissue.offset).slices
            assert changed[at].any(), "a storage chunk was written in which nothing changed"
            assert all(n <= size for n, size in zip(box.shape, self.storage.tolist(), strict=True))
            written[at] = True
        assert not (changed & ~written).any()
        if len(edit.supervoxels):
            assert set(contacts(voxels)) <= set(edges_of(self.tissue)), "what touches has an edge"
        event(f"{edit.kind}{' of supervoxels' if len(edit.supervoxels) else ''}")
        self.rows = self.tissue.rows()

    # -- what always holds --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.moments)
    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        """The leaves of the objects of a moment are the ids that the fork shows pinned to it."""
        time, voxels, objects = self.moments[data.draw(st.integers(0, len(self.moments) - 1), "moment")]
        pinned = self.tissue.voxels_at(time)
        assert np.array_equal(pinned, voxels)
        assert np.array_equal(canonical(self.tissue.objects(pinned, time)), objects)
        ids = np.unique(pinned[pinned > 0])
        found = leaves(self.tissue.graph, np.unique(roots(self.tissue.graph, ids, at=time)))
        assert np.array_equal(np.sort(found.values), ids)

    @invariant()
    def all_is_sound(self) -> None:
        self.tissue.verify()

    @invariant()
    def segmentation_and_objects_are_those_of_the_model(self) -> None:
        voxels = self.tissue.voxels()
        assert np.array_equal(voxels, self.model.voxels)
        assert np.array_equal(canonical(self.tissue.objects(voxels)), canonical(self.model.objects))

    @invariant()
    def every_edit_of_voxels_is_one_generation(self) -> None:
        assert self.tissue.generation == self.generation

    @invariant()
    def nothing_is_locked(self) -> None:
        assert not locks_and_scopes(self.rows)

    def teardown(self) -> None:
        self.open.close()


def as_pairs(edges: np.ndarray) -> set[Pair]:
    return {pair(a, b) for a, b in edges.tolist()}


def links_of(edit: CommittedEdit) -> list[Pair]:
    return [(old, new) for old, new in edit.supervoxels.tolist()]


def run_machine(backend: str, number: int, runs: int) -> None:
    made = {"recipe": RECIPES[number % len(RECIPES)], "backend": backend}
    run_shard(type("Machine", (EditsOfVoxels,), made), number, runs, steps=30)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20 if AT_LENGTH else 5))
def test_edits_agree_with_a_plain_model_on_sqlite(number: int) -> None:
    run_machine("sqlite", number, 8 if IN_CI else 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5 if AT_LENGTH else 2))
def test_edits_agree_with_a_plain_model_on_bigtable(bigtable_emulator: str, number: int) -> None:
    run_machine("bigtable", number, 8 if IN_CI else 1)
