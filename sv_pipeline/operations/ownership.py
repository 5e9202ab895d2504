"""The owner of an unfinished operation, and the proof that it lives: one cell, changed by compare-and-set only.

A lock holds the id of its operation, which does not distinguish the process that began the operation from one that
recovers it. Therefore each attempt has its own token. The token is stored in the *open row* of the operation, with a
counter that a living owner increases every few seconds (its *beats*). The open row exists from the first moment of the
operation until nothing of it is left to do::

    sv_pipeline:open:%020d    1:owner      "<token> <beats>"
                              1:request    options of the request that the log has no column for
                              1:identity   random, created with the operation, the same for all its owners
                              1:scope      what is locked and created: roots, new roots, chunks, generation, time
                              1:writes     every cell that the edit writes
                              1:recovery   how far a recovery has come, and why the last one failed

So the open rows are the list of unfinished operations, however long the log is. Clocks play no part: all cells have one
fixed timestamp and replace each other, and an owner is considered dead if its cell did not change for `OBSERVED_BEATS`
beats *as measured by the observer*. A take-over succeeds only if the cell is still the one that was observed. So either
the owner's next beat or the take-over comes first, and the other one fails and learns about it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from sv_pipeline.errors import CorruptionError, SvPipelineError
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.table import keys
from sv_pipeline.table.interface import (
    CellMatch,
    Change,
    ColumnKey,
    ConditionalMutation,
    DeleteCells,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

__all__ = [
    "FIXED_TIME",
    "OBSERVED_BEATS",
    "OPEN_ROWS",
    "OWNER",
    "Owner",
    "Ownership",
    "beat_seconds",
    "open_key",
    "owner_of",
]

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
OBSERVED_BEATS = 3
"""Number of beats that must be missing before another process takes over."""
DOUBTED_BEATS = 2
"""Number of its own beats for which an owner goes on without asking the table; less than `OBSERVED_BEATS`."""
FIXED_TIME = 1
"""Timestamp in milliseconds of all cells of open rows."""
OWNER = ColumnKey("1", b"owner")
OPEN_PREFIX = b"sv_pipeline:open:"
OPEN_ROWS = keys.prefix_range(OPEN_PREFIX)


def open_key(operation_id: int) -> bytes:
    """Return the key of the open row of an operation."""
    return OPEN_PREFIX + b"%020d" % operation_id


def beat_seconds() -> float:
    """Return the seconds between two beats."""
    return BEAT_SECONDS


class Owner(NamedTuple):
    """Content of the owner cell."""

    token: str
    beats: int

    def encode(self) -> bytes:
        """Encode the value of the cell."""
        return f"{self.token} {self.beats}".encode()


def owner_of(row: RowView | None) -> Owner | None:
    """Return the owner that an open row names, if any."""
    cells = (row or {}).get(OWNER)
    if not cells:
        return None
    try:
        token, _, beats = cells[0].value.decode().rpartition(" ")
        return Owner(token, int(beats))
    except ValueError as error:
        raise CorruptionError(f"the owner of an unfinished operation cannot be read: {error}.") from error


def _now() -> float:
    """Return seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(eq=False)
