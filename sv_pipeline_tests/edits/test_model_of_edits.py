"""Any sequence of merges, splits, refused edits and reads of the past agrees with a plain model of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut.cut import Refusal
from sv_pipeline.edits import Reason
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.tables import Backend, all_rows, new_table
from sv_pipeline.testing.worlds import fast_folder, lasting_folder
from sv_pipeline_tests.edits.conftest import merge_request, split_request
from sv_pipeline_tests.edits.machines import IN_CI, run_shard
from sv_pipeline_tests.edits.model import Model, stored_components, verify_rows
from sv_pipeline_tests.graph.worlds import World, ingest, random_world

SPLITS: list[dict[str, object]] = [
    {},
    {"offset": (0, 0, 0)},
    {"offset": (0, 0, 0), "region_memory": 0},
    {"offset": (0, 0, 0), "allow_partial": True},
]
"""The whole volume at once; a region that grows; one that may not; one bridge at a time."""
SHAPES = [(2, 1, 1), (2, 2, 2), (5, 2, 1), (3, 3, 2)]


@dataclass(frozen=True, eq=False)
class Template:
    """A world, and the rows of its graph."""

    world: World
    rows: list[RowMutation]
    initial: Model


@cache
def template(shape: tuple[int, int, int], seed: int) -> Template:
    world = random_world(shape, seed, per_chunk=3, objects=0.25, cross=0.08)
    folder = lasting_folder()
    graph, _ = ingest(world, SqliteTable("template", folder), folder)
    return Template(world, all_rows(graph.table), Model.of(world))


class EditsAgainstModel(RuleBasedStateMachine):
    """Edits of a graph and of the model; rows are proven after each step."""

    backend: Backend
    shape: tuple[int, int, int]

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[int, str, bool]] = []
        """Number, kind, and whether it has left one object where it was to part."""
        self.history: list[tuple[int, set[frozenset[int]]]] = []
        self.refused = self.made = 0

    @initialize(seed=st.integers(0, 3))
    def build(self, seed: int) -> None:
        made = template(self.shape, seed)
        self._folder = fast_folder()
        table = new_table(self.backend, self._folder.name)
        table.create()
        table.mutate(made.rows)
        self.graph: ChunkedGraph = open_chunked_graph(table)
        self.world = made.world
        self.model = Model(made.world, set(made.initial.edges), set(made.initial.active))

    def two(self, data: st.DataObject) -> tuple[int, int]:
        supervoxels = st.sampled_from(self.world.supervoxels.tolist())
        source = data.draw(supervoxels, "source")
        sink = data.draw(supervoxels.filter(lambda sv: sv != source), "sink")
        return source, sink

    @rule(data=st.data(), options=st.sampled_from(SPLITS))
    def edit(self, data: st.DataObject, options: dict[str, object]) -> None:
        """A merge of two objects, or a split of one."""
        source, sink = self.two(data)
        if self.model.component_of(source) == self.model.component_of(sink):
            self.split(source, sink, options)
            return
        apart = int(np.abs(np.diff(self.world.layout.coordinates(np.array([source, sink], np.uint64)), axis=0)).max())
        try:
            edit = edits.merge(self.graph, merge_request([source], [sink]))
        except edits.EditRefused as refusal:
            reason = refusal.reason
        else:
            self.follow(source, sink, edit)
            return
        self.refused += 1
        assert reason is Reason.TOO_FAR
        assert apart > 3

    def split(self, source: int, sink: int, options: dict[str, object]) -> None:
        """What the preview says is what comes of it; a success parts the points, or says that it has not."""
        request = split_request([source], [sink], **options)
        preview = edits.preview_split(self.graph, request)
        if preview.refusal is None:
            edit = edits.split(self.graph, request)
            assert (preview.objects, preview.still_one_object) == (len(edit.roots), edit.still_one_object)
            self.follow(source, sink, edit)
            assert (self.model.component_of(source) == self.model.component_of(sink)) is edit.still_one_object
            assert request.allow_partial or not edit.still_one_object
            return
        with pytest.raises(edits.EditRefused) as caught:
            edits.split(self.graph, request)
        assert (caught.value.reason, str(caught.value)) == (preview.refusal.reason, str(preview.refusal))
        self.refused += 1
        allowed = {Reason.SUPERVOXEL_SPLIT_REQUIRED, *Refusal}
        if request.allow_partial or not request.region_memory:
            allowed |= {Reason.STILL_CONNECTED}
        assert caught.value.reason in allowed

    @rule(data=st.data(), back=st.sampled_from([True, True, False]), partial=st.booleans())
    def undo_or_redo(self, data: st.DataObject, back: bool, partial: bool) -> None:
        """Of anything that was done, at any later time; later edits stay."""
        if not self.operations:
            return
        operation_id, kind, parted_nothing = data.draw(st.sampled_from(self.operations), "operation")
        activate = (kind == "split") is back
        try:
            edit = (edits.undo if back else edits.redo)(self.graph, operation_id, "tester", allow_partial=partial)
        except edits.EditRefused as refusal:
            reason = refusal.reason
        else:
            changed = {(a, b) for a, b in edit.edges.tolist()}
            self.model.active = self.model.active | changed if activate else self.model.active - changed
            self.model.settle()
            joined = [] if activate else [self.model.component_of(a) == self.model.component_of(b) for a, b in changed]
            assert edit.still_one_object is any(joined)
            assert not joined or not all(joined) or partial or (parted_nothing and not back)
            self.made += 1
            self.history.append((edit.logical_time, self.model.components))
            return
        self.refused += 1
        assert reason is Reason.NOTHING_TO_UNDO or (reason is Reason.STILL_CONNECTED and not activate)

    def follow(self, source: int, sink: int, edit: edits.CommittedEdit) -> None:
        """Let the model do the same."""
        same = edit.kind == "split"
        if same:
            assert len(edit.roots) >= 2 or edit.still_one_object
            self.model.remove(edit.edges)
        else:
            assert len(edit.roots) == 1
            self.model.merge(source, sink)
        self.made += 1
        self.operations.append((edit.operation_id, edit.kind, edit.still_one_object))
        self.history.append((edit.logical_time, self.model.components))
        assert set(latest_roots(self.graph, edit.old_roots).tolist()) == set(edit.roots.tolist())

    @rule(data=st.data())
    def ask_for_the_wrong_thing(self, data: st.DataObject) -> None:
        source, sink = self.two(data)
        same = self.model.component_of(source) == self.model.component_of(sink)
        request = (merge_request if same else split_request)([source], [sink])
        edit = edits.merge if same else edits.split
        with pytest.raises(edits.EditRefused) as caught:
            edit(self.graph, request)  # type: ignore[operator]
        self.refused += 1
        assert caught.value.reason in {Reason.SAME_ROOT, Reason.SEVERAL_ROOTS, Reason.TOO_FAR}

    @rule(data=st.data())
    def read_the_past(self, data: st.DataObject) -> None:
        """Edits of one thread have times in their order, so a time tells the state."""
        times = [time for time, _ in self.history]
        if times and times == sorted(set(times)):
            at, objects = data.draw(st.sampled_from(self.history), "moment")
            assert stored_components(self.graph, self.world, at) == objects

    @invariant()
    def the_graph_is_sound_and_is_the_model(self) -> None:
        if hasattr(self, "graph"):
            verify_rows(self.graph)
            assert stored_components(self.graph, self.world) == self.model.components

    @invariant()
    def the_log_has_every_edit(self) -> None:
        if hasattr(self, "graph"):
            status = [row.status for row in read_operations(self.graph)]
            assert status.count(OperationStatus.SUCCESS) == self.made
            assert status.count(OperationStatus.EXCEPTION) == self.refused == len(status) - self.made

    def teardown(self) -> None:
        if hasattr(self, "graph"):
            self.graph.table.drop()
            self.graph.table.close()
            self._folder.cleanup()


def run_machine(backend: str, number: int, runs: int) -> None:
    made = {"backend": backend, "shape": SHAPES[number]}
    run_shard(type("Machine", (EditsAgainstModel,), made), number, runs, steps=30 if IN_CI else 15)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_edits_agree_with_a_plain_model_on_sqlite(number: int) -> None:
    run_machine("sqlite", number, 10 if IN_CI else 4)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_edits_agree_with_a_plain_model_on_bigtable(bigtable_emulator: str, number: int) -> None:
    run_machine("bigtable", number, 3 if IN_CI else 1)
