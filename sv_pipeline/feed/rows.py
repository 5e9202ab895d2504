"""Reads and writes the rows in which a feed keeps its order, in the graph's own table; `journal` decides on the order.

::

    sv_pipeline:feed               1:head       {"feed", "next", "length", "tail"}, see `Head`
                                   1:turn       {"at", "span"}: range of late operations that the next look reads
    sv_pipeline:feed:entry:%020d   1:operation  operation with this number in the feed
    sv_pipeline:feed:place:%020d   1:number     number of this operation in the feed
    sv_pipeline:feed:wait:%020d    1:since      time when this operation was passed unfinished, in seconds
    sv_pipeline:feed:late:%020d    1:since      the same, for operations that are looked at in turn
    sv_pipeline:feed:sink:<name>   1:sink       position of a receiver, see `delivery`

The head alone decides which entries exist. It is replaced by compare-and-set, and contains the entries that were added
last, its *tail*. The rows of a tail are written before the head is replaced again, so a process that dies right after
it replaced the head loses nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sv_pipeline.errors import CorruptionError
from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.table import codecs, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import (
    CellMatch,
    ColumnKey,
    DeleteCells,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

__all__ = [
    "Head",
    "begin",
    "forget",
    "late_ones",
    "note_late",
    "note_waiting",
    "numbers_of",
    "operations_after",
    "read_head",
    "replace_head",
    "waiting_ones",
]

HEAD_ROW = b"sv_pipeline:feed"
ENTRY, PLACE = b"sv_pipeline:feed:entry:", b"sv_pipeline:feed:place:"
WAIT, LATE = b"sv_pipeline:feed:wait:", b"sv_pipeline:feed:late:"

FIRST_SPAN = 1_000
"""Number of operation ids that the first turn spans."""

HEAD: Column[Any] = Column(ColumnKey("1", b"head"), codecs.JsonCodec())
TURN: Column[Any] = Column(ColumnKey("1", b"turn"), codecs.JsonCodec())
OPERATION: Column[Any] = Column(ColumnKey("1", b"operation"), codecs.JsonCodec())
NUMBER: Column[Any] = Column(ColumnKey("1", b"number"), codecs.JsonCodec())
SINCE: Column[Any] = Column(ColumnKey("1", b"since"), codecs.JsonCodec())


# -- the head ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The state of a feed."""

    feed: str
    """Random name. A different name means that the table, and with it the feed, was made again."""
    next: int = 1
    """Id of the first operation in the log that was not looked at yet."""
    length: int = 0
    """Number of entries, which is also the number of the last entry."""
    tail: tuple[int, ...] = ()
    """Operations of the entries that were added last, in order."""
    stored: bytes = field(default=b"", compare=False, repr=False)
    """Value of the cell that was read."""

    def followed_by(self, operations: Sequence[int], following: int) -> Head:
        """Return the head with more entries, after a look at the log up to the operation before ``following``."""
        return Head(self.feed, following, self.length + len(operations), tuple(operations))

    @property
    def tail_numbers(self) -> dict[int, int]:
        """The number in the feed of each operation of the tail."""
        first = self.length - len(self.tail) + 1
        return {operation: first + i for i, operation in enumerate(self.tail)}

    def encode(self) -> bytes:
        """Return the value of the cell."""
        return HEAD.encode({"feed": self.feed, "next": self.next, "length": self.length, "tail": list(self.tail)})


def read_head(table: Table) -> Head | None:
    """Read the head of a feed; None if the feed was never begun."""
    row = table.read_rows([HEAD_ROW], [HEAD.key], newest_only=True).get(HEAD_ROW)
    if not row:
        return None
    try:
        value: Any = HEAD.newest(row)
        head = Head(str(value["feed"]), int(value["next"]), int(value["length"]), tuple(map(int, value["tail"])))
    except (CorruptionError, KeyError, TypeError, ValueError) as error:
        raise CorruptionError(
            f"the head of the edit feed in table {table.name!r} cannot be read: {error}.",
            remedy="Restore the row 'sv_pipeline:feed' from a backup; or delete all rows whose keys begin so: then the "
            "feed begins anew, and receivers get every event again.",
        ) from error
    return replace(head, stored=row[HEAD.key][0].value)


def begin(table: Table) -> Head:
    """Begin a feed, unless another process has begun it meanwhile; return its head."""
    fresh = Head(secrets.token_hex(8))
    cell = SetCell(HEAD.key, fresh.encode(), FIXED_TIME)
    table.check_and_mutate(HEAD_ROW, [CellMatch(HEAD.key)], if_unmatched=[cell])
    head = read_head(table)
    assert head is not None
    return head


def replace_head(table: Table, before: Head, after: Head) -> bool:
    """Replace the head, unless another process has done so; return whether it is ``after`` now.

    The rows of the tail of ``before`` are written first.
    """
    _write(table, [row for i, number in before.tail_numbers.items() for row in _entry(i, number)])
    cell = SetCell(HEAD.key, after.encode(), FIXED_TIME)
    if table.check_and_mutate(HEAD_ROW, [CellMatch(HEAD.key, before.stored)], if_matched=[cell]):
        return True
    found = read_head(table)  # a first request may have succeeded although its answer was lost
    return found is not None and found == after