class Ownership:
    """One attempt at an operation, as its owner sees it. It may be used by several threads."""

    table: Table
    operation_id: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beats: int = 0
    successor: Owner | None = None
    """The owner after this one, once ownership is lost; None if there is none because the operation is finished."""
    _confirmed: float = field(default_factory=_now)
    _lost: bool = False
    _beating: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def key(self) -> bytes:
        """Key of the open row."""
        return open_key(self.operation_id)

    @property
    def cell(self) -> SetCell:
        """The owner cell as it was last written."""
        return SetCell(OWNER, Owner(self.token, self.beats).encode(), FIXED_TIME)

    def check(self) -> None:
        """Raise OwnershipLostError if another process has taken over; asks the table only if that is possible."""
        if self._lost or _now() - self._confirmed > DOUBTED_BEATS * beat_seconds():
            self.verify()

    def verify(self) -> None:
        """Ask the table whether this is still the owner; raise OwnershipLostError if not."""
        began = _now()
        row = self.table.read_rows([self.key], [OWNER], newest_only=True).get(self.key)
        found = owner_of(row)
        if self._lost or found is None or found.token != self.token:
            raise self.lost_to(found)
        self._confirmed = began

    @property
    def is_mine(self) -> bool:
        """Whether this is still the owner according to the table."""
        try:
            self.verify()
        except OwnershipLostError:
            return False
        return True

    def change(self, changes: Sequence[Change]) -> None:
        """Change the open row if it still belongs to this owner; raise OwnershipLostError if not."""
        with self._lock:
            self._change(changes)

    def change_with(
        self,
        changes: Sequence[Change],
        others: Sequence[RowMutation | ConditionalMutation],
        send: Callable[[Sequence[RowMutation | ConditionalMutation]], list[bool]],
    ) -> list[bool]:
        """Change the open row as :meth:`change` does, and other rows at the same time, whoever is the owner.

        Parameters
        ----------
        send
            Sends all of these changes and returns the answers in their order, as `Table.at_once` does.

        Returns
        -------
        list[bool]
            The answers to the other changes.

        Raises
        ------
        OwnershipLostError
            If the open row belongs to another owner; the other changes may be made nevertheless.
        """
        with self._lock:
            if self._lost:
                raise self.lost_to(self.successor)
            began = _now()
            mine = ConditionalMutation(self.key, [CellMatch(OWNER, self.cell.value)], if_matched=changes)
            answers = send([mine, *others])
            if answers[0]:
                self._confirmed = began
            else:
                self._change(changes)  # a beat or an answer was lost, or the operation
            return answers[1:]

    def end(self) -> None:
        """Remove the open row if it still belongs to this owner, because nothing is left to do."""
        with self._lock, suppress(OwnershipLostError):
            self._change([DeleteCells()])
            self._lost = True

    def _change(self, changes: Sequence[Change]) -> None:
        began = _now()
        while not self._lost:
            if self.table.check_and_mutate(self.key, [CellMatch(OWNER, self.cell.value)], if_matched=changes):
                self._confirmed = began
                return
            found = owner_of(self.table.read_rows([self.key], [OWNER], newest_only=True).get(self.key))
            if found is None or found.token != self.token:
                raise self.lost_to(found)
            self.beats = found.beats  # a beat was stored, but its confirmation was lost
        raise self.lost_to(self.successor)

    @contextmanager
    def beating(self) -> Iterator[Ownership]:
        """Increase the counter regularly while the block runs, to show that the owner lives."""
        if self._beating:
            yield self
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._beat_on, args=(stop,), name=f"beat of operation {self.operation_id}")
        thread.daemon = True
        self._beating = True
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
            self._beating = False

    def _beat_on(self, stop: threading.Event) -> None:
        while not stop.wait(beat_seconds()) and not self._lost:
            try:
                self._beat()
            except OwnershipLostError as error:
                log.error("%s", error)  # noqa: TRY400 - the worker learns it at its next step
            except SvPipelineError:
                log.warning("the beat of operation %d could not be stored", self.operation_id, exc_info=True)

    def _beat(self) -> None:
        with self._lock:
            if self._lost:
                return
            before = self.beats
            self._change([SetCell(OWNER, Owner(self.token, before + 1).encode(), FIXED_TIME)])
            self.beats = max(self.beats, before + 1)

    def lost_to(self, found: Owner | None) -> OwnershipLostError:
        """Return the error for an owner that has lost the operation."""
        self._lost, self.successor = True, found
        who = "it was recovered" if found is None else f"{found.token!r} has taken it over"
        return OwnershipLostError(
            f"operation {self.operation_id} no longer belongs to {self.token!r}: {who}, because this process did not "
            "show in time that it lives.",
            remedy="This process writes nothing more; see the operation's log for how it ended.",
        )
