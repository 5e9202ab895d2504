"""How operations of other software stand: it keeps no open row, shows no heartbeat, and names no root that it locks.

| its log says | it holds | what it is |
| --- | --- | --- |
| CREATED, WRITE_STARTED | roots, or chunks of its scope, indefinitely | unfinished: its worker writes, or has died |
| EXCEPTION, in its own words | the same | unfinished |
| SUCCESS | the same | complete; its locks are left |
| the same, without a scope | roots and chunks | unfinished: the chunks that it holds are its scope |
| anything but SUCCESS | nothing, but cells of it are there | unfinished: a write failed, and it gave its locks back |
| anything but SUCCESS | nothing, and no cell of it is there | a request that was refused, or that is being planned |

Its worker may live, silently, as long as its newest lock is younger than locks can be: see `quiet_seconds`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import lineage
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.footprint import Footprint, box_around, read_footprint
from sv_pipeline.operations.log import Operation, OperationStatus, is_our_end, known_chain
from sv_pipeline.operations.watch_list import Notes, read_notes
from sv_pipeline.operations.writing import Scope
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK
from sv_pipeline.table.interface import RowView

__all__ = ["Standing", "edited_roots", "ended_by_us", "footprint_of", "quiet_seconds", "read_standings", "signature_of"]


@dataclass(frozen=True)
class Standing:
    """How one operation of other software stands."""

    scope: Scope | None
    """The locks that it holds, or that its rollback needs; None if it holds nothing and has left nothing."""
    objects: tuple[int, ...]
    """Roots of the objects that it edits, as of the moment before it."""
    signature: str
    """Changes whenever its row or one of its locks does. Locks of other operations do not change it."""
    moved_at: int
    """Time of the newest of its cells and locks, milliseconds."""
    unlocked: bool = False
    """Whether it has given its locks back, although cells of it are there."""


def quiet_seconds(graph: ChunkedGraph) -> float:
    """Seconds for which a worker of other software may show no sign of life: as long as its locks are valid."""
    return float(graph.meta.graph_config.ROOT_LOCK_EXPIRY.total_seconds())


def ended_by_us(operation: Operation) -> bool:
    """Whether our software has written that an operation ended without effect."""
    return operation.status is OperationStatus.EXCEPTION and is_our_end(operation.exception)


def read_standings(
    graph: ChunkedGraph, operations: Sequence[Operation], *, thorough: bool = False
) -> dict[int, Standing]:
    """How operations stand that have no open row, by id.

    Parameters
    ----------
    thorough
        Look for what an operation has written where its locks alone do not say; else what the watch list knows counts.
    """
    wanted = [one for one in operations if not ended_by_us(one) or columns.CHUNK_LOCK_SCOPE.key in one.row]
    notes = read_notes(graph.table, [one.operation_id for one in wanted]) if wanted else {}
    edited = {
        one.operation_id: notes[one.operation_id].roots if one.operation_id in notes else edited_roots(graph, one)
        for one in wanted
    }
    chunks = {one.operation_id: _chunks(graph, one) for one in wanted}
    lock_keys = {i: _lock_keys(edited[i], chunks[i]) for i in chunks}
    every = {key for some in lock_keys.values() for key in some}
    locks = graph.table.read_rows(every, [LOCK.key, INDEFINITE_LOCK.key])
    return {
        one.operation_id: _standing(
            graph,
            one,
            edited[one.operation_id],
            chunks[one.operation_id],
            {key: locks.get(key, {}) for key in lock_keys[one.operation_id]},
            notes.get(one.operation_id),
            thorough=thorough,
        )
        for one in wanted
    }


def _lock_keys(edited: Iterable[int], chunks: Iterable[int]) -> list[bytes]:
    return [*keys.node_keys(np.array([*edited], np.uint64)), *map(keys.chunk_lock_key, chunks)]


def _chunks(graph: ChunkedGraph, operation: Operation) -> list[int]:
    """Return the layer 2 chunks that an operation has to lock; without a scope, those that a split may have locked."""
    chunks = columns.CHUNK_LOCK_SCOPE.newest(operation.row)
    if chunks is not None or operation.is_complete:
        return [] if chunks is None else chunks.tolist()
    log = known_chain(graph, operation)
    box = box_around(graph, log) if any(one.kind == "split" for one in log) else None
    box = None if box is None else box.clip(graph.grid.bounds)
    if box is None or not box.volume:
        return []
    first, last = graph.grid.chunk_of(np.array([box.start, box.stop]) - [[0], [1]])
    every = np.stack(np.meshgrid(*map(np.arange, first, last + 1), indexing="ij"), axis=-1).reshape(-1, 3)
    found: list[int] = graph.layout.chunk_ids(2, every).tolist()
    return found


def _standing(
    graph: ChunkedGraph,
    operation: Operation,
    edited: tuple[int, ...],
    chunks: list[int],
    locks: dict[bytes, RowView],
    notes: Notes | None,
    *,
    thorough: bool,
) -> Standing:
    mine = operation.operation_id
    if columns.CHUNK_LOCK_SCOPE.key not in operation.row:
        lock_keys = {c: keys.chunk_lock_key(c) for c in chunks}
        chunks = [c for c in chunks if INDEFINITE_LOCK.newest(locks[lock_keys[c]]) == mine]
        free = {*lock_keys.values()} - {lock_keys[c] for c in chunks}
        locks = {key: row for key, row in locks.items() if key not in free}
    held = tuple(r for r in edited if INDEFINITE_LOCK.newest(locks[keys.node_key(r)]) == mine)
    its_cells = [cell for cells in operation.row.values() for cell in cells]
    its_locks = [
        (key, column.key, cell)
        for key in sorted(locks)
        for column in (LOCK, INDEFINITE_LOCK)
        for cell in column.cells(locks[key])
        if cell.value == column.encode(mine)
    ]
    moved_at = max((cell.timestamp for cell in (*its_cells, *(cell for *_, cell in its_locks))), default=0)
    signature = signature_of([*sorted(operation.row.items()), *its_locks])
    at = logical_time(operation) or 0
    done = operation.is_complete
    known = Standing(None, edited, signature, moved_at)
    if (held or chunks) and len(held) < len(edited) and thorough and not done:
        # Its worker may have died between two locks; or somebody has removed one since, and all have to be locked.
        held = edited if footprint_of(graph, operation, edited).cells else held
    if held or chunks:
        return Standing(Scope(at, held, (), tuple(chunks)), edited, signature, moved_at)
    if done or not at:
        return known
    settled = time.time() - moved_at / 1000 > quiet_seconds(graph)
    written = notes.written if notes is not None else None
    if not written and thorough and settled:  # a worker that planned for long may have written since that was noted
        written = footprint_of(graph, operation, edited).removable
    if not written:
        return known
    return Standing(Scope(at, edited, (), ()), edited, signature, moved_at, unlocked=True)


def signature_of(cells: Iterable[Any]) -> str:
    """Return a short text that changes whenever the cells do."""
    return hashlib.sha256(repr([*cells]).encode()).hexdigest()[:16]


def logical_time(operation: Operation) -> int | None:
    """Milliseconds: the time of all cells of an operation, as its log says; None if it does not."""
    at = operation.timestamp
    return None if at is None else int(at.timestamp() * 1000 + 0.5)


# -- which objects it edits -------------------------------------------------------------------------------------------


def edited_roots(graph: ChunkedGraph, operation: Operation) -> tuple[int, ...]:
    """Roots of the objects that an operation edits, as of the moment before it, and those that it has locked since.

    Its log names supervoxels only. Between two of its locks, another edit may have replaced the root of the second.
    """
    if operation.is_complete and len(operation.roots):
        rows = graph.table.read_rows(keys.node_keys(operation.roots), [columns.FORMER_PARENTS.key], newest_only=True)
        found = (columns.FORMER_PARENTS.newest(row) for row in rows.values())
        return tuple(np.unique(np.concatenate([np.zeros(0, np.uint64), *(f for f in found if f is not None)])).tolist())
    supervoxels = _points(known_chain(graph, operation))
    at = logical_time(operation)
    before = roots(graph, supervoxels, at=None if at is None else at - 1, missing_ok=True)
    before = np.unique(before[before > 0])
    related = lineage(graph, before, past=at is None).edges
    every = np.unique(np.concatenate([before, related.ravel()]))
    rows = graph.table.read_rows(keys.node_keys(every), [LOCK.key, INDEFINITE_LOCK.key], newest_only=True)
    mine = operation.operation_id
    locked = {int(key) for key, row in rows.items() if mine in (LOCK.newest(row), INDEFINITE_LOCK.newest(row))}
    return tuple(sorted(locked if at is None else {*before.tolist(), *locked}))


def _points(operations: Iterable[Operation]) -> UInt64Array:
    named = (columns.SOURCE_IDS, columns.SINK_IDS, columns.ADDED_EDGES, columns.REMOVED_EDGES)
    found = [value.ravel() for one in operations for column in named if (value := column.newest(one.row)) is not None]
    every = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))
    return np.asarray(every[every >> np.uint64(56) == 1], np.uint64)


def footprint_of(graph: ChunkedGraph, operation: Operation, edited: Iterable[int]) -> Footprint:
    """The cells that an operation has left."""
    at, edited = logical_time(operation), [*edited]
    if at is None or not edited:
        return Footprint()
    return read_footprint(
        graph,
        operation.operation_id,
        at,
        edited,
        box=box_around(graph, known_chain(graph, operation)),
        users_edges=columns.ADDED_EDGES.newest(operation.row),
    )
