"""Delivers events to receivers, at least once and in order, and stores the position of each receiver durably.

The position of a receiver is one cell of the graph's table (``sv_pipeline:feed:sink:<name>``), which is replaced by
compare-and-set after the receiver has confirmed events. If a process dies in between, the next one sends these events
again; a receiver can recognise them by their ids. Only one process at a time delivers to a receiver: the row has a lock
that expires, and a process that was suspended for longer notices that it has lost the lock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from sv_pipeline.arguments import parse_seconds
from sv_pipeline.errors import CorruptionError, InputError, SvPipelineError
from sv_pipeline.event_receivers import Receiver, Start
from sv_pipeline.failpoints import reach
from sv_pipeline.feed.event import EditEvent, Message
from sv_pipeline.feed.journal import advance
from sv_pipeline.feed.reading import EVENTS_AT_ONCE, read_events
from sv_pipeline.feed.rows import Head
from sv_pipeline.feed.senders import Sender, sender_of
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.table import codecs, counters, keys, locks
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import CellMatch, ColumnKey, RowView, SetCell, Table

__all__ = ["Delivery", "FeedPosition", "deliver", "move_to", "next_events", "places"]

SINK: Column[Any] = Column(ColumnKey("1", b"sink"), codecs.JsonCodec())
PREFIX = b"sv_pipeline:feed:sink:"
LOCK_EXPIRY = timedelta(seconds=60)


@dataclass(frozen=True)
class FeedPosition:
    """The position of a receiver in the feed."""

    feed: str
    """Name of the feed that ``number`` belongs to."""
    number: int
    """Number of the last event that the receiver has confirmed; 0 for none."""
    error: str = ""
    """Why the last attempt failed; empty if it did not."""
    failing_since: float | None = None
    """Time since which attempts fail, in seconds since the epoch; None if the last attempt did not fail."""


@dataclass(frozen=True)
class Delivery:
    """The result of one attempt to deliver events."""

    receiver: str
    delivered: int = 0
    """Number of events that the receiver has confirmed."""
    behind: int = 0
    """Number of events that it has not confirmed yet."""
    error: str = ""
    """Why the receiver confirmed no more events; empty if it did not fail."""
    busy: bool = False
    """Whether another process is delivering to the receiver."""

    def __str__(self) -> str:
        if self.busy:
            return f"{self.receiver}: another process is delivering"
        said = f"{self.receiver}: {self.delivered} delivered, {self.behind} to go"
        return f"{said}; {self.error}" if self.error else said


def deliver(graph: ChunkedGraph, receiver: Receiver, *, seconds: float = 20.0) -> Delivery:
    """Deliver the events that a receiver has not confirmed yet.

    Parameters
    ----------
    receiver
        A webhook or a topic.
    seconds
        Time after which no further request is started, in seconds.

    Returns
    -------
    Delivery
        The result; it holds the error if the receiver failed.

    Raises
    ------
    ConfigError
        If no request can be made to the receiver, or the table is opened read-only.
    """
    deadline = time.monotonic() + parse_seconds(seconds, "time to deliver events")
    sender, table, key = sender_of(receiver), graph.table, _key(receiver.name)
    me = secrets.randbelow(1 << 62) + 1
    if not locks.lock(table, key, me, LOCK_EXPIRY, guard=()):
        return Delivery(receiver.name, busy=True)
    done = Delivery(receiver.name)
    try:
        while True:
            head = advance(table, seconds=max(0.0, deadline - time.monotonic()))
            place, stored = _registered(table, receiver, head)
            if place is None:
                return done  # a long log is still being read
            done = replace(done, behind=head.length - place.number)
            if not done.behind or time.monotonic() > deadline:
                return done
            for events in _in_requests(read_events(graph, place.number, head=head), sender.at_once):
                if not locks.renew_all(table, [key], me, guard=())[0]:
                    return replace(done, busy=True)
                reach("deliver")
                error = _error_of(sender, [event.message(receiver.format) for event in events])
                reach("delivered")
                after = _after(place, place.number if error else events[-1].number, error)
                if after != place and not _replace(table, key, stored, after):
                    return replace(done, busy=True)
                reach("delivery noted")
                if error:
                    return replace(done, error=error)
                done = replace(done, delivered=done.delivered + len(events), behind=head.length - after.number)
                place, stored = after, _encoded(after)
                if time.monotonic() > deadline:
                    return done
    finally:
        locks.unlock(table, key, me)


def next_events(
    graph: ChunkedGraph, known: Mapping[str, Any] | None, start: Start, limit: int = EVENTS_AT_ONCE
) -> tuple[list[EditEvent], dict[str, Any] | None]:
    """Return events for a receiver that stores its own position, and the position after them.

    Parameters
    ----------
    known
        The position that this function returned last; None the first time.
    start
        Where the receiver begins the first time, and after the graph was made again.

    Returns
    -------
    tuple
        Events, and the new position, which is None while a long log is still being read.
    """
    head = advance(graph.table)
    if known is None or known.get("feed") != head.feed:
        number = _first_number(graph.table, start, head)
        return [], None if number is None else {"feed": head.feed, "number": number}
    events = read_events(graph, int(known["number"]), limit, head=head)
    number = events[-1].number if events else int(known["number"])
    return events, {"feed": head.feed, "number": number}


# -- places -----------------------------------------------------------------------------------------------------------


def places(table: Table) -> dict[str, FeedPosition]:
    """Return the position of each receiver that events were delivered to, by name."""
    rows = table.scan([keys.prefix_range(PREFIX)], [SINK.key], newest_only=True)
    return {key.removeprefix(PREFIX).decode(): _decoded(key, row) for key, row in rows}


def move_to(table: Table, receiver: Receiver, number: int) -> FeedPosition:
    """Set the position of a receiver: back, to get events again, or forward, past an event that it refuses.

    Parameters
    ----------
    number
        Number of the event after which delivery continues.

    Raises
    ------
    InputError
        If the feed has no such event.
    ConfigError
        If the receiver is Dagster, whose sensor has its position in its cursor.
    """
    _ = sender_of(receiver)
    head, key = advance(table), _key(receiver.name)
    if not 0 <= number <= head.length:
        raise InputError(
            f"the edit feed of table {table.name!r} has no event {number}.", remedy=f"It has 1 to {head.length}."
        )
    while True:
        row = table.read_rows([key], [SINK.key], newest_only=True).get(key)
        place = FeedPosition(head.feed, number)
        if _replace(table, key, row[SINK.key][0].value if row else None, place):
            return place


def _registered(table: Table, receiver: Receiver, head: Head) -> tuple[FeedPosition | None, bytes]:
    """Return the position of a receiver and the value of its cell; a new receiver is registered."""
    key = _key(receiver.name)
    while True:
        row = table.read_rows([key], [SINK.key], newest_only=True).get(key)
        stored = row[SINK.key][0].value if row else None
        if row and stored is not None:
            place = _decoded(key, row)
            if place.feed == head.feed:
                return place, stored
        number = _first_number(table, receiver.start, head)
        if number is None:
            return None, b""
        _replace(table, key, stored, FeedPosition(head.feed, number))


def _first_number(table: Table, start: Start, head: Head) -> int | None:
    """Return the number after which a new receiver begins; None while a long log is still being read."""
    if start is Start.BEGINNING:
        return 0
    return head.length if head.next > counters.last_operation_id(table) else None


def _after(place: FeedPosition, number: int, error: str) -> FeedPosition:
    failing = (place.failing_since or time.time()) if error else None
    return FeedPosition(place.feed, number, error, failing)


def _error_of(sender: Sender, messages: list[Message]) -> str:
    """Send messages; return why the receiver has not confirmed them, or an empty string if it has."""
    try:
        sender.send(messages)
    except SvPipelineError as error:
        return str(error)
    return ""


def _in_requests(events: list[EditEvent], at_once: int) -> Iterator[list[EditEvent]]:
    return (events[i : i + at_once] for i in range(0, len(events), at_once))


def _replace(table: Table, key: bytes, stored: bytes | None, place: FeedPosition) -> bool:
    """Store the position of a receiver, unless another process has changed it; return whether it is stored."""
    cell = SetCell(SINK.key, _encoded(place), FIXED_TIME)
    if stored is None:
        table.check_and_mutate(key, [CellMatch(SINK.key)], if_unmatched=[cell])
    elif table.check_and_mutate(key, [CellMatch(SINK.key, stored)], if_matched=[cell]):
        return True
    row = table.read_rows([key], [SINK.key], newest_only=True).get(key)  # the answer may have been lost
    return row is not None and row[SINK.key][0].value == cell.value


def _encoded(place: FeedPosition) -> bytes:
    return SINK.encode(asdict(place))


def _decoded(key: bytes, row: RowView) -> FeedPosition:
    try:
        return FeedPosition(**SINK.newest(row))  # type: ignore[arg-type]
    except (CorruptionError, TypeError) as error:
        raise CorruptionError(
            f"the row {key.decode()!r} does not say how far a receiver of edit events is: {error}.",
            remedy="Delete that row: the receiver is then registered anew.",
        ) from error


def _key(name: str) -> bytes:
    return PREFIX + name.encode()
