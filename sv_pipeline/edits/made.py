"""Reads an edit that was made back from the operation log, as the value that the edit itself returned."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from sv_pipeline.edits import CommittedEdit
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, OperationStatus, read_operation
from sv_pipeline.operations.writing import read_still_one_object, read_supervoxels
from sv_pipeline.table import columns, keys

__all__ = ["read_edit"]


def read_edit(graph: ChunkedGraph, operation_id: int) -> CommittedEdit:
    """Read an edit that was made.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    InputError
        If the operation was refused, or has not ended.
    """
    operation = read_operation(graph, operation_id)
    if operation.status is not OperationStatus.SUCCESS or operation.timestamp is None:
        raise InputError(
            f"operation {operation_id} of graph {graph.graph_id!r} was not made: it was refused, or has not ended."
        )
    edges = [columns.ADDED_EDGES.newest(operation.row), columns.REMOVED_EDGES.newest(operation.row)]
    return CommittedEdit(
        **{field.name: getattr(operation, field.name) for field in fields(Operation)},
        old_roots=_replaced_by(graph, operation.roots),
        edges=next((e for e in edges if e is not None), np.zeros((0, 2), np.uint64)),
        logical_time=milliseconds(operation.timestamp) or 0,
        supervoxels=read_supervoxels(graph.table, operation_id)[:, :2],
        still_one_object=bool(read_still_one_object(graph.table, [operation_id])),
    )


def _replaced_by(graph: ChunkedGraph, roots: UInt64Array) -> UInt64Array:
    """Return the roots that the given roots replaced, ascending."""
    rows = graph.table.read_rows(keys.node_keys(roots), [columns.FORMER_PARENTS.key])
    former = [columns.FORMER_PARENTS.newest(row) for row in rows.values()]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(f for f in former if f is not None)]))
