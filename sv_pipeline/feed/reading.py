"""Reads the events of a feed in batches: the entries of the journal, and what their operations have changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sv_pipeline.errors import CorruptionError, NotFoundError
from sv_pipeline.feed import rows
from sv_pipeline.feed.changes import Owned, made_layer2, replaced_layer2, replaced_roots, replaced_supervoxels
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.journal import advance, current_head, readable_time
from sv_pipeline.feed.rows import Head
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, about, kind_of, operation_of
from sv_pipeline.operations.writing import SUPERVOXELS, own_key, read_still_one_object
from sv_pipeline.segmentation.fork.pending import read_entries
from sv_pipeline.segmentation.fork.records import pending_key, record_in
from sv_pipeline.table import columns, keys
from sv_pipeline.table.counters import last_operation_id
from sv_pipeline.table.interface import RowView

__all__ = ["EVENTS_AT_ONCE", "events_after", "latest_number", "number_after", "read_events"]

EVENTS_AT_ONCE = 50
_NONE = np.zeros((0, 2), np.uint64)
_CELLS: list[tuple[columns.Column[Any], str]] = [
    (columns.OPERATION_TIMESTAMP, "time"),
    (columns.ROOTS, "new_root_ids"),
    (columns.UNDO_OPERATION_ID, "about"),
    (columns.REDO_OPERATION_ID, "about"),
    (columns.SOURCE_COORDINATES, "source"),
    (columns.SINK_COORDINATES, "sink"),
]
"""Cells of the log that events show, and the names of the fields that show them."""
Answer = TypeVar("Answer")


def number_after(graph: ChunkedGraph, operation_id: int) -> int:
    """Return the number of an operation in the feed, to read on after it; 0 for operation 0.

    Raises
    ------
    NotFoundError
        If the feed does not have the operation.
    """
    if operation_id == 0:
        return 0
    head = advance(graph.table)
    found = rows.numbers_of(graph.table, head, [operation_id])
    if operation_id not in found:
        raise NotFoundError(
            f"the edit feed of graph {graph.graph_id!r} does not have operation {operation_id}: it was refused, has "
            "not ended, or was never begun.",
            remedy=f"Name the operation of an event; 'sv-pipeline events {graph.graph_id}' lists them.",
        )
    return found[operation_id]


def latest_number(graph: ChunkedGraph) -> int:
    """Read the log to its end, and return the number of the last event in the feed."""
    while True:
        head = advance(graph.table)
        if head.next > last_operation_id(graph.table):
            return head.length


def read_events(
    graph: ChunkedGraph, number: int, limit: int = EVENTS_AT_ONCE, *, head: Head | None = None
) -> list[EditEvent]:
    """Read the events that follow the one with a number, in order.

    Parameters
    ----------
    limit
        Largest number of events; one batch of requests reads all of them.
    head
        Head of the feed, if the caller has just read it.
    """
    head = head or current_head(graph.table)
    entries = _entries(graph, rows.operations_after(graph.table, head, number, limit))
    if not entries:
        return []
    try:
        return _events(graph, head.feed, entries)
    except CorruptionError:
        # The row of a node is damaged. It must not stop the feed: events are read one by one, as far as they can be.
        return [event for entry in entries for event in _events(graph, head.feed, [entry], partly=True)]


class _Entry(NamedTuple):
    """An entry of the journal, and the row of its operation in the log."""

    number: int
    operation: Operation
    """The operation, without the cells that cannot be decoded, and without its status."""
    time: int | None
    """Logical time in milliseconds since the epoch; None if it cannot be read."""
    unreadable: set[str]
    """Fields of the event that cannot be read."""


def _entries(graph: ChunkedGraph, numbered: Sequence[tuple[int, int]]) -> list[_Entry]:
    log = graph.table.read_rows(keys.node_keys(np.array([i for _, i in numbered], np.uint64)))
    return [_entry(number, i, log.get(keys.node_key(i), {})) for number, i in numbered]


def _entry(number: int, operation_id: int, row: RowView) -> _Entry:
    damaged = {column.key: name for column, name in _CELLS if column.key in row and column.readable(row) is None}
    unneeded = {*damaged, columns.OPERATION_STATUS.key}
    operation = operation_of(operation_id, {key: cells for key, cells in row.items() if key not in unneeded})
    at = readable_time(row)
    unreadable = set(damaged.values()) | ({"time"} if at is None else set())
    if columns.ROOTS.readable(row) is None:
        unreadable |= {"new_root_ids", "old_root_ids", "new_lvl2_ids"}
    return _Entry(number, replace(operation, kind=kind_of(row)), at, unreadable)


def _events(graph: ChunkedGraph, feed: str, entries: Sequence[_Entry], *, partly: bool = False) -> list[EditEvent]:
    """Read what operations have changed.

    Parameters
    ----------
    partly
        Whether to leave out what cannot be read, for one entry only; by default CorruptionError is raised.
    """
    unreadable = [set(entry.unreadable) for entry in entries]

    def read(names: set[str], reading: Callable[[], Answer], nothing: Answer) -> Answer:
        try:
            return reading()
        except CorruptionError:
            if not partly:
                raise
            unreadable[0].update(names)
            return nothing

    operations = [entry.operation for entry in entries]
    new_roots, none = Owned.of([operation.roots for operation in operations]), Owned.of([])
    old_roots = read({"old_root_ids"}, lambda: replaced_roots(graph, new_roots), none)
    made = read({"new_lvl2_ids"}, lambda: made_layer2(graph, new_roots), none)
    gone = read({"old_lvl2_ids"}, lambda: replaced_layer2(graph, _distinct(old_roots)), none)
    pairs = read({"replaced_supervoxels"}, lambda: _supervoxels(graph, operations, made), [_NONE for _ in operations])
    no_boxes: tuple[dict[int, tuple[Box, ...]], set[int]] = ({}, set())
    boxes, behind = read({"boxes", "coarser_mips_behind"}, lambda: _voxels(graph, operations, pairs), no_boxes)
    ids = [operation.operation_id for operation in operations]
    still = read({"still_one_object"}, lambda: read_still_one_object(graph.table, ids), set[int]())
    return [
        EditEvent(
            feed=feed,
            number=entry.number,
            graph_id=graph.graph_id,
            table=graph.table.name,
            operation_id=operation.operation_id,
            kind=operation.kind,
            about=about(operation) or 0,
            user=operation.user or "",
            time=entry.time or 0,
            old_roots=old_roots.of_owner(i),
            new_roots=np.unique(operation.roots),
            old_layer2=gone.of_owner(i),
            new_layer2=made.of_owner(i),
            supervoxels=pairs[i],
            boxes=boxes.get(operation.operation_id, ()),
            coarser_mips_behind=operation.operation_id in behind,
            still_one_object=operation.operation_id in still,
            source=_points(columns.SOURCE_COORDINATES, operation),
            sink=_points(columns.SINK_COORDINATES, operation),
            unreadable=_with_derived(unreadable[i], operation, pairs[i]),
        )
        for i, (entry, operation) in enumerate(zip(entries, operations, strict=True))
    ]


def _with_derived(unreadable: set[str], operation: Operation, pairs: UInt64Array) -> tuple[str, ...]:
    """Return the fields that cannot be read, with those that are derived from them, in alphabetical order."""
    found = set(unreadable)
    if "old_root_ids" in found:
        found.add("old_lvl2_ids")
    if "new_lvl2_ids" in found and operation.kind in ("split", "unknown") and not len(pairs):
        found.add("replaced_supervoxels")
    if "replaced_supervoxels" in found:
        found |= {"boxes", "coarser_mips_behind"}
    return tuple(sorted(found))


def events_after(
    graph: ChunkedGraph, number: int, *, follow: bool = False, interval: float = 1.0
) -> Iterator[EditEvent]:
    """Yield all events that follow the one with a number, read batch by batch.

    Parameters
    ----------
    follow
        Whether to wait for more events, for ever.
    interval
        Time between two looks at the log while there is nothing new, in seconds.
    """
    while True:
        head = advance(graph.table)
        while number < head.length:
            found = read_events(graph, number, head=head)
            yield from found
            number = min(head.length, number + EVENTS_AT_ONCE)
        if head.next <= last_operation_id(graph.table):
            continue  # a long log is looked through step by step
        if not follow:
            return
        time.sleep(interval)


def _distinct(found: Owned) -> Owned:
    """Return each node once for each owner, because all new roots of an operation name the same old ones."""
    pairs = np.unique(np.stack([found.owners.astype(np.uint64), found.nodes], axis=-1), axis=0)
    return Owned(pairs[:, 0].astype(np.int64), pairs[:, 1])


def _supervoxels(graph: ChunkedGraph, operations: Sequence[Operation], made: Owned) -> list[UInt64Array]:
    """Return pairs (old, new) for each operation, from its own record or from the rows of supervoxels."""
    own = {own_key(operation.operation_id): i for i, operation in enumerate(operations)}
    noted = graph.table.read_rows(list(own), [SUPERVOXELS.key], newest_only=True)
    found = [_NONE for _ in operations]
    for key, row in noted.items():
        record = SUPERVOXELS.newest(row)
        if record is not None:
            found[own[key]] = np.unique(record[:, :2], axis=0)
    # Other software replaces supervoxels in splits only, and keeps no such record.
    asked = [i for i, operation in enumerate(operations) if operation.kind == "split" and not len(found[i])]
    ids = np.array([operations[i].operation_id for i in asked], np.int64)
    pairs = replaced_supervoxels(graph, made.where(np.isin(made.owners, asked)), ids) if asked else []
    for i, its_own in zip(asked, pairs, strict=True):
        found[i] = its_own
    return found


def _voxels(
    graph: ChunkedGraph, operations: Sequence[Operation], supervoxels: Sequence[UInt64Array]
) -> tuple[dict[int, tuple[Box, ...]], set[int]]:
    """Return the boxes of voxels that operations changed, and the operations whose coarser mips are behind."""
    changed = {o.operation_id: pairs for o, pairs in zip(operations, supervoxels, strict=True) if len(pairs)}
    if not changed:
        return {}, set()
    boxes = {i: _chunks(graph, pairs) for i, pairs in changed.items()}
    if not graph.fork.exists():
        return boxes, set()
    try:
        kv = graph.fork.store().kv
    except NotFoundError:
        return boxes, set()
    records = {i: record_in(kv, i) for i in changed}
    boxes |= {i: record.boxes for i, record in records.items() if record is not None}
    behind = read_entries(kv, [pending_key(i) for i in changed])
    return boxes, {entry.operation_id for entry in behind}


def _chunks(graph: ChunkedGraph, pairs: UInt64Array) -> tuple[Box, ...]:
    """Return the boxes of the chunks of replaced supervoxels."""
    coordinates = np.unique(graph.layout.coordinates(pairs[:, 0]), axis=0)
    return tuple(graph.grid.box(2, coordinate) for coordinate in coordinates)


def _points(column: columns.ArrayColumn[Any], operation: Operation) -> tuple[tuple[int, int, int], ...]:
    found = column.newest(operation.row)
    return () if found is None else tuple((x, y, z) for x, y, z in found.tolist())
