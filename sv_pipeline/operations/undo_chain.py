"""Which operation a supervoxel split lives on in, after it was undone and made again, and again. Reads the log.

A split S gives fragments; its undo U gives their successors; its redo R splits these, with fragments of its own::

    S --undone by--> U --made again by--> R --undone by--> ...
    in force         undone               in force

Later splits of the fragments that were undone themselves leave other ids, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, read_operations
from sv_pipeline.operations.successors import Fate, Fates, Whereabouts
from sv_pipeline.operations.writing import read_supervoxels
from sv_pipeline.table import columns

__all__ = ["Incarnation", "about", "latest_incarnation", "origin"]


@dataclass(frozen=True, eq=False)
class Incarnation:
    """The last form of a supervoxel split."""

    operation: Operation
    record: UInt64Array
    """(old, new, side), shape (n, 3); of what is in force, new ones under their ids of today."""
    undone_by: int | None
    """The operation that took it back."""
    overlapped_by: tuple[int, ...]
    """Operations that split its fragments further; none if it is undone, or in force as it was."""


def about(operation: Operation) -> int:
    """The operation that an undo or a redo is about."""
    column = columns.UNDO_OPERATION_ID if operation.kind == "undo" else columns.REDO_OPERATION_ID
    return column.newest(operation.row) or 0


def origin(graph: ChunkedGraph, operation: Operation) -> int:
    """The operation that a chain of undos and redos began with."""
    while operation.kind in ("undo", "redo"):
        found = read_operations(graph, [about(operation)])
        if not found:
            break
        operation = found[0]
    return operation.operation_id


def latest_incarnation(graph: ChunkedGraph, operation: Operation, record: UInt64Array) -> Incarnation:
    """Follow undo and redo of an operation that split supervoxels; ``record`` is what it replaced."""
    fates = Fates.read(graph, record[:, 1])
    while True:
        found = [fates.of(fragment) for fragment in record[:, 1].tolist()]
        split = {fate.operation for fate in found if fate.state is Whereabouts.SPLIT}
        if split:
            return Incarnation(operation, record, None, tuple(sorted(o for o in split if o is not None)))
        if all(fate.state is Whereabouts.HERE for fate in found):
            today = np.array([fate.supervoxel for fate in found], np.uint64)
            return Incarnation(operation, np.stack([record[:, 0], today, record[:, 2]], axis=-1), None, ())
        joined = next(fate for fate in found if fate.state is Whereabouts.JOINED)
        after = [fates.of(successor) for successor in sorted({fate.supervoxel for fate in found})]
        redo = _redo(graph, fates, after, operation)
        if redo is None:
            back = max(
                (fate.operation for fate in after if fate.operation and fate.state is Whereabouts.HERE), default=None
            )
            return Incarnation(operation, record, back or joined.operation, ())
        operation, record = redo, read_supervoxels(graph.table, redo.operation_id)


def _redo(graph: ChunkedGraph, fates: Fates, successors: list[Fate], operation: Operation) -> Operation | None:
    """The redo of an operation that has split all that its undo had joined; None if there is none."""
    by = {fate.operation if fate.state is Whereabouts.SPLIT else None for fate in successors}
    again = fates.operations.get(next(iter(by)) or 0) if len(by) == 1 else None
    if again is None or again.kind != "redo" or origin(graph, again) != origin(graph, operation):
        return None
    return again
