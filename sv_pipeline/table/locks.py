"""Locks on single rows, temporal and indefinite, held by an operation id. Knows no set of roots, no order, no renewal.

A temporal lock is the newest cell of ``0:lock``: it is valid until it is older than the expiry. An indefinite lock is
the cell of ``0:indefinite_lock``: it is valid until it is deleted. The columns are those of PyChunkedGraph, whose
workers respect our locks. Unlike PyChunkedGraph, only the newest cell is checked. So a holder whose lock has expired
and was taken over can neither renew it, nor make it indefinite, nor release the lock of the new holder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK, NEW_PARENTS
from sv_pipeline.table.interface import CellMatch, ConditionalMutation, DeleteCells, Table

__all__ = [
    "SUPERSEDED",
    "full_unlocks",
    "holders",
    "indefinite_locks",
    "lock",
    "lock_all",
    "lock_all_indefinitely",
    "relock",
    "renew_all",
    "unlock",
    "unlock_all",
    "unlock_indefinitely",
    "unlocks",
]

SUPERSEDED = (CellMatch(NEW_PARENTS.key),)
"""Guard for rows of roots: a root that was replaced cannot be locked."""

_INDEFINITE = CellMatch(INDEFINITE_LOCK.key)


def lock(
    table: Table, key: bytes, operation_id: int, expiry: timedelta, *, guard: Sequence[CellMatch] = SUPERSEDED
) -> bool:
    """Take the temporal lock of a row; False if it has an unexpired or indefinite lock, or the guard matches.

    An operation that already holds the lock is refused too; it should renew it with :func:`renew_all`.
    """
    return lock_all(table, [key], operation_id, expiry, guard=guard)[0]


def lock_all(
    table: Table,
    keys: Sequence[bytes],
    operation_id: int,
    expiry: timedelta,
    *,
    guard: Sequence[CellMatch] = SUPERSEDED,
    now: int | None = None,
) -> list[bool]:
    """Apply :func:`lock` to several rows, independently, in about the time of one request.

    ``now`` is the timestamp of the locks, in milliseconds since the epoch; None means the clock of this process.
    """
    now = time.time_ns() // 1_000_000 if now is None else now
    unexpired = CellMatch(LOCK.key, since=now - int(expiry.total_seconds() * 1000))
    requests = [
        ConditionalMutation(key, [unexpired, _INDEFINITE, *guard], if_unmatched=[LOCK.set(operation_id, now)])
        for key in keys
    ]
    return [not held for held in table.check_and_mutate_many(requests)]


def renew_all(
    table: Table, keys: Sequence[bytes], operation_id: int, *, guard: Sequence[CellMatch] = SUPERSEDED
) -> list[bool]:
    """Restart temporal locks, each independently; False for each that is not held, or where the guard matches."""
    mine = CellMatch(LOCK.key, LOCK.encode(operation_id))
    return table.check_and_mutate_many(
        [ConditionalMutation(key, [mine], guard, if_matched=[LOCK.set(operation_id)]) for key in keys]
    )


def relock(table: Table, key: bytes, operation_id: int) -> bool:
    """Take the temporal lock of a row whose indefinite lock the operation holds; False if it does not hold that.

    Only a process that continues an operation may call this: locks distinguish operations, not processes.
    """
    mine = CellMatch(INDEFINITE_LOCK.key, INDEFINITE_LOCK.encode(operation_id))
    return table.check_and_mutate(key, [mine], if_matched=[DeleteCells(LOCK.key), LOCK.set(operation_id)])


def lock_all_indefinitely(
    table: Table, keys: Sequence[bytes], operation_id: int, *, guard: Sequence[CellMatch] = SUPERSEDED
) -> list[bool]:
    """Add indefinite locks, each independently, in about the time of one request.

    The result is False for each row without the temporal lock, with an indefinite one, or where the guard matches.
    """
    return table.check_and_mutate_many(indefinite_locks(keys, operation_id, guard=guard))


def indefinite_locks(
    keys: Sequence[bytes], operation_id: int, *, guard: Sequence[CellMatch] = SUPERSEDED
) -> list[ConditionalMutation]:
    """Return the requests of :func:`lock_all_indefinitely`, to be sent together with other changes."""
    mine, change = CellMatch(LOCK.key, LOCK.encode(operation_id)), [INDEFINITE_LOCK.set(operation_id)]
    return [ConditionalMutation(key, [mine], [_INDEFINITE, *guard], if_matched=change) for key in keys]


def unlock(table: Table, key: bytes, operation_id: int) -> bool:
    """Release the temporal lock, including older cells of it; False if the operation does not hold it."""
    return table.check_and_mutate_many([_unlock(key, operation_id)])[0]


def unlock_indefinitely(table: Table, key: bytes, operation_id: int) -> bool:
    """Release the indefinite lock; False if the operation does not hold it."""
    return table.check_and_mutate_many([_unlock_indefinitely(key, operation_id)])[0]


def unlock_all(table: Table, keys: Sequence[bytes], operation_id: int, *, indefinite: Sequence[bytes] = ()) -> None:
    """Release the temporal and indefinite locks that the operation holds, in about the time of one request."""
    table.check_and_mutate_many(unlocks(keys, operation_id, indefinite=indefinite))


def unlocks(keys: Sequence[bytes], operation_id: int, *, indefinite: Sequence[bytes] = ()) -> list[ConditionalMutation]:
    """Return the requests of :func:`unlock_all`, to be sent together with other changes."""
    requests = [_unlock(key, operation_id) for key in keys]
    return [*requests, *(_unlock_indefinitely(key, operation_id) for key in indefinite)]


def full_unlocks(keys: Sequence[bytes], operation_id: int) -> list[ConditionalMutation]:
    """Return requests that release both locks of rows whose indefinite lock the operation holds, one for each row.

    While it holds that, nobody else can have the temporal one.
    """
    mine = CellMatch(INDEFINITE_LOCK.key, INDEFINITE_LOCK.encode(operation_id))
    both = [DeleteCells(LOCK.key), DeleteCells(INDEFINITE_LOCK.key)]
    return [ConditionalMutation(key, [mine], if_matched=both) for key in keys]


def _unlock(key: bytes, operation_id: int) -> ConditionalMutation:
    mine = CellMatch(LOCK.key, LOCK.encode(operation_id))
    return ConditionalMutation(key, [mine], if_matched=[DeleteCells(LOCK.key)])


def _unlock_indefinitely(key: bytes, operation_id: int) -> ConditionalMutation:
    mine = CellMatch(INDEFINITE_LOCK.key, INDEFINITE_LOCK.encode(operation_id))
    return ConditionalMutation(key, [mine], if_matched=[DeleteCells(INDEFINITE_LOCK.key)])


def holders(table: Table, key: bytes) -> tuple[int | None, int | None]:
    """Return the operation ids of the newest temporal lock (which may have expired) and of the indefinite lock."""
    row = table.read_rows([key], [LOCK.key, INDEFINITE_LOCK.key], newest_only=True).get(key)
    return LOCK.newest(row), INDEFINITE_LOCK.newest(row)
