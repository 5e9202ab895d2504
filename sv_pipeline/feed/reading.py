"""Reads the events of a feed in batches: the entries of the journal, and what their operations have changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sv_pipeline.errors import NotFoundError
from sv_pipeline.feed import rows
from sv_pipeline.feed.changes import Owned, made_layer2, replaced_layer2, replaced_roots, replaced_supervoxels
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.journal import advance, current_head
from sv_pipeline.feed.rows import Head
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, about, read_operations
from sv_pipeline.operations.writing import SUPERVOXELS, own_key, read_still_one_object
from sv_pipeline.segmentation.fork.pending import read_entries
from sv_pipeline.segmentation.fork.records import pending_key, record_in
from sv_pipeline.table import columns
from sv_pipeline.table.counters import last_operation_id

__all__ = ["EVENTS_AT_ONCE", "events_after", "latest_number", "number_after", "read_events"]

EVENTS_AT_ONCE = 50
_NONE = np.zeros((0, 2), np.uint64)


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
    entries = rows.operations_after(graph.table, head, number, limit)
    log = {one.operation_id: one for one in read_operations(graph, [i for _, i in entries])} if entries else {}
    known = [(place, log[i]) for place, i in entries if i in log]
    if not known:
        return []
    operations = [operation for _, operation in known]
    new_roots = Owned.of([operation.roots for operation in operations])
    old_roots = replaced_roots(graph, new_roots)
    made = made_layer2(graph, new_roots)
    gone = replaced_layer2(graph, _distinct(old_roots))
    supervoxels = _supervoxels(graph, operations, made)
    boxes, behind = _voxels(graph, operations, supervoxels)
    still = read_still_one_object(graph.table, [operation.operation_id for operation in operations])
    return [
        EditEvent(
            feed=head.feed,
            number=place,
            graph_id=graph.graph_id,
            table=graph.table.name,
            operation_id=operation.operation_id,
            kind=operation.kind,
            about=about(operation) or 0,
            user=operation.user or "",
            time=milliseconds(operation.timestamp) or 0,
            old_roots=old_roots.of_owner(i),
            new_roots=np.unique(operation.roots),
            old_layer2=gone.of_owner(i),
            new_layer2=made.of_owner(i),
            supervoxels=supervoxels[i],
            boxes=boxes.get(operation.operation_id, ()),
            coarser_mips_behind=operation.operation_id in behind,
            still_one_object=operation.operation_id in still,
            source=_points(columns.SOURCE_COORDINATES, operation),
            sink=_points(columns.SINK_COORDINATES, operation),
        )
        for i, (place, operation) in enumerate(known)
    ]


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
