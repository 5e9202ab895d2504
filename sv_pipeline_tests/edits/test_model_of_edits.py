"""Any sequence of merges, splits, refused edits and reads of the past agrees with a plain model of the graph."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sv_pipeline import edits
from sv_pipeline.algorithms.multicut import Refusal
from sv_pipeline.edits import Reason
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.lineage import OperationStatus, latest_roots, read_operations
from sv_pipeline.table.bigtable import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite import SqliteTable
from sv_pipeline_tests.edits.conftest import merge_request, split_request
from sv_pipeline_tests.edits.model import Model, stored_components, verify_rows
from sv_pipeline_tests.graph.worlds import World, ingest, random_world

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
SHAPES = [(2, 1, 1), (2, 2, 2), (5, 2, 1), (3, 3, 2)]
SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "stateful_step_count": 10,
}


@dataclass(frozen=True, eq=False)
class Template:
    """A world, and the rows of its graph."""

    world: World
    rows: list[RowMutation]
    initial: Model


@cache
def template(shape: tuple[int, int, int], seed: int) -> Template:
    world = random_world(shape, seed, per_chunk=3, objects=0.25, cross=0.08)
    folder = Path(mkdtemp(prefix="edits"))
    graph, _ = ingest(world, SqliteTable("template", folder), folder)
    rows = [
        RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
        for key, row in graph.table.scan([EVERYTHING])
    ]
    return Template(world, rows, Model.of(world))


class EditsAgainstModel(RuleBasedStateMachine):
    """Edits of a graph and of the model; rows are proven after each step."""

    new_table: staticmethod  # type: ignore[type-arg]

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[int, str]] = []
        self.history: list[tuple[int, set[frozenset[int]]]] = []
        self.refused = self.made = 0

    @initialize(shape=st.sampled_from(SHAPES), seed=st.integers(0, 3))
    def build(self, shape: tuple[int, int, int], seed: int) -> None:
        made = template(shape, seed)
        self._folder = TemporaryDirectory()
        table: Table = type(self).new_table(self._folder.name)
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

    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        """A merge of two objects, or a split of one."""
        source, sink = self.two(data)
        same = self.model.component_of(source) == self.model.component_of(sink)
        request = (split_request if same else merge_request)([source], [sink])
        apart = int(np.abs(np.diff(self.world.layout.coordinates(np.array([source, sink], np.uint64)), axis=0)).max())
        try:
            edit = edits.split(self.graph, request) if same else edits.merge(self.graph, request)  # type: ignore[arg-type]
        except edits.EditRefused as refusal:
            reason = refusal.reason
        else:
            self.follow(source, sink, edit)
            return
        self.refused += 1
        assert reason in ({Reason.SUPERVOXEL_SPLIT_REQUIRED, *Refusal} if same else {Reason.TOO_FAR})
        assert same or apart > 3

    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        """Of anything that was done, at any later time; later edits stay."""
        if not self.operations:
            return
        operation_id, kind = data.draw(st.sampled_from(self.operations), "operation")
        try:
            edit = edits.undo(self.graph, operation_id, "tester")
        except edits.EditRefused as refusal:
            reason = refusal.reason
        else:
            changed = {(a, b) for a, b in edit.edges.tolist()}
            self.model.active = self.model.active | changed if kind == "split" else self.model.active - changed
            self.model.settle()
            self.made += 1
            self.history.append((edit.logical_time, self.model.components))
            return
        self.refused += 1
        assert reason is Reason.NOTHING_TO_UNDO

    def follow(self, source: int, sink: int, edit: edits.CommittedEdit) -> None:
        """Let the model do the same."""
        same = edit.kind == "split"
        if same:
            assert len(edit.roots) >= 2
            self.model.remove(edit.edges)
        else:
            assert len(edit.roots) == 1
            self.model.merge(source, sink)
        self.made += 1
        self.operations.append((edit.operation_id, edit.kind))
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


@contextmanager
def machine(new_table: object) -> Iterator[type[EditsAgainstModel]]:
    yield type("Machine", (EditsAgainstModel,), {"new_table": staticmethod(new_table)})  # type: ignore[arg-type]


def test_edits_agree_with_a_plain_model_on_sqlite() -> None:
    with machine(lambda folder: SqliteTable("graph", Path(folder))) as kind:
        run_state_machine_as_test(kind, settings=settings(max_examples=12, **SETTINGS))  # type: ignore[arg-type]


def test_edits_agree_with_a_plain_model_on_bigtable(bigtable_emulator: str) -> None:
    with machine(lambda _: BigtableTable(f"t{uuid.uuid4().hex[:12]}", "project", "instance", patience=5.0)) as kind:
        run_state_machine_as_test(kind, settings=settings(max_examples=3, **SETTINGS))  # type: ignore[arg-type]
