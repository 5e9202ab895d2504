"""Progress of the layers of a graph, by the counts of their done-markers (`kept_counts`). It computes no nodes.

A chunk without a done-marker is not done, whatever a scheduler reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConflictError, NotReadyError, SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.kept_counts import block_counts, count_chunks, layer_tallies, open_blocks
from sv_pipeline.ingest.purge import purge_layer
from sv_pipeline.ingest.reservations import TASK_COLUMNS, now, read_task_rows, worker_name
from sv_pipeline.ingest.tallies import SUMS, TICKS_PER_SECOND
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import RowMutation

__all__ = [
    "FailureKind",
    "LayerStatus",
    "built_elsewhere",
    "layer_status",
    "mark_failed",
    "missing_coordinates",
    "missing_mask",
    "purge_layer",
    "require_layer_complete",
    "require_neighbourhood_complete",
    "require_own_graph",
]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FailureKind:
    """The chunks of a layer that failed for one kind of reason when last tried, and are not done."""

    kind: str
    """Stable code of our own errors (`SvPipelineError.kind`), or the name of the class of another exception."""
    chunks: int
    error: str
    """Message of the first of these chunks."""
    coordinate: tuple[int, int, int]
    """Chunk coordinate of the first of these chunks."""
    worker: str
    """host:pid of the worker of the first of these chunks."""
    time: int
    """Time of that failure in milliseconds since the epoch."""


@dataclass(frozen=True)
class LayerStatus:
    """Progress of one layer."""

    layer: int
    chunks: int
    """Number of chunks of the layer."""
    done: int
    failed: int
    """Number of chunks that failed when last tried and are not done."""
    nodes: int
    """Number of nodes that the layer's tasks made, including those at higher layers (skip connections)."""
    supervoxels: int
    edges: int
    seconds: float
    """Time of work in seconds, summed over all chunks."""
    first_started: int | None
    """Start of the first batch in milliseconds since the epoch."""
    last_finished: int | None
    """End of the last batch in milliseconds since the epoch."""
    error: str | None
    """Message of the first failure."""
    failures: tuple[FailureKind, ...] = ()
    """The failed chunks by kind of failure, in the order of the first chunks."""
    recent: tuple[tuple[int, int], ...] = ()
    """Pairs of a minute since the epoch and the number of chunks done in it, for the last minutes of each block of
    chunks, ascending."""

    @property
    def complete(self) -> bool:
        """Whether all chunks are done."""
        return self.done >= self.chunks

    @property
    def throughput(self) -> float | None:
        """Chunks per second from the start of the first batch to the end of the last; None while unknown."""
        if self.first_started is None or self.last_finished is None:
            return None
        return 1000 * self.done / max(1, self.last_finished - self.first_started)


# -- looking ----------------------------------------------------------------------------------------------------------


def built_elsewhere(graph: ChunkedGraph) -> bool:
    """Whether other software made the nodes: there are nodes, but no ingest rows, which we write before any node."""
    table = graph.table
    # Some backends go through all rows of a range even if one is wanted; of rows of counts there are few.
    if table.any_row([keys.blocks_range()], None) or table.any_row([keys.ingest_range()], TASK_COLUMNS):
        return False
    return table.any_row([keys.layer_range(2)], [CHILDREN.key])


def require_own_graph(graph: ChunkedGraph) -> None:
    """Raise ConflictError if other software made the nodes; an ingest would make them a second time."""
    if built_elsewhere(graph):
        raise ConflictError(
            f"the nodes of graph {graph.graph_id!r} were made by other software.",
            remedy="They need no ingest. For voxels to edit run 'sv-pipeline ingest CONFIG.yaml --mode voxels'; "
            "to build the graph anew choose another graph_id.",
        )


def missing_mask(graph: ChunkedGraph, layer: int) -> npt.NDArray[np.bool_]:
    """Whether each chunk of a layer lacks its done-marker, shape (n,), by the index of the chunk.

    Blocks of chunks whose counts may lack something are scanned, and what was found is stored.
    """
    return ~np.concatenate([tally.done for tally in layer_tallies(graph, layer)])


def missing_coordinates(graph: ChunkedGraph, layer: int) -> IntArray:
    """Coordinates of the chunks of a layer that have no done-marker, shape (n, 3), in the order of their index."""
    return _coordinates(graph, layer, np.flatnonzero(missing_mask(graph, layer)))


def _coordinates(graph: ChunkedGraph, layer: int, index: npt.ArrayLike) -> IntArray:
    return np.stack(np.unravel_index(np.asarray(index, np.int64), graph.grid.shape(layer)), axis=-1).astype(np.int64)


def layer_status(graph: ChunkedGraph, layer: int | None = None, *, exact: bool = True) -> dict[int, LayerStatus]:
    """Return the progress of every layer from 2 to the root layer, or of one layer. Nothing is written.

    It takes one request, unless a worker was killed between its done-markers and its counts, or an earlier version
    built the graph, and no plan has counted its chunks since.

    Parameters
    ----------
    layer
        The only layer to look at.
    exact
        Whether to scan the markers near those that workers are writing, or were writing when they were killed. Without
        it, a look takes a time that depends on the number of all chunks only, but the last chunks may be missing.
    """
    wanted = range(2, graph.n_layers + 1) if layer is None else [layer]
    tallies = {number: _LayerSums(graph, number) for number in wanted}
    for number, first, counts in block_counts(graph, layer, exact=exact):
        tallies[number].add(first, counts)
    return {number: sums.status() for number, sums in tallies.items()}


