"""The form of a supervoxel split that is in effect after undo and redo, possibly repeated. Reads the log.

A split S creates fragments; its undo U creates their successors; its redo R splits these again, into new fragments::

    S --undone by--> U --redone by--> R --undone by--> ...
    in effect        undone           in effect

Later splits of the fragments that were undone themselves have changed ids, but nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, known_chain
from sv_pipeline.operations.successors import Successor, Successors, Whereabouts
from sv_pipeline.operations.writing import read_supervoxels

__all__ = ["EffectiveSplit", "effective_split"]


@dataclass(frozen=True, eq=False)
class EffectiveSplit:
    """The last form of a supervoxel split."""

    operation: Operation
    record: UInt64Array
    """(old, new, side) of each fragment, shape (n, 3); if the split is in effect, new ids are current ones."""
    undone_by: int | None
    """The operation that undid it; None if it is in effect."""
    overlapped_by: tuple[int, ...]
    """Operations that split its fragments further; empty if it is undone, or in effect unchanged."""


def _origin(graph: ChunkedGraph, operation: Operation) -> int:
    """Return the operation at the beginning of a chain of undos and redos, as far as the log contains it."""
    return known_chain(graph, operation)[-1].operation_id


def effective_split(graph: ChunkedGraph, operation: Operation, record: UInt64Array) -> EffectiveSplit:
    """Follow the undos and redos of an operation that split supervoxels; ``record`` is what it replaced."""
    successors = Successors.read(graph, record[:, 1])
    while True:
        found = [successors.of(fragment) for fragment in record[:, 1].tolist()]
        split = {successor.operation for successor in found if successor.state is Whereabouts.SPLIT}
        if split:
            return EffectiveSplit(operation, record, None, tuple(sorted(o for o in split if o is not None)))
        if all(successor.state is Whereabouts.HERE for successor in found):
            today = np.array([successor.supervoxel for successor in found], np.uint64)
            return EffectiveSplit(operation, np.stack([record[:, 0], today, record[:, 2]], axis=-1), None, ())
        joined = next(successor for successor in found if successor.state is Whereabouts.JOINED)
        after = [successors.of(successor) for successor in sorted({successor.supervoxel for successor in found})]
        redo = _redo(graph, successors, after, operation)
        if redo is None:
            back = max(
                (one.operation for one in after if one.operation and one.state is Whereabouts.HERE), default=None
            )
            return EffectiveSplit(operation, record, back or joined.operation, ())
        operation, record = redo, read_supervoxels(graph.table, redo.operation_id)


def _redo(
    graph: ChunkedGraph, successors: Successors, after: list[Successor], operation: Operation
) -> Operation | None:
    """Return the redo of an operation that has split everything that its undo had joined; None if there is none."""
    by = {successor.operation if successor.state is Whereabouts.SPLIT else None for successor in after}
    again = successors.operations.get(next(iter(by)) or 0) if len(by) == 1 else None
    if again is None or again.kind != "redo" or _origin(graph, again) != _origin(graph, operation):
        return None
    return again
