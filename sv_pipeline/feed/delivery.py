"""Delivering events to receivers: at least once, in their order, and how far each receiver is, durably.

What is known of a receiver is one cell of the graph's table (``sv_pipeline:feed:sink:<name>``), replaced by
compare-and-set. It is moved on after the receiver has taken events. A sender that dies in between leaves it behind, and
the next one sends these events again: the id of an event tells that it is the same. One sender at a time works for a
receiver: the row has a lock that expires, and a sender that was stopped for longer finds that it lost it.
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
    """How far a receiver is."""

    feed: str
    """Name of the feed that ``number`` belongs to."""
    number: int
    """The last event that it has taken; 0 for none."""
    error: str = ""
    """Why it took no more at the last attempt."""
    failing_since: float | None = None
    """Seconds since the epoch; None if the last attempt did not fail."""


@dataclass(frozen=True)
class Delivery:
    """What one attempt to deliver has done."""

    receiver: str
    delivered: int = 0
    """Number of events that the receiver has taken."""
    behind: int = 0
    """Number of events that it has not taken yet."""
    error: str = ""
    """Why it took no more."""
    busy: bool = False
    """Whether another process is delivering to it."""

    def __str__(self) -> str:
        if self.busy:
            return f"{self.receiver}: another process is delivering"
        said = f"{self.receiver}: {self.delivered} delivered, {self.behind} to go"
        return f"{said}; {self.error}" if self.error else said


def deliver(graph: ChunkedGraph, receiver: Receiver, *, seconds: float = 20.0) -> Delivery:
    """Deliver what a receiver has not taken yet.

    Parameters
    ----------
    receiver
        A webhook, or a topic.
    seconds
        After which no other request is begun.

    Returns
    -------
    Delivery
        With an error, if the receiver took no more.

    Raises
    ------
    ConfigError
        If the receiver cannot be asked at all, or the table is opened read-only.
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
                return done  # a long log is being looked through
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
    """Events for a receiver that keeps its own place, and the place after them.

    Parameters
    ----------
    known
        What this function gave last; None at the first time.
    start
        Where a receiver begins at its first time, and when the graph was made again.

    Returns
    -------
    tuple
        The place is None as long as a long log is being looked through.
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
    """How far each receiver is that events were delivered to, by name."""
    rows = table.scan([keys.prefix_range(PREFIX)], [SINK.key], newest_only=True)
    return {key.removeprefix(PREFIX).decode(): _decoded(key, row) for key, row in rows}


def move_to(table: Table, receiver: Receiver, number: int) -> FeedPosition:
    """Let a receiver go on after the event with a number: back, to have events again; or on, past one it refuses.

    Raises
    ------
    InputError
        If the feed has no such event.
    """
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
    """How far a receiver is, and the cell that says so; it is registered if it is not known yet."""
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
    """The number after which a new receiver begins; None as long as a long log is being looked through."""
    if start is Start.BEGINNING:
        return 0
    return head.length if head.next > counters.last_operation_id(table) else None


def _after(place: FeedPosition, number: int, error: str) -> FeedPosition:
    failing = (place.failing_since or time.time()) if error else None
    return FeedPosition(place.feed, number, error, failing)


def _error_of(sender: Sender, messages: list[Message]) -> str:
    """Why a receiver does not take messages; empty if it does."""
    try:
        sender.send(messages)
    except SvPipelineError as error:
        return str(error)
    return ""


def _in_requests(events: list[EditEvent], at_once: int) -> Iterator[list[EditEvent]]:
    return (events[i : i + at_once] for i in range(0, len(events), at_once))


def _replace(table: Table, key: bytes, stored: bytes | None, place: FeedPosition) -> bool:
    """Note how far a receiver is, unless another process has noted something; whether it is noted."""
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
