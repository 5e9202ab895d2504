"""The ingest row of a chunk's task, with reserved ids and time, done-marker and failure; and the reservation of ids.

A task takes ranges from the counters of the chunks in which it makes nodes, then stores them with one timestamp in its
row, unless the row has a reservation already. A second worker, or a repetition after a crash, uses the stored
reservation and so writes exactly the same cells.
::

    row sv_pipeline:ingest:<layer>:<chunk id>
        1:reservation  {"timestamp": ms, "ranges": [[chunk id, first segment, count], ...], "digest": "..."}
        1:done         {"nodes": n, "supervoxels": n, "edges": n, "seconds": s, "worker": "host:pid", "finished": ms}
        1:failed       {"error": "...", "kind": "...", "worker": "host:pid", "time": ms}
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sv_pipeline.errors import ConflictError, CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import INGEST_DONE, INGEST_FAILED, INGEST_RESERVATION
from sv_pipeline.table.interface import CellMatch, RowView

__all__ = [
    "TASK_COLUMNS",
    "IdNeed",
    "IdRange",
    "Reservation",
    "TaskRow",
    "decode_task_row",
    "describe_chunk",
    "now",
    "read_task_rows",
    "reserve_ids",
    "worker_name",
]


TASK_COLUMNS = (INGEST_DONE.key, INGEST_RESERVATION.key, INGEST_FAILED.key)
"""Columns of ingest rows."""


@dataclass(frozen=True)
class IdRange:
    """A range of ``count`` node ids of one chunk, numbered from ``first`` in the counter's steps."""

    chunk_id: int
    first: int
    count: int


@dataclass(frozen=True)
class Reservation:
    """The ids and the timestamp that a task writes."""

    timestamp: int
    """Timestamp of all cells of the task, in milliseconds since the epoch."""
    ranges: tuple[IdRange, ...]
    digest: str
    """Digest of the task's input, since another input must not use the same ids."""

    @classmethod
    def of(cls, value: dict[str, Any]) -> Reservation:
        """Decode the stored form."""
        try:
            ranges = tuple(IdRange(*(int(v) for v in r)) for r in value["ranges"])
            return cls(int(value["timestamp"]), ranges, str(value["digest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"a reservation of ids cannot be read: {value!r}.") from error

    @property
    def value(self) -> dict[str, Any]:
        """The reservation in its stored form."""
        ranges = [[r.chunk_id, r.first, r.count] for r in self.ranges]
        return {"timestamp": self.timestamp, "ranges": ranges, "digest": self.digest}

    def node_ids(self, graph: ChunkedGraph) -> UInt64Array:
        """All ids, range after range."""
        parts = [counters.node_ids(graph.layout, r.chunk_id, r.first, r.count) for r in self.ranges]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


@dataclass(frozen=True)
class TaskRow:
    """The ingest row of one chunk."""

    done: dict[str, Any] | None = None
    reservation: Reservation | None = None
    failed: dict[str, Any] | None = None


@dataclass(frozen=True)
class IdNeed:
    """The ids that one task needs."""

    chunk_id: int
    """The task's own chunk."""
    counts: tuple[tuple[int, int], ...]
    """(chunk id, number of nodes) for every chunk in which the task makes nodes."""
    not_before: int
    """Lowest timestamp in milliseconds: a parent must not seem older than its children, even if clocks differ."""
    digest: str


# -- rows -------------------------------------------------------------------------------------------------------------


def read_task_rows(graph: ChunkedGraph, layer: int, chunk_ids: UInt64Array) -> list[TaskRow]:
    """Read the ingest rows of chunks, in one request."""
    row_keys = keys.ingest_keys(layer, chunk_ids)
    rows = graph.table.read_rows(row_keys, TASK_COLUMNS, newest_only=True)
    return [decode_task_row(rows.get(key)) for key in row_keys]


def decode_task_row(row: RowView | None) -> TaskRow:
    """Decode an ingest row."""
    reservation = INGEST_RESERVATION.newest(row)
    return TaskRow(
        INGEST_DONE.newest(row),
        None if reservation is None else Reservation.of(reservation),
        INGEST_FAILED.newest(row),
    )


# -- the protocol -----------------------------------------------------------------------------------------------------


def reserve_ids(
    graph: ChunkedGraph, layer: int, needs: Sequence[IdNeed], stored: Sequence[Reservation | None]
) -> list[Reservation]:
    """Return the reservation of each task: the stored one, or a new one.

    Parameters
    ----------
    layer
        Layer of the tasks.
    needs
        The ids that each task needs.
    stored
        The reservation found in each task's row, or None.

    Raises
    ------
    ConflictError
        If the ids were reserved for another input, because the input has changed.
    """
    result = list(stored)
    missing = [i for i, reservation in enumerate(stored) if reservation is None]
    won = graph.table.side_by_side(lambda i: _put(graph, layer, needs[i]), missing)
    for i, reservation in zip(missing, won, strict=True):
        result[i] = reservation
    lost = [i for i in missing if result[i] is None]
    chunk_ids = np.array([needs[i].chunk_id for i in lost], np.uint64)
    for i, row in zip(lost, read_task_rows(graph, layer, chunk_ids), strict=True):
        result[i] = row.reservation
    return [_checked(graph, layer, need, found) for need, found in zip(needs, result, strict=True)]


def _put(graph: ChunkedGraph, layer: int, need: IdNeed) -> Reservation | None:
    """Reserve ids for one task; returns None if another worker was first."""
    shard = hashlib.blake2b(need.chunk_id.to_bytes(8, "little"), digest_size=1).digest()[0]
    ranges = tuple(
        IdRange(chunk, counters.reserve(graph.table, graph.layout, chunk, count, shard=shard), count)
        for chunk, count in need.counts
    )
    fresh = Reservation(max(now(), need.not_before), ranges, need.digest)
    lost = graph.table.check_and_mutate(
        keys.ingest_key(layer, need.chunk_id),
        [CellMatch(INGEST_RESERVATION.key)],
        if_unmatched=[INGEST_RESERVATION.set(fresh.value)],
    )
    return None if lost else fresh


def _checked(graph: ChunkedGraph, layer: int, need: IdNeed, found: Reservation | None) -> Reservation:
    if found is None:
        raise ConflictError(
            f"{describe_chunk(graph, need.chunk_id)} was purged while it was being built.",
            remedy="Run its layer again.",
        )
    expected = replace(found, digest=need.digest)
    if found != expected or tuple((r.chunk_id, r.count) for r in found.ranges) != need.counts:
        raise ConflictError(
            f"{describe_chunk(graph, need.chunk_id)} was begun with another input: the ids reserved for it do not fit "
            "what its edge and component files, or the layer below, hold now.",
            remedy=f"Purge layer {layer} of the graph (purge-layer), then build it again.",
        )
    return found


# -- helpers ----------------------------------------------------------------------------------------------------------


def describe_chunk(graph: ChunkedGraph, chunk_id: int) -> str:
    """Describe a chunk for a message."""
    layer = int(graph.layout.layers(np.uint64(chunk_id)))
    return f"chunk {tuple(graph.layout.coordinates(np.uint64(chunk_id)).tolist())} of layer {layer}"


def now() -> int:
    """Return the current time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def worker_name() -> str:
    """Name this worker by its host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"
