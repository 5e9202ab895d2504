"""The locks of one edit: taken all or none, kept alive in the background, made indefinite, given back.

Every edit locks the roots that it changes; one that rewrites voxels then also the layer 2 chunks around them, since
edges are routed between the pieces of neighbours, whoever's they are. Roots first, then chunks: nobody who holds chunks
waits for anything, so nobody waits in a circle.

A temporal lock expires; an indefinite one does not, so it is there only while rows are being written. Both hold the id
of the operation, and only the newest cell counts: who was taken over can neither write nor release what is another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np

from sv_pipeline.backoff import Backoff
from sv_pipeline.edits.write.lock_conflicts import held_by_another
from sv_pipeline.failpoints import reach
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.ownership import Ownership
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.table import keys as row_keys
from sv_pipeline.table import locks
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK
from sv_pipeline.table.held_locks import HeldLocks
from sv_pipeline.table.interface import CellMatch, Table

__all__ = ["EditLocks", "LockPatience", "lock_roots"]


@dataclass(frozen=True)
class LockPatience:
    """How long an edit waits for an object that another one holds."""

    seconds: float = 10.0
    """Then it is refused."""
    pause: float = 0.05
    """Before the second try; grows to a second."""


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
        Looks the roots up anew; they may have been replaced since the last try.
    own
        Who works on the operation: checked together with the locks.
    inherited
        Rows that an earlier attempt at the operation has locked indefinitely; None if this is the first.

    Raises
    ------
    EditRefused
        If others hold them for longer than ``patience``; says who, and since when.
    """
    held = EditLocks(table, operation_id, expiry, own=own, inherited=inherited)

    def wanted() -> list[_Wanted]:
        held.roots = np.unique(find_roots())
        return [_Wanted(key, f"root {root}") for root, key in zip(held.roots.tolist(), held.root_keys, strict=True)]

    _lock_when_free(held, wanted, locks.SUPERSEDED, patience)
    return held


@dataclass(frozen=True)
class _Wanted:
    """A row to lock, and what it is called."""

    key: bytes
    name: str


def _lock_when_free(
    held: EditLocks, wanted: Callable[[], list[_Wanted]], guard: tuple[CellMatch, ...], patience: LockPatience
) -> None:
    """Lock all rows, or none; raise EditRefused if that cannot be done for longer than ``patience``."""
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
    """Lock all rows or none; the one that could not be had. Never waits while it holds some.

    The first try is for all at once, in one round trip's time. Those who then compete take them one after the other
    in the order of their keys, so that one of them gets the first, and with it all.
    """

    rows = sorted(rows, key=lambda row: row.key)
    taken: list[_Wanted] = []
    refused: _Wanted | None = None
    for some in [rows] if at_once else [[row] for row in rows]:
        answers = _lock(held, [row.key for row in some], guard)
        taken += [row for row, answer in zip(some, answers, strict=True) if answer]
        refused = next((row for row, answer in zip(some, answers, strict=True) if not answer), None)
        if refused is not None:
            break
    if refused is not None:
        locks.unlock_all(held.table, [row.key for row in taken], held.operation_id)
    return refused


def _lock(held: EditLocks, wanted: list[bytes], guard: tuple[CellMatch, ...]) -> list[bool]:
    """Lock rows, each by itself; which of them it has now."""
    table, operation_id = held.table, held.operation_id

    def has(key: bytes) -> bool:
        if held.inherited is not None and locks.relock(table, key, operation_id):
            return True
        # The answer to a first, lost request may have been yes.
        return locks.holders(table, key) == (operation_id, None)

    answers = locks.lock_all(table, wanted, operation_id, held.expiry, guard=guard)
    return [answer or has(key) for key, answer in zip(wanted, answers, strict=True)]