def _entry(operation: int, number: int) -> list[RowMutation]:
    return [
        RowMutation(_key(ENTRY, number), [OPERATION.set(operation, FIXED_TIME)]),
        RowMutation(_key(PLACE, operation), [NUMBER.set(number, FIXED_TIME)]),
    ]


# -- entries ----------------------------------------------------------------------------------------------------------


def numbers_of(table: Table, head: Head, operations: Iterable[int]) -> dict[int, int]:
    """Return the number in the feed of each operation; operations that the feed does not have are left out."""
    wanted = {_key(PLACE, operation): operation for operation in operations}
    rows = table.read_rows(list(wanted), [NUMBER.key], newest_only=True) if wanted else {}
    stored = {wanted[key]: _whole(NUMBER, row) for key, row in rows.items()}
    tail = head.tail_numbers
    # A process that was suspended may write the rows of a tail late, but with the same values.
    return {i: tail.get(i, stored.get(i, 0)) for i in wanted.values() if i in tail or i in stored}


def operations_after(table: Table, head: Head, number: int, limit: int) -> list[tuple[int, int]]:
    """Return at most ``limit`` entries (number, operation) that follow the entry with a number, in order."""
    last = min(head.length, number + limit)
    stored = min(last, head.length - len(head.tail))
    found: dict[int, int] = {}
    if number < stored:
        rows = table.scan([RowKeyRange(_key(ENTRY, number + 1), _key(ENTRY, stored + 1))], newest_only=True)
        found = {int(key.removeprefix(ENTRY)): _whole(OPERATION, row) for key, row in rows}
    found |= {n: operation for operation, n in head.tail_numbers.items() if number < n <= last}
    missing = [n for n in range(number + 1, last + 1) if n not in found]
    if missing:
        raise CorruptionError(
            f"the edit feed in table {table.name!r} has lost its entry {missing[0]}.",
            remedy="Delete all rows whose keys begin with 'sv_pipeline:feed': then the feed begins anew.",
        )
    return [(n, found[n]) for n in range(number + 1, last + 1)]


# -- unfinished operations --------------------------------------------------------------------------------------------


def waiting_ones(table: Table) -> dict[int, float]:
    """Return the operations that each look reads, with the time since which they wait, in seconds."""
    return _listed(table.scan([keys.prefix_range(WAIT)], newest_only=True), WAIT)


def late_ones(table: Table, limit: int, last: int) -> dict[int, float]:
    """Return about ``limit`` operations of the late list, with the time since which they wait, in seconds.

    The operations are those in a range of ids, the *turn*, which moves on with each call and starts again after
    ``last``. The range grows where few operations are late and shrinks where more than ``limit`` are, so the number
    of rows that are read does not grow with the list.
    """
    row = table.read_rows([HEAD_ROW], [TURN.key], newest_only=True).get(HEAD_ROW)
    turn: dict[str, int] = TURN.newest(row) or {"at": 0, "span": FIRST_SPAN}
    at, span = int(turn["at"]), int(turn["span"])
    found = _listed(table.scan([RowKeyRange(_key(LATE, at), _key(LATE, at + span))], newest_only=True), LATE)
    following = {"at": at + span if at + span <= last else 0, "span": span}
    if len(found) > limit:
        following["span"] = max(1, span // 2)
    elif len(found) < max(1, limit // 4) and span <= last:
        following["span"] = 2 * span
    if following != turn:
        _write(table, [RowMutation(HEAD_ROW, [TURN.set(following, FIXED_TIME)])])
    return found


def note_waiting(table: Table, operations: dict[int, float]) -> None:
    """Put operations on the list of those that each look reads."""
    _write(table, [RowMutation(_key(WAIT, i), [SINCE.set(since, FIXED_TIME)]) for i, since in operations.items()])


def note_late(table: Table, operations: dict[int, float]) -> None:
    """Move operations from the list of those that each look reads to the list of those that are read in turn."""
    _write(table, [RowMutation(_key(LATE, i), [SINCE.set(since, FIXED_TIME)]) for i, since in operations.items()])
    _write(table, [RowMutation(_key(WAIT, i), [DeleteCells()]) for i in operations])


def forget(table: Table, operations: Iterable[int]) -> None:
    """Remove operations from both lists."""
    _write(table, [RowMutation(_key(of, i), [DeleteCells()]) for i in operations for of in (WAIT, LATE)])


def _listed(rows: Iterable[tuple[bytes, Any]], prefix: bytes) -> dict[int, float]:
    return {int(key.removeprefix(prefix)): float(SINCE.newest(row) or 0.0) for key, row in rows}


def _whole(column: Column[Any], row: RowView) -> int:
    value: Any = column.newest(row)
    return int(value)


def _write(table: Table, mutations: list[RowMutation]) -> None:
    if mutations:
        table.mutate(mutations)


def _key(prefix: bytes, number: int) -> bytes:
    return prefix + b"%020d" % number
