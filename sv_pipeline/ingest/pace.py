"""How fast an ingest goes: the throughput now and overall, the time that is left, and the workers that are alive."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.count_blocks import marks_of
from sv_pipeline.ingest.progress import LayerStatus
from sv_pipeline.table import keys

__all__ = ["SILENT_AFTER", "Pace", "WorkersSeen", "pace_of", "workers_seen"]

WINDOW = 5
"""Minutes over which the present throughput is counted."""
SILENT_AFTER = 900.0
"""Seconds after which a worker of another host counts as silent, if it has neither begun nor finished a group."""


@dataclass(frozen=True)
class Pace:
    """The speed of one layer."""

    now: float | None
    """Chunks per second in the last minutes; None if nothing was done in them, or the layer is complete."""
    overall: float | None
    """Chunks per second since the start of the first batch; None while unknown."""
    seconds_left: float | None
    """Time until the layer is complete at the present throughput, or else at the overall one; None while unknown."""


@dataclass(frozen=True)
class WorkersSeen:
    """The workers that have begun a group of chunks and not finished it."""

    alive: tuple[str, ...] = ()
    """Names host:pid of workers whose process runs, or that have begun their group a short time ago."""
    silent: tuple[str, ...] = ()
    """Names of workers that were killed, or have not finished their group for long. Their chunks are not lost."""


def pace_of(status: LayerStatus, now: float | None = None) -> Pace:
    """Return the pace of a layer.

    Parameters
    ----------
    now
        The present time in seconds since the epoch; default: that of this machine.
    """
    now = time.time() if now is None else now
    overall = status.throughput
    if status.complete:
        return Pace(None, overall, 0.0)
    first_minute = int(now // 60) - WINDOW + 1
    started = 0.0 if status.first_started is None else status.first_started / 1000
    done = sum(chunks for minute, chunks in status.recent if minute >= first_minute)
    window = now - max(60.0 * first_minute, started)
    rate = done / window if done and window > 0 else None
    best = rate or overall
    return Pace(rate, overall, (status.chunks - status.done) / best if best else None)


def workers_seen(graph: ChunkedGraph, layers: Iterable[int]) -> WorkersSeen:
    """Return the workers of some layers, by the open marks that each leaves before its done-markers."""
    newest: dict[str, float] = {}
    for layer in layers:
        for _, row in graph.table.scan([keys.counts_range(layer)], newest_only=True):
            for column in marks_of(row):
                mark = json.loads(row[column][0].value)
                worker = str(mark["worker"])
                newest[worker] = max(newest.get(worker, 0.0), float(mark["time"]) / 1000)
    alive = {worker for worker, since in newest.items() if _is_alive(worker, since)}
    return WorkersSeen(tuple(sorted(alive)), tuple(sorted(newest.keys() - alive)))


def _is_alive(worker: str, since: float) -> bool:
    host, _, pid = worker.rpartition(":")
    if host == socket.gethostname() and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return time.time() - since < SILENT_AFTER
