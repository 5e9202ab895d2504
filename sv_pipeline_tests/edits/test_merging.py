"""Merges leave one object, sound rows, and a complete log."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.graph.queries import roots
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowKeyRange
from sv_pipeline_tests.edits.conftest import Edited

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (3, 2, 2), (9, 2, 1)])
def test_merged_objects_are_one_and_all_rows_are_sound(make_graph: Callable[..., Edited], shape) -> None:
    edited = make_graph(shape, seed=3, per_chunk=2 if shape[0] > 1 else 8, objects=1.0, edges_per_supervoxel=1.5)
    for source, sink in edited.pairs(same=False)[:4]:
        if edited.model.component_of(source) != edited.model.component_of(sink):
            edited.merge(source, sink)
            edited.prove()


def test_the_log_and_the_lineage_are_complete(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=1.0, cross=0.1)
    source, sink = edited.pairs(same=False)[0]
    old = roots(edited.graph, [source, sink])
    edit = edited.merge(source, sink)
    (row,) = read_operations(edited.graph)
    assert (row.operation_id, row.kind, row.user) == (edit.operation_id, "merge", "tester")
    assert row.status is OperationStatus.SUCCESS
    assert row.roots.tolist() == edit.roots.tolist() == latest_roots(edited.graph, old).tolist()
    assert columns.ADDED_EDGES.newest(row.row).tolist() == [[source, sink]]
    assert edit.old_roots.tolist() == sorted(old.tolist())
    assert latest_roots(edited.graph, [*old, *edit.roots]).tolist() == edit.roots.tolist()


def test_all_graph_cells_carry_the_time_of_the_edit(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=1.0)
    table = edited.graph.table
    before = {(k, c, v.timestamp) for k, row in table.scan([EVERYTHING]) for c, cells in row.items() for v in cells}
    edit = edited.merge(*edited.pairs(same=False)[0])
    for key, row in table.scan([EVERYTHING]):
        if key.isdigit() and int(key) > edit.operation_id:
            new = [v.timestamp for c, cells in row.items() for v in cells if (key, c, v.timestamp) not in before]
            assert set(new) <= {edit.logical_time}, key


def test_no_lock_and_no_scope_remain(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=1.0)
    edited.merge(*edited.pairs(same=False)[0])
    locks = [columns.LOCK.key, columns.INDEFINITE_LOCK.key]
    assert not dict(edited.graph.table.scan([EVERYTHING], locks))
    own = dict(edited.graph.table.scan([keys.prefix_range(b"sv_pipeline:op:")]))
    assert {column.qualifier for row in own.values() for column in row} == {b"activated", b"attempt", b"identity"}


def test_objects_that_touch_nowhere_get_an_edge_of_the_user(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph((5, 3, 2), seed=8, edges_per_supervoxel=0.6, objects=1.0)
    known = set(edited.model.edges)
    for source, sink in edited.pairs(same=False)[:6]:
        if edited.model.component_of(source) != edited.model.component_of(sink):
            edited.merge(source, sink)
    fake = edited.model.edges - known
    assert fake
    stored = set()
    for key, row in edited.graph.table.scan([keys.prefix_range(b"f")]):
        for _, edges in columns.FAKE_EDGES.history(row):
            chunk = edited.graph.layout.chunk_ids(2, edited.graph.layout.coordinates(edges[:, 0]))
            assert set(chunk.tolist()) == {int(key[1:])}
            stored |= {tuple(edge) for edge in edges.tolist()}
    assert stored == fake | {(b, a) for a, b in fake}
    edited.prove()


def test_the_past_does_not_change(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph(objects=1.0)
    source, sink = edited.pairs(same=False)[0]
    old = roots(edited.graph, [source, sink])
    edit = edited.merge(source, sink)
    assert roots(edited.graph, [source, sink], at=edit.logical_time - 1).tolist() == old.tolist()
    assert np.unique(roots(edited.graph, [source, sink], at=edit.logical_time)).tolist() == edit.roots.tolist()
