"""Which operation a supervoxel split lives on in, after it was undone and made again, and again. Reads the log.

A split S gives fragments; its undo U gives their successors; its redo R splits these, with fragments of its own::

    S --undone by--> U --made again by--> R --undone by--> ...
    in force         undone               in force

Later splits of the fragments that were undone themselves leave other ids, and nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from sv_pipeline.errors import NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, chain
from sv_pipeline.operations.successors import Successor, Successors, Whereabouts
from sv_pipeline.operations.writing import read_supervoxels

__all__ = ["EffectiveSplit", "effective_split"]


@dataclass(frozen=True, eq=False)
class EffectiveSplit:
    """The last form of a supervoxel split."""

    operation: Operation
    record: UInt64Array
    """(old, new, side), shape (n, 3); of what is in force, new ones under their ids of today."""
    undone_by: int | None
    """The operation that took it back."""
    overlapped_by: tuple[int, ...]
    """Operations that split its fragments further; none if it is undone, or in force as it was."""


def _origin(graph: ChunkedGraph, operation: Operation) -> int:
    """The operation that a chain of undos and redos began with, as far as the log has it."""
    last = operation
    with suppress(NotFoundError):
        for last in chain(graph, operation):  # noqa: B007 - the last one that was found is the answer
            pass
    return last.operation_id


def effective_split(graph: ChunkedGraph, operation: Operation, record: UInt64Array) -> EffectiveSplit:
    """Follow undo and redo of an operation that split supervoxels; ``record`` is what it replaced."""
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
    """The redo of an operation that has split all that its undo had joined; None if there is none."""
    by = {successor.operation if successor.state is Whereabouts.SPLIT else None for successor in after}
    again = successors.operations.get(next(iter(by)) or 0) if len(by) == 1 else None
    if again is None or again.kind != "redo" or _origin(graph, again) != _origin(graph, operation):
        return None
    return again
