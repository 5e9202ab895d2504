"""A Hypothesis state machine that makes random edits of a world, and that users can run on their own data.

``run(edits_of(world), steps=30)`` makes merges, splits, splits through supervoxels, undos, redos and requests that must
be refused, at random. After each step all invariants are checked, and segmentation and objects are compared with the
reference model. Hypothesis prints the steps of a failure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from scipy.ndimage import distance_transform_edt

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.algorithms.voxel_cut import snap_distance
from sv_pipeline.edits import CommittedEdit, Reason
from sv_pipeline.edits.pointing import resolved
from sv_pipeline.testing.beside_model import BesideModel, Voxel, as_pairs, links_of
from sv_pipeline.testing.models import Done, canonical, pair
from sv_pipeline.testing.tables import Backend
from sv_pipeline.testing.worlds import World

__all__ = ["EditsOfVoxels", "edits_of", "run"]

CUTS_NOT_MADE = frozenset({*Refusal, Reason.VOXEL_CUT, Reason.SUPERVOXEL_SPLIT_REQUIRED})
SPLITS: list[dict[str, Any]] = [
    {},
    {"offset": (3, 3, 3)},
    {"offset": (3, 3, 3)},
    {"offset": (3, 3, 3), "region_memory": 0},
    {"offset": (3, 3, 3), "allow_partial": True},
]
"""Options of splits: the whole volume at once; a region that grows; one that may not grow; one bridge at a time."""
Mask = npt.NDArray[np.bool_]


def edits_of(world: World, backend: Backend = "sqlite") -> type[EditsOfVoxels]:
    """Return a state machine that edits copies of a world, which must never have been edited, and is not changed."""
    return type("EditsOfThisWorld", (EditsOfVoxels,), {"world": world, "backend": backend})


def run(machine: type[RuleBasedStateMachine], *, runs: int = 5, steps: int = 30, seed: int | None = None) -> None:
    """Run a state machine several times.

    A failure prints its steps. Hypothesis does not shrink them, because that takes longer than a test may.

    Parameters
    ----------
    machine
        The state machine, from :func:`edits_of`.
    runs, steps
        Number of runs, and of steps in each.
    seed
        The same seed gives the same runs; by default, each call makes different runs.
    """
    chosen = settings(
        max_examples=runs,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    run_state_machine_as_test(machine if seed is None else seeded(seed)(machine), settings=chosen)


class EditsOfVoxels(BesideModel):
    """The state machine: all kinds of edits at random voxels."""

    # -- choices ------------------------------------------------------------------------------------------------------

    def voxel(self, data: st.DataObject, where: Mask, name: str) -> Voxel:
        """Draw a voxel from a mask."""
        found = np.flatnonzero(where)
        at = found[data.draw(st.integers(0, len(found) - 1), name)]
        return [int(i) for i in np.unravel_index(at, where.shape)]

    # -- edits --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), options=st.sampled_from(SPLITS))
    def split_an_object(self, data: st.DataObject, options: dict[str, Any]) -> None:
        """Cut one object into two, between supervoxels or through them."""
        self.split(data, "object", options)

    @rule(data=st.data(), options=st.sampled_from(SPLITS))
    def split_a_supervoxel(self, data: st.DataObject, options: dict[str, Any]) -> None:
        """Cut one supervoxel into two."""
        self.split(data, "supervoxel", options)

    def split(self, data: st.DataObject, within: str, options: dict[str, Any]) -> None:
        """Cut within an object or a supervoxel, by one or more points on each side."""
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

    def split_between(self, sources: list[Voxel], sinks: list[Voxel], options: dict[str, Any]) -> None:
        """Make a split, and update the model."""
        request = self.copy.split_request(sources, sinks, **options)
        cut = int(self.model.objects[tuple(sources[0])])
        allowed = CUTS_NOT_MADE
        if request.allow_partial or not request.region_memory:
            allowed |= {Reason.STILL_CONNECTED}
        edit = self.try_it(lambda: edits.split(self.copy.graph, request, volume=self.copy.volume), allowed)
        if edit is not None:
            self.follow_split(edit, cut, sources, sinks, partial=request.allow_partial)
            done = Done("split", as_pairs(edit.edges), links_of(edit), sources, sinks)
            done.parted_nothing = edit.still_one_object
            self.targets[edit.operation_id] = done, True

    @rule(data=st.data(), near=st.booleans())
    def merge(self, data: st.DataObject, near: bool) -> None:
        """Merge two objects, whether they touch or not."""
        model = self.model
        source = self.voxel(data, model.voxels > 0, "source")
        others = (model.voxels > 0) & (model.objects != model.objects[tuple(source)])
        if not others.any():
            return
        sink = self.voxel(data, others, "sink")
        options = {"offset": (3, 3, 3)} if near else {}
        request = self.copy.merge_request(source, sink, **options)
        before = self.active_edges()
        edit = self.try_it(lambda: edits.merge(self.copy.graph, request, volume=self.copy.volume), {Reason.TOO_FAR})
        if edit is not None:
            ends = pair(*(int(model.voxels[tuple(point)]) for point in (source, sink)))
            objects = model.united([ends])
            self.settle(edit, self.copy.voxels(), objects)
            done = Done("merge", self.active_edges() - before, [])
            assert done.edges
            self.targets[edit.operation_id] = done, True

    @precondition(lambda self: self.targets)
    @rule(back=st.sampled_from([True, True, False]))
    def undo_or_redo_the_last(self, back: bool) -> None:
        """Undo or redo the newest operation."""
        self.undo_or_redo(max(self.targets), back)

    @precondition(lambda self: self.targets)
    @rule(data=st.data(), back=st.sampled_from([True, True, False]))
    def undo_or_redo_any(self, data: st.DataObject, back: bool) -> None:
        """Undo or redo any operation."""
        self.undo_or_redo(data.draw(st.sampled_from(sorted(self.targets)), "operation"), back)

    @precondition(lambda self: self.taken_back)
    @rule(data=st.data())
    def redo_what_was_undone(self, data: st.DataObject) -> None:
        """Redo a split of supervoxels that was undone."""
        self.undo_or_redo(data.draw(st.sampled_from(self.taken_back), "operation"), False)

    @property
    def taken_back(self) -> list[int]:
        """Operations whose split of supervoxels is not in force."""
        return [op for op, (done, made) in sorted(self.targets.items()) if made and done.links and not done.in_force]

    def undo_or_redo(self, operation: int, back: bool) -> None:
        """Undo or redo an operation, which may be an undo or a redo itself."""
        done, made = self.targets[operation]
        undone = back is made
        if done.links and undone:
            self.undo_split_of_supervoxels(operation, done, back)
        elif done.links:
            self.split_again(operation, done, back)
        else:
            self.revert_edges(operation, done, back, activate=(done.kind == "split") is undone)

    def revert(self, operation: int, back: bool) -> CommittedEdit:
        """Undo or redo an operation."""
        return (edits.undo if back else edits.redo)(self.copy.graph, operation, "tester")

    def undo_split_of_supervoxels(self, operation: int, done: Done, back: bool) -> None:
        """Check an undo of a split of supervoxels: the fragments of each supervoxel become one supervoxel again."""
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
        voxels = self.copy.voxels()
        model.check_voxels(voxels, edit, edited)
        for old_and_new in set(links_of(edit)):
            assert old_and_new[0] in now.values()
        successor = dict(links_of(edit))
        for old, new in done.links:
            model.renamed[old] = successor[now[new]]
        self.settle(edit, voxels, objects)
        done.in_force = False
        self.targets[edit.operation_id] = done, False
        event("supervoxels are one again")

    def split_again(self, operation: int, done: Done, back: bool) -> None:
        """Check a redo of a split of supervoxels, which is refused while the split is in force."""
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
        """Check that an operation's removed edges become active again, or its activated edges inactive."""
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
            self.settle(edit, self.copy.voxels(), objects)
            self.targets[edit.operation_id] = done, back is not self.targets[operation][1]

    # -- what is refused ----------------------------------------------------------------------------------------------

    @rule(data=st.data(), kind=st.sampled_from(["split", "merge", "background", "outside", "same", "undo"]))
    def ask_for_the_wrong_thing(self, data: st.DataObject, kind: str) -> None:
        """Check that an invalid request is refused for the right reason, and changes nothing."""
        model, world = self.model, self.copy
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
            self.refused(lambda: edits.undo(world.graph, 10_000, "tester"), {Reason.NOTHING_TO_UNDO})
        elif kind == "merge":
            request = world.merge_request(source, sink)
            reasons = {Reason.SAME_ROOT, Reason.SAME_POINT, Reason.TOO_FAR}
            self.refused(lambda: edits.merge(world.graph, request, volume=world.volume), reasons)
        else:
            reasons = {
                "split": {Reason.SEVERAL_ROOTS},
                "outside": {Reason.OUTSIDE},
                "same": {Reason.SAME_POINT},
            }[kind]
            split = world.split_request(source, sink)
            self.refused(lambda: edits.split(world.graph, split, volume=world.volume), reasons)

    def is_moved_to_the_nearest(self, source: Voxel, sink: Voxel, own: Mask) -> None:
        """Check that a point beside an object is moved to the nearest voxel, in nm, of the other point's object."""
        resolution = self.copy.dataset.volume.scales[0].resolution
        world = self.copy
        request = world.split_request(source, sink)
        expected = float(distance_transform_edt(~own, sampling=resolution)[tuple(sink)])
        if expected > snap_distance(resolution):
            self.refused(lambda: edits.split(world.graph, request, volume=world.volume), {Reason.BACKGROUND})
            return
        found = resolved(world.graph, request, world.volume).sinks
        assert found.coordinates is not None
        place = found.coordinates[0] - world.offset
        assert own[tuple(place)]
        assert np.isclose(np.linalg.norm((place - sink) * np.array(resolution)), expected)
        assert found.pointed.tolist() == [(np.array(sink) + world.offset).tolist()]
