"""How roots came about and what became of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.graph.lineage import latest_roots, lineage
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline_tests.graph.worlds import random_world, write_world

A, B, C, D, E, F = (1, 2, 3, 4, 5, 6)
HISTORY = [(100, 11, [A, B], [C]), (200, 12, [C], [D, E]), (300, 13, [E], [F])]
"""Time, operation, old roots, new roots: a merge, a split, a merge with nothing."""


@pytest.fixture
def graph(new_table: Table, tmp_path: Path) -> ChunkedGraph:
    graph = create_chunked_graph(new_table, write_world(random_world((2, 1, 1), 0), tmp_path))
    base = int(graph.layout.chunk_ids(graph.n_layers, (0, 0, 0)))
    for time, operation, old, new in HISTORY:
        old_ids, new_ids = [base + i for i in old], [base + i for i in new]
        marks = [columns.OPERATION_ID.set(operation, time)]
        new_table.mutate(
            [
                *(RowMutation(keys.node_key(i), [columns.FORMER_PARENTS.set(old_ids, time), *marks]) for i in new_ids),
                *(RowMutation(keys.node_key(i), [columns.NEW_PARENTS.set(new_ids, time), *marks]) for i in old_ids),
            ]
        )
    return graph


def ids(graph: ChunkedGraph, *numbers: int) -> list[int]:
    base = int(graph.layout.chunk_ids(graph.n_layers, (0, 0, 0)))
    return [base + number for number in numbers]


def test_lineage_reaches_into_past_and_future(graph: ChunkedGraph) -> None:
    found = lineage(graph, ids(graph, C))
    edges = [(A, C, 11, 100), (B, C, 11, 100), (C, D, 12, 200), (C, E, 12, 200), (E, F, 13, 300)]
    assert found.edges.tolist() == [ids(graph, old, new) for old, new, _, _ in edges]
    assert found.operations.tolist() == [operation for _, _, operation, _ in edges]
    assert found.timestamps.tolist() == [time for _, _, _, time in edges]


def test_lineage_follows_one_direction_if_asked(graph: ChunkedGraph) -> None:
    assert lineage(graph, ids(graph, F), future=False).edges.tolist() == [
        ids(graph, *pair) for pair in ((A, C), (B, C), (C, E), (E, F))
    ]
    assert lineage(graph, ids(graph, D), past=False).edges.shape == (0, 2)


def test_lineage_at_a_moment_knows_nothing_later(graph: ChunkedGraph) -> None:
    assert lineage(graph, ids(graph, A), at=250).edges.tolist() == [
        ids(graph, *pair) for pair in ((A, C), (C, D), (C, E))
    ]


def test_latest_roots_are_those_that_nothing_replaced(graph: ChunkedGraph) -> None:
    assert latest_roots(graph, ids(graph, A)).tolist() == ids(graph, D, F)
    assert latest_roots(graph, ids(graph, A), at=100).tolist() == ids(graph, C)
    assert latest_roots(graph, ids(graph, D, 99)).tolist() == ids(graph, D, 99)


def test_the_log_is_read_in_order(graph: ChunkedGraph) -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    graph.table.mutate(
        [
            RowMutation(
                keys.node_key(12),
                [
                    columns.OPERATION_STATUS.set(0),
                    columns.OPERATION_TIMESTAMP.set(when),
                    columns.USER.set("ana"),
                    columns.ROOTS.set(ids(graph, D, E)),
                    columns.REMOVED_EDGES.set([[1, 2]]),
                ],
            ),
            RowMutation(keys.node_key(11), [columns.OPERATION_STATUS.set(1), columns.ADDED_EDGES.set([[1, 2]])]),
            RowMutation(keys.node_key(14), [columns.UNDO_OPERATION_ID.set(12)]),
        ]
    )
    merge, split, undo = read_operations(graph)
    assert (merge.operation_id, merge.kind, merge.status) == (11, "merge", OperationStatus.CREATED)
    assert (split.kind, split.timestamp, split.user, split.roots.tolist()) == ("split", when, "ana", ids(graph, D, E))
    assert (undo.kind, undo.status, undo.roots.tolist()) == ("undo", None, [])
    assert [operation.operation_id for operation in read_operations(graph, [14, 99])] == [14]
