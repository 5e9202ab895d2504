"""Which operation a supervoxel split lives on in, after it was undone and made again, and again. Reads the log.

A split S gives fragments; its undo U gives their successors; its redo R splits these, with fragments of its own::

    S --undone by--> U --made again by--> R --undone by--> ...
    in force         undone               in force
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.edits.operation_log import read_supervoxels
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import Operation, read_operations
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import columns, keys

__all__ = ["Incarnation", "about", "latest_incarnation"]


@dataclass(frozen=True, eq=False)
class Incarnation:
    """The last form of a supervoxel split."""

    operation: Operation
    record: UInt64Array
    """(old, new, side), shape (n, 3)."""
    undone_by: int | None
    """The operation that took it back."""
    overlapped_by: tuple[int, ...]
    """Operations that split its fragments further; none if it is undone, or in force as it was."""


def about(operation: Operation) -> int:
    """The operation that an undo or a redo is about."""
    column = columns.UNDO_OPERATION_ID if operation.kind == "undo" else columns.REDO_OPERATION_ID
    return column.newest(operation.row) or 0


def latest_incarnation(graph: ChunkedGraph, operation: Operation, record: UInt64Array) -> Incarnation:
    """Follow undo and redo of an operation that split supervoxels; ``record`` is what it replaced."""
    while True:
        successors = _replacing(graph, record[:, 1])
        if not successors:
            return Incarnation(operation, record, None, ())
        undo = _that_is(graph, successors, "undo", operation.operation_id)
        if undo is None:
            return Incarnation(operation, record, None, tuple(successors))
        redo = _that_is(
            graph, _replacing(graph, read_supervoxels(graph.table, undo.operation_id)[:, 1]), "redo", operation.id
        )
        if redo is None:
            return Incarnation(operation, record, undo.operation_id, ())
        operation, record = redo, read_supervoxels(graph.table, redo.operation_id)


def _replacing(graph: ChunkedGraph, supervoxels: UInt64Array) -> list[int]:
    """Operations that replaced some of these supervoxels, ascending."""
    rows = graph.table.read_rows(keys.node_keys(np.unique(supervoxels)), [columns.NEW_IDS.key], newest_only=True)
    found = [columns.NEW_IDS.newest(row) for row in rows.values()]
    new = np.unique(np.concatenate([ids for ids in found if ids is not None] or [np.zeros(0, np.uint64)]))
    made = graph.table.read_rows(keys.node_keys(new), [columns.OPERATION_ID.key], newest_only=True)
    operations = {columns.OPERATION_ID.newest(row) for row in made.values()}
    return sorted(operation for operation in operations if operation is not None)


def _that_is(graph: ChunkedGraph, operation_ids: list[int], kind: str, target: int) -> Operation | None:
    """The one of some operations that is an undo or redo of another; None if there is not exactly one."""
    found = read_operations(graph, operation_ids) if len(operation_ids) == 1 else []
    return found[0] if found and found[0].kind == kind and about(found[0]) == target else None