class _LayerSums:
    """Sums over the blocks of a layer."""

    def __init__(self, graph: ChunkedGraph, layer: int) -> None:
        self.graph, self.layer = graph, layer
        self.sums = dict.fromkeys(SUMS, 0)
        self.done = 0
        self.first: list[int] = []
        self.last: list[int] = []
        self.recent: dict[int, int] = {}
        self.failed: dict[str, int] = {}
        self.examples: dict[str, tuple[int, str, str, int]] = {}

    def add(self, first_chunk: int, counts: dict[str, Any]) -> None:
        self.done += counts["done"]
        for name, value in zip(SUMS, counts["sums"], strict=True):
            self.sums[name] += value
        if counts["first"] is not None:
            self.first.append(counts["first"])
            self.last.append(counts["last"])
        for minute, chunks in counts["recent"]:
            self.recent[minute] = self.recent.get(minute, 0) + chunks
        for kind, chunks, position, error, worker, time in counts["failures"]:
            self.failed[kind] = self.failed.get(kind, 0) + chunks
            example = (first_chunk + position, error, worker, time)
            self.examples[kind] = min(self.examples.get(kind, example), example)

    def status(self) -> LayerStatus:
        failures = tuple(
            FailureKind(kind, self.failed[kind], error, self._coordinate(index), worker, time)
            for (index, error, worker, time), kind in sorted((example, kind) for kind, example in self.examples.items())
        )
        return LayerStatus(
            layer=self.layer,
            chunks=self.graph.grid.count(self.layer),
            done=self.done,
            failed=sum(self.failed.values()),
            nodes=self.sums["nodes"],
            supervoxels=self.sums["supervoxels"],
            edges=self.sums["edges"],
            seconds=round(self.sums["seconds"] / TICKS_PER_SECOND, 3),
            first_started=min(self.first, default=None),
            last_finished=max(self.last, default=None),
            error=failures[0].error if failures else None,
            failures=failures,
            recent=tuple(sorted(self.recent.items())),
        )

    def _coordinate(self, index: int) -> tuple[int, int, int]:
        x, y, z = _coordinates(self.graph, self.layer, index).tolist()
        return x, y, z


def require_layer_complete(graph: ChunkedGraph, layer: int) -> None:
    """Raise NotReadyError unless every chunk of a layer is done."""
    missing = missing_mask(graph, layer)
    if n_missing := int(missing.sum()):
        first = _coordinates(graph, layer, int(missing.argmax()))
        raise _not_ready(layer, n_missing, first, len(missing))


def require_neighbourhood_complete(graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike) -> None:
    """Raise NotReadyError unless some chunks of a layer, coordinates of shape (n, 3), and their neighbours are done.

    Atomic edges reach no further than that, so building the layer above these chunks needs no others.
    """
    steps = np.array(list(product((-1, 0, 1), repeat=3)), np.int64)
    around = (np.asarray(coordinates, np.int64).reshape(-1, 1, 3) + steps).reshape(-1, 3)
    inside = ((around >= 0) & (around < graph.grid.shape(layer))).all(axis=-1)
    around = np.unique(around[inside], axis=0)
    row_keys = keys.ingest_keys(layer, graph.layout.chunk_ids(layer, around))
    done = graph.table.read_rows(row_keys, [INGEST_DONE.key], newest_only=True)
    missing = around[[key not in done for key in row_keys]]
    if len(missing):
        raise _not_ready(layer, len(missing), missing[0], len(around))


def _not_ready(layer: int, missing: int, first: IntArray, total: int) -> NotReadyError:
    return NotReadyError(
        f"layer {layer} has {missing} of {total} chunks unfinished, first {tuple(first.tolist())}.",
        remedy=f"Run layer {layer} first.",
    )


# -- failures ---------------------------------------------------------------------------------------------------------


def mark_failed(graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, error: BaseException) -> None:
    """Store in ingest rows why chunks, coordinates of shape (n, 3), failed; rows of done chunks do not change."""
    coords = np.unique(np.asarray(coordinates, np.int64).reshape(-1, 3), axis=0)
    chunk_ids, indices = graph.layout.chunk_ids(layer, coords), graph.grid.index(layer, coords)
    failure = {
        "error": str(error) or type(error).__name__,
        "kind": error.kind if isinstance(error, SvPipelineError) else type(error).__name__,
        "worker": worker_name(),
        "time": now(),
    }
    rows = read_task_rows(graph, layer, chunk_ids)
    row_keys = keys.ingest_keys(layer, chunk_ids)
    opened = open_blocks(layer, indices)
    graph.table.mutate(opened.mutations)
    graph.table.mutate(
        RowMutation(key, [INGEST_FAILED.set(failure)])
        for key, row in zip(row_keys, rows, strict=True)
        if row.done is None
    )
    count_chunks(graph, layer, indices, opened)
