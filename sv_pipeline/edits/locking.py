"""The root locks of one edit: taken all or none, kept alive in the background, made indefinite, given back.

A temporal lock expires; an indefinite one does not, so it is there only while rows are being written. Both hold the id
of the operation, and only the newest cell counts: who was taken over can neither write nor release what is another's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np

from sv_pipeline.edits.refusal import EditRefused, OwnershipLostError, Reason
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys, locks
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK, NEW_PARENTS
from sv_pipeline.table.interface import Table

__all__ = ["LockPatience", "RootLocks", "concurrently", "lock_roots"]

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

RENEWALS_PER_EXPIRY = 4
REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class LockPatience:
    """How long an edit waits for an object that another one holds."""

    seconds: float = 10.0
    """Then it is refused."""
    pause: float = 0.05
    """Before the second try; grows to a second."""


def concurrently(action: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """Results in the order of items; the first error is raised after all have ended."""
    if len(items) < 2:
        return [action(item) for item in items]
    with ThreadPoolExecutor(min(len(items), REQUESTS_AT_ONCE)) as pool:
        futures = [pool.submit(action, item) for item in items]
    return [future.result() for future in futures]


def lock_roots(
    table: Table,
    operation_id: int,
    find_roots: Callable[[], UInt64Array],
    expiry: timedelta,
    patience: LockPatience,
) -> RootLocks:
    """Lock the latest roots of an edit.

    Parameters
    ----------
    find_roots
        Looks the roots up anew; they may have been replaced since the last try.

    Raises
    ------
    EditRefused
        If others hold them for longer than ``patience``; says who, and since when.
    """
    deadline, pause = time.monotonic() + patience.seconds, patience.pause
    while True:
        held: list[int] = []
        refused = None
        for root in sorted(find_roots().tolist()):  # the same order for everybody
            if not _lock(table, root, operation_id, expiry):
                refused = root
                break
            held.append(root)
        owned = RootLocks(table, operation_id, np.array(held, np.uint64), expiry)
        if refused is None:
            return owned
        owned.release()
        if time.monotonic() >= deadline:
            raise _refusal(table, refused, operation_id)
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
        pause = min(2 * pause, 1.0)


def _lock(table: Table, root: int, operation_id: int, expiry: timedelta) -> bool:
    key = keys.node_key(root)
    if locks.lock(table, key, operation_id, expiry):
        return True
    # The answer to a first, lost request may have been yes.
    return locks.holders(table, key) == (operation_id, None)


def _refusal(table: Table, root: int, operation_id: int) -> EditRefused:
    key = keys.node_key(root)
    row = table.read_rows([key], [LOCK.key, INDEFINITE_LOCK.key, NEW_PARENTS.key], newest_only=True).get(key, {})
    if INDEFINITE_LOCK.key in row:
        holder, since = INDEFINITE_LOCK.newest(row), row[INDEFINITE_LOCK.key][0].timestamp
        how = f"is being written by operation {holder} since {_clock(since)}"
        remedy = "Try again in a moment; if that operation is not running any more, recover it."
    elif LOCK.key in row:
        holder, since = LOCK.newest(row), row[LOCK.key][0].timestamp
        how = f"is locked by operation {holder} since {_clock(since)}"
        remedy = "Try again in a moment; the lock of an operation that has died expires by itself."
    else:
        how, remedy = "is being edited all the time", "Try again in a moment."
    return EditRefused(Reason.LOCKED, f"root {root} {how}; operation {operation_id} gave up waiting.", remedy=remedy)


def _clock(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


@dataclass(eq=False)
class RootLocks:
    """Locks that an edit holds; renews them in a thread between ``__enter__`` and :meth:`release`."""

    table: Table
    operation_id: int
    roots: UInt64Array
    expiry: timedelta
    new_roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Roots that are born locked (indefinitely); released with the others."""
    keep: bool = False
    """Leave the locks where they are: the edit died while it was writing, and has to be recovered."""
    _indefinite: bool = False
    _lost: bool = False
    _released: bool = False
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _renewed: float = field(default_factory=time.monotonic)

    def __enter__(self) -> RootLocks:
        self._thread = threading.Thread(target=self._renew_on, name=f"locks of operation {self.operation_id}")
        self._thread.daemon = True
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_renewing()
        if not self.keep:
            self.release()

    @property
    def _keys(self) -> list[bytes]:
        return keys.node_keys(self.roots)

    def locked_at(self) -> int:
        """Time of the oldest of its lock cells, milliseconds: the logical time of the edit."""
        rows = self.table.read_rows(self._keys, [LOCK.key])
        mine = LOCK.encode(self.operation_id)
        times = [cell.timestamp for row in rows.values() for cell in LOCK.cells(row) if cell.value == mine]
        if not times:
            raise self._lost_error()
        return min(times)

    def check(self) -> None:
        """Raise OwnershipLostError unless the locks are surely its own; asks the table only when in doubt."""
        in_doubt = time.monotonic() - self._renewed > self.expiry.total_seconds() / 2
        if self._lost or (in_doubt and not self._still_mine()):
            raise self._lost_error()

    def verify(self) -> None:
        """Ask the table whether the locks are its own; OwnershipLostError if not."""
        if not self._still_mine():
            raise self._lost_error()

    def make_indefinite(self) -> None:
        """Add indefinite locks; they need the temporal ones, so nobody can have come in between."""
        self._indefinite = True

        def add(key: bytes) -> bool:
            if locks.lock_indefinitely(self.table, key, self.operation_id):
                return True
            return locks.holders(self.table, key) == (self.operation_id, self.operation_id)

        if not all(concurrently(add, self._keys)):
            raise self._lost_error()

    def release(self) -> None:
        """Give back what is its own; what is another's by now stays."""
        self._stop_renewing()
        if self._released:
            return
        mine = self.operation_id

        def unlock(key: bytes) -> None:
            locks.unlock(self.table, key, mine)

        def unlock_indefinitely(key: bytes) -> None:
            locks.unlock_indefinitely(self.table, key, mine)

        actions = [(unlock, key) for key in self._keys]
        if self._indefinite:
            actions += [(unlock_indefinitely, key) for key in [*self._keys, *keys.node_keys(self.new_roots)]]
        concurrently(lambda pair: pair[0](pair[1]), actions)
        self._released = True

    # -- renewal --------------------------------------------------------------------------------------------------

    def _renew_on(self) -> None:
        while not self._stop.wait(self.expiry.total_seconds() / RENEWALS_PER_EXPIRY):
            began = time.monotonic()
            try:
                # Its own roots are superseded near the end; the lock goes on until it is released.
                alive = [locks.renew(self.table, key, self.operation_id, guard=()) for key in self._keys]
            except SvPipelineError:
                log.warning("locks of operation %d could not be renewed", self.operation_id, exc_info=True)
                continue
            if not all(alive):
                self._lost = True
                log.error("operation %d lost its locks", self.operation_id)
                return
            self._renewed = began

    def _stop_renewing(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _still_mine(self) -> bool:
        column = INDEFINITE_LOCK if self._indefinite else LOCK
        rows = self.table.read_rows(self._keys, [column.key], newest_only=True)
        return all(column.newest(rows.get(key)) == self.operation_id for key in self._keys)

    def _lost_error(self) -> OwnershipLostError:
        self._lost = True
        return OwnershipLostError(
            f"operation {self.operation_id} does not hold the locks of its roots any more: it took longer than "
            f"{self.expiry} without renewing them.",
            remedy="Nothing of it counts; make the edit again.",
        )
