"""Ledger entries for edits by other software, which changes voxels of mip 0 but does not know the ledger.

The edit feed lists every finished operation once, in a durable order. The table's row ``sv_pipeline:foreign`` stores
the position up to which the feed was read. It is written after the entries, so that a process which dies in between is
repeated and enters the same boxes. If there is nothing new, reading costs a few requests, whatever the log's length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.journal import advance
from sv_pipeline.feed.reading import EVENTS_AT_ONCE, read_events
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.pending import add_to_entry
from sv_pipeline.segmentation.fork.records import record_in
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.table import codecs
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, RowMutation, Table

__all__ = ["note_foreign_edits"]

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
    table, fork = dataset.existing_table, dataset.fork
    if table is None or table.read_only or not fork.exists() or fork.base_info().n_mips < 2:
        return ()
    deadline = time.monotonic() + SECONDS
    entered: list[int] = []
    while True:
        head = advance(table)
        number = _noted(table, head.feed)
        if number >= head.length:
            return tuple(entered)
        changed = [event for event in read_events(dataset.graph, number, head=head) if event.boxes]
        entered += _enter(fork, changed)
        stop = min(head.length, number + EVENTS_AT_ONCE)
        table.mutate([RowMutation(NOTED_ROW, [NOTED.set({"feed": head.feed, "number": stop})])])
        if time.monotonic() > deadline:
            return tuple(entered)


def _noted(table: Table, feed: str) -> int:
    found = NOTED.newest(table.read_rows([NOTED_ROW], [NOTED.key], newest_only=True).get(NOTED_ROW))
    # A feed of another name means that the table was made again.
    return int(found["number"]) if found and found.get("feed") == feed else 0


def _enter(fork: Fork, events: Sequence[EditEvent]) -> list[int]:
    store = fork.store()
    # Our own edits have a record in the fork, and committed their entries together with their voxels.
    foreign = [event for event in events if record_in(store.kv, event.operation_id) is None]
    if not foreign:
        return []

    def write() -> None:
        with store.transaction(repeatable_read=True) as transaction:
            for event in foreign:
                add_to_entry(store.kv.with_transaction(transaction), event.operation_id, event.boxes, since=event.time)

    retry_transport(write, what=f"noting edits of other software in the ledger of graph {fork.graph_id}", attempts=8)
    return [event.operation_id for event in foreign]
