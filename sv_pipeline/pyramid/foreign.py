"""Ledger entries for edits by other software, which changes voxels of mip 0 but does not know the ledger.

The edit feed lists every finished operation once, in a durable order. The table's row ``sv_pipeline:foreign`` stores
the position up to which the feed was read. It is written after the entries, so that a process which dies in between is
repeated and enters the same boxes. If there is nothing new, reading costs a few requests, whatever the log's length.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from sv_pipeline.failpoints import reach
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.journal import advance
from sv_pipeline.feed.reading import EVENTS_AT_ONCE, read_events
from sv_pipeline.feed.rows import read_head
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.pending import add_to_entry
from sv_pipeline.segmentation.fork.records import record_in
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.table import codecs
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, RowMutation, Table

__all__ = ["note_foreign_edits", "note_foreign_edits_of"]

_logger = logging.getLogger(__name__)

NOTED_ROW = b"sv_pipeline:foreign"
NOTED: Column[Any] = Column(ColumnKey("1", b"noted"), codecs.JsonCodec())
SECONDS = 10.0
"""Maximum time for reading a long feed, in seconds; the next call continues from there."""


def note_foreign_edits(dataset: Dataset) -> tuple[int, ...]:
    """Enter the boxes of other software's supervoxel splits in the ledger of coarser mips.

    Returns
    -------
    tuple[int, ...]
        The operations that this call has entered. It is empty if there is no table, no fork or no coarser mip, or if
        the table is open read-only.
    """
    table = dataset.existing_table
    if table is None or table.read_only:
        return ()
    return _note(table, dataset.fork, lambda: dataset.graph, enter=True, seconds=SECONDS)


def note_foreign_edits_of(graph: ChunkedGraph, *, enter: bool = True) -> tuple[int, ...]:
    """Do the same as `note_foreign_edits` for an open graph, to the end of its log.

    Parameters
    ----------
    enter
        Whether to enter the boxes; otherwise the operations are only returned. Their order is stored in the edit feed
        all the same, unless the table is open read-only.
    """
    if graph.table.read_only and (enter or read_head(graph.table) is None):
        return ()
    return _note(graph.table, graph.fork, lambda: graph, enter=enter, seconds=float("inf"))


def _note(
    table: Table, fork: Fork, open_graph: Callable[[], ChunkedGraph], *, enter: bool, seconds: float
) -> tuple[int, ...]:
    if not fork.exists() or fork.base_info().n_mips < 2:
        return ()
    deadline = time.monotonic() + seconds
    entered: list[int] = []
    head = advance(table)
    number = _noted(table, head.feed)
    while number < head.length:
        changed = _with_boxes(_foreign(fork, read_events(open_graph(), number, head=head)))
        entered += [event.operation_id for event in changed]
        number = min(head.length, number + EVENTS_AT_ONCE)
        if enter:
            _enter(fork, changed)
            reach("foreign edits entered")
            table.mutate([RowMutation(NOTED_ROW, [NOTED.set({"feed": head.feed, "number": number})])])
        if time.monotonic() > deadline:
            break
        head = advance(table)
    return tuple(entered)


def _noted(table: Table, feed: str) -> int:
    found = NOTED.newest(table.read_rows([NOTED_ROW], [NOTED.key], newest_only=True).get(NOTED_ROW))
    # A feed of another name means that the table was made again.
    return int(found["number"]) if found and found.get("feed") == feed else 0


def _foreign(fork: Fork, events: Sequence[EditEvent]) -> list[EditEvent]:
    """Return the events of other software: our own edits have a record in the fork, and entries from their commit."""
    changed = [event for event in events if event.boxes or "boxes" in event.unreadable]
    store = fork.store()
    return [event for event in changed if record_in(store.kv, event.operation_id) is None]


def _with_boxes(events: Sequence[EditEvent]) -> list[EditEvent]:
    """Return the events whose boxes are known; a warning names the others, since one damaged row must not stop all."""
    for event in events:
        if not event.boxes:
            _logger.warning(
                "operation %d of graph %s may have changed voxels, but damaged rows hide where (%s): coarser mips may "
                "not show it. 'sv-pipeline verify' finds such places, and 'sv-pipeline downsample --all' mends them.",
                event.operation_id,
                event.graph_id,
                ", ".join(event.unreadable),
            )
    return [event for event in events if event.boxes]


def _enter(fork: Fork, events: Sequence[EditEvent]) -> None:
    if not events:
        return
    store = fork.store()

    now = int(time.time() * 1000)

    def write() -> None:
        with store.transaction(repeatable_read=True) as transaction:
            for event in events:
                since = event.time or now  # the time of a damaged row is not known
                add_to_entry(store.kv.with_transaction(transaction), event.operation_id, event.boxes, since=since)

    retry_transport(write, what=f"noting edits of other software in the ledger of graph {fork.graph_id}", attempts=8)