@dataclass(eq=False)
class EditLocks(HeldLocks):
    """Locks that an edit holds; renewed in a thread between ``__enter__`` and :meth:`release`."""

    roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    chunks: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Layer 2 chunks, ascending."""
    new_roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Roots that are born locked (indefinitely); released with the others."""
    keep: bool = False
    """Leave the locks where they are: the edit died while it was writing, and has to be recovered."""
    own: Ownership | None = None
    """Who works on the operation; None = nobody else ever will."""
    inherited: tuple[bytes, ...] | None = None
    """Rows that an earlier attempt has locked indefinitely; released with the others."""
    _indefinite: bool = False
    _released: bool = False

    def __exit__(self, *_: object) -> None:
        self._stop_renewing()
        if not self.keep:
            self.release()

    @property
    def operation_id(self) -> int:
        """The operation that makes the edit."""
        return self.owner

    @property
    def root_keys(self) -> list[bytes]:
        """Rows of the roots."""
        return row_keys.node_keys(self.roots)

    @property
    def chunk_keys(self) -> list[bytes]:
        """Rows of the locks of chunks."""
        return [row_keys.chunk_lock_key(chunk) for chunk in self.chunks.tolist()]

    @property
    def keys(self) -> list[bytes]:
        """Rows that are locked."""
        return [*self.root_keys, *self.chunk_keys]

    def lock_chunks(self, chunks: UInt64Array, names: list[str], patience: LockPatience) -> None:
        """Lock layer 2 chunks as well, beside those that it holds already.

        Raises
        ------
        EditRefused
            If others hold them for longer than ``patience``; says who, and since when.
        """
        new = np.flatnonzero(~np.isin(chunks, self.chunks))
        rows = [_Wanted(row_keys.chunk_lock_key(int(chunks[i])), names[i]) for i in new.tolist()]
        _lock_when_free(self, lambda: rows, (), patience)
        self.chunks = np.union1d(self.chunks, chunks)
        reach("chunks locked")

    def locked_at(self) -> int:
        """Logical time of the edit, milliseconds: when it had its locks; of chunks, if it has any.

        So edits that share a chunk have their times in the order in which they hold it.
        """
        rows = self.table.read_rows(self.chunk_keys if len(self.chunks) else self.root_keys, [LOCK.key])
        mine = LOCK.encode(self.operation_id)
        times = [cell.timestamp for row in rows.values() for cell in LOCK.cells(row) if cell.value == mine]
        if not times:
            raise self._lost_error()
        return min(times)

    def check(self) -> None:
        """Raise OwnershipLostError unless the locks are surely its own; asks the table only when in doubt."""
        self._check_ownership()
        in_doubt = time.monotonic() - self._renewed > self.expiry.total_seconds() / 2
        if self._lost or (in_doubt and not self._still_mine()):
            raise self._lost_error()

    def verify(self) -> None:
        """Ask the table whether the locks are its own; OwnershipLostError if not."""
        self._check_ownership()
        if not self._still_mine():
            raise self._lost_error()

    def _check_ownership(self) -> None:
        """Whoever has taken the operation over needs the locks: they hold the same operation's id."""
        if self.own is None:
            return
        try:
            self.own.check()
        except OwnershipLostError:
            self.keep = self.own.successor is not None
            raise

    def make_indefinite(self) -> None:
        """Add indefinite locks; they need the temporal ones, so nobody can have come in between."""
        self._indefinite = True

        answers = locks.lock_all_indefinitely(self.table, self.keys, self.operation_id)
        for key, answer in zip(self.keys, answers, strict=True):
            if not answer and locks.holders(self.table, key) != (self.operation_id, self.operation_id):
                raise self._lost_error()

    def release(self) -> None:
        """Give back what is its own; what is another's by now stays."""
        self._stop_renewing()
        if self._released:
            return
        indefinite: set[bytes] = set()
        if self._indefinite:
            indefinite = {*self.keys, *row_keys.node_keys(self.new_roots), *(self.inherited or ())}
        locks.unlock_all(self.table, self.keys, self.operation_id, indefinite=sorted(indefinite))
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
            remedy="Nothing of it counts.",
            repeat="Make the edit again.",
        )
