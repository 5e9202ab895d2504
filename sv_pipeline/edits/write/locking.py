"""The locks of one edit: taken all or none, renewed in the background, made indefinite, and released.

Every edit locks the roots that it changes. An edit that rewrites voxels then also locks the layer 2 chunks around them,
because it routes edges between pieces in these chunks, whichever object they belong to. Roots are always locked before
chunks, and an operation that holds chunks waits for nothing more, so there are no deadlocks.

A temporal lock expires. An indefinite lock does not, so it exists only while rows are being written. Both hold the id
of the operation, and only the newest cell counts: an operation that has lost a lock can neither write under it nor
release it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np

from sv_pipeline.backoff import Backoff
from sv_pipeline.edits.write.lock_conflicts import held_by_another
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.failpoints import reach, together
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.ownership import Ownership
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.table import keys as row_keys
from sv_pipeline.table import locks
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK
from sv_pipeline.table.held_locks import HeldLocks
from sv_pipeline.table.interface import CellMatch, ConditionalMutation, RowMutation, Table

__all__ = ["EditLocks", "LockPatience", "lock_roots"]


@dataclass(frozen=True)
class LockPatience:
    """How long an edit waits for an object that another operation holds."""

    seconds: float = 10.0
    """Time after which the edit is refused, in seconds."""
    pause: float = 0.05
    """Pause before the second attempt, in seconds; later pauses grow to one second."""


def lock_roots(
    table: Table,
    operation_id: int,
    find_roots: Callable[[], UInt64Array],
    expiry: timedelta,
    patience: LockPatience,
    *,
    own: Ownership | None = None,
    inherited: tuple[bytes, ...] | None = None,
) -> EditLocks:
    """Lock the latest roots of an edit.

    Parameters
    ----------
    find_roots
        Returns the current roots; called before each attempt, since they may have been replaced meanwhile.
    expiry
        Time after which a temporal lock expires unless it is renewed.
    own
        The process that works on the operation; checked together with the locks.
    inherited
        Rows that an earlier attempt at the operation has locked indefinitely; None if this is the first.

    Raises
    ------
    EditRefused
        If other operations hold the roots for longer than ``patience``. The message names the holder and since when.
    """
    held = EditLocks(table, operation_id, expiry, own=own, inherited=inherited)

    def wanted() -> list[_Wanted]:
        held.roots = np.unique(find_roots())
        return [_Wanted(key, f"root {root}") for root, key in zip(held.roots.tolist(), held.root_keys, strict=True)]

    _lock_when_free(held, wanted, locks.SUPERSEDED, patience)
    return held


@dataclass(frozen=True)
class _Wanted:
    """The key of a row to lock, and the name of the row in messages."""

    key: bytes
    name: str


def _lock_when_free(
    held: EditLocks, wanted: Callable[[], list[_Wanted]], guard: tuple[CellMatch, ...], patience: LockPatience
) -> None:
    """Lock all rows or none; raise EditRefused if that does not succeed within ``patience``."""
    deadline, backoff, tries = time.monotonic() + patience.seconds, Backoff(patience.pause, 1.0), 0
    while True:
        refused = _lock_all(held, wanted(), guard, at_once=not tries)
        if refused is None:
            return
        if time.monotonic() >= deadline:
            raise held_by_another(held.table, refused.key, refused.name, held.operation_id)
        tries += 1
        time.sleep(backoff.jittered(tries))


def _lock_all(held: EditLocks, rows: list[_Wanted], guard: tuple[CellMatch, ...], *, at_once: bool) -> _Wanted | None:
    """Try once to lock all rows or none; return the row that could not be locked, or None. Never waits.

    The first attempt asks for all rows at once, which takes one round trip. Later attempts lock them one after the
    other in the order of their keys: of several operations that compete, one gets the first row, and so all of them.
    """

    rows = sorted(rows, key=lambda row: row.key)
    taken: list[_Wanted] = []
    refused: _Wanted | None = None
    for some in [rows] if at_once else [[row] for row in rows]:
        try:
            answers = _lock(held, [row.key for row in some], guard)
        except BaseException:
            # Some may be locked although no answer came; they would stay so until their locks expire.
            with suppress(SvPipelineError):
                locks.unlock_all(held.table, [row.key for row in rows], held.operation_id)
            raise
        taken += [row for row, answer in zip(some, answers, strict=True) if answer]
        refused = next((row for row, answer in zip(some, answers, strict=True) if not answer), None)
        if refused is not None:
            break
    if refused is not None:
        locks.unlock_all(held.table, [row.key for row in taken], held.operation_id)
    return refused


def _lock(held: EditLocks, wanted: list[bytes], guard: tuple[CellMatch, ...]) -> list[bool]:
    """Lock each row by itself; return which of them the operation holds now."""
    table, operation_id = held.table, held.operation_id

    def has(key: bytes) -> bool:
        if held.inherited is not None and locks.relock(table, key, operation_id):
            return True
        # A first request may have succeeded although its answer was lost.
        return locks.holders(table, key) == (operation_id, None)

    for key in wanted:
        held.taken_at.pop(key, None)  # an earlier attempt may have had the lock and given it back
    now = time.time_ns() // 1_000_000
    answers = locks.lock_all(table, wanted, operation_id, held.expiry, guard=guard, now=now)
    held.taken_at.update((key, now) for key, answer in zip(wanted, answers, strict=True) if answer)
    return [answer or has(key) for key, answer in zip(wanted, answers, strict=True)]


@dataclass(eq=False)
class EditLocks(HeldLocks):
    """The locks that an edit holds; a thread renews them between ``__enter__`` and :meth:`release`."""

    roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Locked roots, ascending."""
    chunks: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Ids of the locked layer 2 chunks, ascending."""
    new_roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """New roots, which are written together with an indefinite lock; released with the other locks."""
    keep: bool = False
    """Whether to keep the locks on exit: an edit that fails while it is writing has to be recovered."""
    own: Ownership | None = None
    """The process that works on the operation; None if no other process can ever take it over."""
    inherited: tuple[bytes, ...] | None = None
    """Rows that an earlier attempt has locked indefinitely; released with the other locks."""
    taken_at: dict[bytes, int] = field(default_factory=dict)
    """Timestamps (ms) of the cells by which this attempt took locks; rows that it held already are not in it."""
    _indefinite: bool = False
    _released: bool = False

    def __exit__(self, *_: object) -> None:
        self._stop_renewing()
        if not self.keep:
            self.release()

    @property
    def operation_id(self) -> int:
        """Id of the operation that makes the edit."""
        return self.owner

    @property
    def root_keys(self) -> list[bytes]:
        """Keys of the rows of the roots."""
        return row_keys.node_keys(self.roots)

    @property
    def chunk_keys(self) -> list[bytes]:
        """Keys of the rows that hold the locks of chunks."""
        return [row_keys.chunk_lock_key(chunk) for chunk in self.chunks.tolist()]

    @property
    def keys(self) -> list[bytes]:
        """Keys of all rows that are locked."""
        return [*self.root_keys, *self.chunk_keys]

    def lock_chunks(self, chunks: UInt64Array, names: list[str], patience: LockPatience) -> None:
        """Lock further layer 2 chunks.

        Parameters
        ----------
        chunks
            Chunk ids, shape (n,); those that are locked already are skipped.
        names
            Name of each chunk in messages.

        Raises
        ------
        EditRefused
            If other operations hold them for longer than ``patience``. The message names the holder and since when.
        """
        new = np.flatnonzero(~np.isin(chunks, self.chunks))
        rows = [_Wanted(row_keys.chunk_lock_key(int(chunks[i])), names[i]) for i in new.tolist()]
        _lock_when_free(self, lambda: rows, (), patience)
        self.chunks = np.union1d(self.chunks, chunks)
        reach("chunks locked")

    def locked_at(self) -> int:
        """Return when the edit got its locks, in milliseconds since the epoch: those of chunks, if it has any.

        The table is read only for locks that the operation held already.

        The logical time of the edit is derived from it, so edits that share a chunk have their times in the order in
        which they hold it.
        """
        wanted = self.chunk_keys if len(self.chunks) else self.root_keys
        if all(key in self.taken_at for key in wanted):
            return min(self.taken_at[key] for key in wanted)
        rows = self.table.read_rows(wanted, [LOCK.key])
        mine = LOCK.encode(self.operation_id)
        times = [cell.timestamp for row in rows.values() for cell in LOCK.cells(row) if cell.value == mine]
        if not times:
            raise self._lost_error()
        return min(times)

    def check(self) -> None:
        """Raise OwnershipLostError unless the edit still holds its locks; reads the table only if that is in doubt."""
        self._check_ownership()
        in_doubt = time.monotonic() - self._renewed > self.expiry.total_seconds() / 2
        if self._lost or (in_doubt and not self._still_mine()):
            raise self._lost_error()

    def verify(self) -> None:
        """Read the table, and raise OwnershipLostError unless the edit still holds its locks."""
        self._check_ownership()
        if not self._still_mine():
            raise self._lost_error()

    def _check_ownership(self) -> None:
        """Raise OwnershipLostError if another process has taken the operation over.

        In that case the locks are kept: they hold the id of the operation, and the new owner needs them.
        """
        if self.own is None:
            return
        try:
            self.own.check()
        except OwnershipLostError:
            self.keep = self.own.successor is not None
            raise

    def make_indefinite(self, also: Sequence[RowMutation] = ()) -> None:
        """Add indefinite locks; this succeeds only while the temporal ones are held, so the rows are never unlocked.

        Parameters
        ----------
        also
            Changes of rows that are made at the same time, whether the locks are still held or not.
        """
        self._indefinite = True
        wanted = locks.indefinite_locks(self.keys, self.operation_id)
        changes: list[RowMutation | ConditionalMutation] = [*wanted, *also]
        answers = together("half locked", changes, self.table.at_once)
        for key, answer in zip(self.keys, answers[: len(wanted)], strict=True):
            if not answer and locks.holders(self.table, key) != (self.operation_id, self.operation_id):
                raise self._lost_error()

    def release(self, also: Sequence[RowMutation] = (), *, complete: bool = False) -> None:
        """Release the locks that the operation still holds; locks that others hold by now are left alone.

        Parameters
        ----------
        also
            Changes of rows that are made at the same time.
        complete
            Whether the edit is made, so that it holds all of them indefinitely.
        """
        self._stop_renewing()
        if self._released:
            return
        indefinite: set[bytes] = set()
        if self._indefinite:
            indefinite = {*self.keys, *row_keys.node_keys(self.new_roots), *(self.inherited or ())}
        if complete:
            unlocks = locks.full_unlocks(sorted(indefinite), self.operation_id)
        else:
            unlocks = locks.unlocks(self.keys, self.operation_id, indefinite=sorted(indefinite))
        changes: list[RowMutation | ConditionalMutation] = [*unlocks, *also]
        together("half unlocked", changes, self.table.at_once)
        self._released = True

    def _still_mine(self) -> bool:
        column = INDEFINITE_LOCK if self._indefinite else LOCK
        rows = self.table.read_rows(self.keys, [column.key], newest_only=True)
        return all(column.newest(rows.get(key)) == self.operation_id for key in self.keys)

    def _lost_error(self) -> OwnershipLostError:
        self._lost = True
        return OwnershipLostError(
            f"operation {self.operation_id} does not hold its locks any more: it took longer than "
            f"{self.expiry} without renewing them.",
            remedy="The edit has no effect.",
            repeat="Make the edit again.",
        )
