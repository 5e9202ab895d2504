"""Finds and releases indefinite locks of finished operations. No row lists them, so the whole table is scanned."""

from __future__ import annotations

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.log import find_operation, read_operations
from sv_pipeline.operations.unfinished import RecoveryProgress, Unfinished, read_unfinished
from sv_pipeline.table import locks
from sv_pipeline.table.columns import INDEFINITE_LOCK
from sv_pipeline.table.interface import RowKeyRange

__all__ = ["orphaned_locks", "release_orphans"]

_NO_ROW = "The log has no row of it, although it holds locks: nobody knows what it has written."
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)


def orphaned_locks(graph: ChunkedGraph) -> list[Unfinished]:
    """Return the finished operations that still hold rows, and those that the log does not have (``damage``)."""
    orphans = [i for i in _holders(graph) if read_unfinished(graph, i) is None]
    log = {one.operation_id: one for one in read_operations(graph, np.array(orphans, np.uint64))} if orphans else {}
    return [
        Unfinished(log.get(i), i, None, None, RecoveryProgress(), "orphan", damage="" if i in log else _NO_ROW)
        for i in orphans
    ]


def release_orphans(graph: ChunkedGraph, operation_id: int) -> int:
    """Release the locks of a finished operation; return how many there were.

    An operation that is unfinished, or that the log does not have, keeps its locks, since it may be half written.
    """
    operation_id = parse_operation(operation_id)
    if read_unfinished(graph, operation_id) is not None or find_operation(graph, operation_id) is None:
        return 0
    row_keys = _holders(graph).get(operation_id, [])
    return sum(locks.unlock_indefinitely(graph.table, key, operation_id) for key in row_keys)


def _holders(graph: ChunkedGraph) -> dict[int, list[bytes]]:
    held: dict[int, list[bytes]] = {}
    for key, row in graph.table.scan([EVERYTHING], [INDEFINITE_LOCK.key], newest_only=True):
        holder = INDEFINITE_LOCK.newest(row)
        if holder is not None:
            held.setdefault(holder, []).append(key)
    return dict(sorted(held.items()))
