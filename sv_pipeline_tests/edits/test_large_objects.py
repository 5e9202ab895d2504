"""The cost of an edit follows the box around its points, not the object: rows are counted in objects of three sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.table.interface import CellFilter, ConditionalMutation, RowMutation, RowView
from sv_pipeline.table.keys import node_keys
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.edits.model import verify_rows
from sv_pipeline_tests.graph.large_objects import LargeObject, tube
from sv_pipeline_tests.graph.worlds import CHUNK_SIZE, ingest

LENGTHS = (16, 64, 256)
ROWS_PER_LAYER = 12
"""An ancestor on each side of the cut, a sibling of each, what their edges lead to, and guesses at what comes next."""


@dataclass(eq=False)
class CountingTable(SqliteTable):
    """A table that remembers the rows of nodes that were read, and counts those that were written."""

    read: set[bytes] = field(default_factory=set, init=False)
    written: int = field(default=0, init=False)

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        self.read.update(keys)
        return super()._read_rows(keys, wanted)

    def mutate(self, mutations: Sequence[RowMutation]) -> None:  # type: ignore[override]
        rows = list(mutations)
        self.written += len(rows)
        super().mutate(rows)

    def at_once(self, changes: Sequence[RowMutation | ConditionalMutation]) -> list[bool]:
        self.written += len(changes)
        return super().at_once(changes)


@dataclass
class Counted:
    """A graph of one object, and what its edits cost."""

    graph: ChunkedGraph
    made: LargeObject
    costs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Distinct rows that were read, and rows that were written."""

    def count(self, name: str, edit: Callable[[], object]) -> None:
        table = self.graph.table
        assert isinstance(table, CountingTable)
        table.read.clear()
        table.written = 0
        edit()
        self.costs[name] = len(table.read), table.written


def measured(folder: Path, length: int) -> Counted:
    made = tube(1, length)
    graph, _ = ingest(made.world, CountingTable("graph", folder), folder)
    counted = Counted(graph, made)
    sides = Points.of([made.source]), Points.of([made.sink])
    split = SplitRequest("tester", *sides, offset=CHUNK_SIZE, disallow_isolating_cut=False)
    merge = MergeRequest("tester", *sides, offset=CHUNK_SIZE)
    counted.count("preview", lambda: edits.preview_split(graph, split))
    counted.count("split", lambda: edits.split(graph, split))
    assert len(np.unique(roots(graph, [made.source, made.sink]))) == 2
    counted.count("merge", lambda: edits.merge(graph, merge))
    assert len(np.unique(roots(graph, made.world.supervoxels))) == 1
    return counted


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Counted]:
    return {length: measured(tmp_path_factory.mktemp("tube"), length) for length in LENGTHS}


@pytest.mark.parametrize("edit", ["preview", "split", "merge"])
def test_rows_read_and_written_do_not_grow_with_the_object(tubes: dict[int, Counted], edit: str) -> None:
    small = tubes[LENGTHS[0]]
    for length in LENGTHS[1:]:
        large = tubes[length]
        allowed = ROWS_PER_LAYER * (large.graph.n_layers - small.graph.n_layers)
        for now, before in zip(large.costs[edit], small.costs[edit], strict=True):
            assert now <= before + allowed


def test_no_row_of_a_far_chunk_is_read(tubes: dict[int, Counted]) -> None:
    large = tubes[LENGTHS[-1]]
    table, layout = large.graph.table, large.graph.layout
    assert isinstance(table, CountingTable)
    sides = Points.of([large.made.source]), Points.of([large.made.sink])
    table.read.clear()
    edits.preview_split(large.graph, SplitRequest("tester", *sides, offset=CHUNK_SIZE, disallow_isolating_cut=False))
    ids = large.made.world.supervoxels
    middle = layout.coordinates(np.array([large.made.source], np.uint64))[0]
    far = np.abs(layout.coordinates(ids) - middle).max(axis=1) > 4
    assert not table.read.intersection(node_keys(ids[far]))


def test_the_rows_are_sound_afterwards(tubes: dict[int, Counted]) -> None:
    verify_rows(tubes[LENGTHS[1]].graph)
