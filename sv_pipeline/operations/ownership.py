"""Who works on an unfinished operation, and that it lives: one cell, changed by compare-and-set only.

Locks hold the id of the operation, which whoever recovers it has in common with whoever began it. So each attempt has a
token of its own. It stands, with a counter that a living owner increases every few seconds, in the *open row* of the
operation, which is there from its first moment until nothing of it is left to do::

    sv_pipeline:open:%020d    1:owner      "<token> <beats>"
                              1:request    options of the request that the log has no column for
                              1:identity   random, made with the operation, the same for all its owners
                              1:scope      what is locked and made: roots, new roots, chunks, generation, time
                              1:writes     every cell that the edit writes
                              1:recovery   how far a recovery has come, and why the last one failed

So the open rows are the list of what is unfinished, however long the log is. Clocks play no part: cells are of one
fixed time and replace each other, and an owner is dead if its cell did not change for `OBSERVED_BEATS` beats *as seen
by the observer*. Whoever takes over does so on the condition that the cell is still what it saw: then either the beat
of the owner or the take-over comes first, and the other one knows.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from sv_pipeline.errors import CorruptionError, SvPipelineError
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.table import keys
from sv_pipeline.table.interface import CellMatch, Change, ColumnKey, DeleteCells, RowView, SetCell, Table

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
"""So many beats must fail to come before somebody else takes over."""
DOUBTED_BEATS = 2
"""So many of its own beats an owner goes on without asking whether it still is one; less than the above."""
FIXED_TIME = 1
"""Milliseconds: time of all cells of open rows."""
OWNER = ColumnKey("1", b"owner")
OPEN_PREFIX = b"sv_pipeline:open:"
OPEN_ROWS = keys.prefix_range(OPEN_PREFIX)


def open_key(operation_id: int) -> bytes:
    """Key of the open row of an operation."""
    return OPEN_PREFIX + b"%020d" % operation_id


def beat_seconds() -> float:
    """Seconds between two beats."""
    return BEAT_SECONDS


class Owner(NamedTuple):
    """The owner cell."""

    token: str
    beats: int

    def encode(self) -> bytes:
        """Value of the cell."""
        return f"{self.token} {self.beats}".encode()


def owner_of(row: RowView | None) -> Owner | None:
    """The owner that an open row names."""
    cells = (row or {}).get(OWNER)
    if not cells:
        return None
    try:
        token, _, beats = cells[0].value.decode().rpartition(" ")
        return Owner(token, int(beats))
    except ValueError as error:
        raise CorruptionError(f"the owner of an unfinished operation cannot be read: {error}.") from error


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(eq=False)
class Ownership:
    """One attempt at an operation, from the owner's side. May be used by several threads."""

    table: Table
    operation_id: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beats: int = 0
    successor: Owner | None = None
    """Who has it now, once it is lost; None if nobody has: then it is finished."""
    _confirmed: float = field(default_factory=_now)
    _lost: bool = False
    _beating: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def key(self) -> bytes:
        """The open row."""
        return open_key(self.operation_id)

    @property
    def cell(self) -> SetCell:
        """The owner cell as it was last written."""
        return SetCell(OWNER, Owner(self.token, self.beats).encode(), FIXED_TIME)

    def check(self) -> None:
        """Raise OwnershipLostError if somebody has taken over; asks the table only if that can be."""
        if self._lost or _now() - self._confirmed > DOUBTED_BEATS * beat_seconds():
            self.verify()

    def verify(self) -> None:
        """Ask the table whether this is still the owner; OwnershipLostError if not."""
        began = _now()
        row = self.table.read_rows([self.key], [OWNER], newest_only=True).get(self.key)
        found = owner_of(row)
        if self._lost or found is None or found.token != self.token:
            raise self.lost_to(found)
        self._confirmed = began

    @property
    def is_mine(self) -> bool:
        """Whether the table says so."""
        try:
            self.verify()
        except OwnershipLostError:
            return False
        return True

    def change(self, changes: Sequence[Change]) -> None:
        """Change the open row, if it is still its own; OwnershipLostError if not."""
        with self._lock:
            self._change(changes)

    def end(self) -> None:
        """Nothing is left to do: remove the open row, if it is still its own."""
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
            self.beats = found.beats  # the answer to a beat was lost
        raise self.lost_to(self.successor)

    @contextmanager
    def beating(self) -> Iterator[Ownership]:
        """Show that the owner lives while the block runs."""
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
                log.error("%s", error)  # noqa: TRY400 - whoever works learns it at the next step
            except SvPipelineError:
                log.warning("operation %d could not show that it lives", self.operation_id, exc_info=True)

    def _beat(self) -> None:
        with self._lock:
            if self._lost:
                return
            before = self.beats
            self._change([SetCell(OWNER, Owner(self.token, before + 1).encode(), FIXED_TIME)])
            self.beats = max(self.beats, before + 1)

    def lost_to(self, found: Owner | None) -> OwnershipLostError:
        """The error of who is not the owner any more."""
        self._lost, self.successor = True, found
        who = "it was recovered" if found is None else f"{found.token!r} has taken it over"
        return OwnershipLostError(
            f"operation {self.operation_id} does not belong to {self.token!r} any more: {who} while this process did "
            "not show that it lives.",
            remedy="Nothing more is written here; see the operation's log for how it ended.",
        )
