"""Progress of the layers of a graph, by their done-markers. This module computes no nodes.

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
from sv_pipeline.ingest.purge import purge_layer
from sv_pipeline.ingest.reservations import now, read_task_rows, worker_name
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import RowMutation

__all__ = [
    "LayerStatus",
    "built_elsewhere",
    "layer_status",
    "mark_failed",
    "missing_coordinates",
    "purge_layer",
    "require_layer_complete",
    "require_neighbourhood_complete",
    "require_own_graph",
]

IntArray = npt.NDArray[np.int64]


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
    if next(iter(table.scan([keys.ingest_range()], newest_only=True)), None) is not None:
        return False
    return next(iter(table.scan([keys.layer_range(2)], [CHILDREN.key], newest_only=True)), None) is not None


def require_own_graph(graph: ChunkedGraph) -> None:
    """Raise ConflictError if other software made the nodes; an ingest would make them a second time."""
    if built_elsewhere(graph):
        raise ConflictError(
            f"the nodes of graph {graph.graph_id!r} were made by other software.",
            remedy="They need no ingest. For voxels to edit run 'sv-pipeline ingest CONFIG.yaml --mode voxels'; "
            "to build the graph anew choose another graph_id.",
        )


def missing_coordinates(graph: ChunkedGraph, layer: int) -> IntArray:
    """Coordinates of the chunks of a layer that have no done-marker, shape (n, 3), in the order of their index."""
    return graph.grid.coordinates(layer)[~_done_mask(graph, layer)]


def _done_mask(graph: ChunkedGraph, layer: int) -> npt.NDArray[np.bool_]:
    rows = graph.table.scan([keys.ingest_range(layer)], [INGEST_DONE.key], newest_only=True)
    chunk_ids = np.array([keys.split_ingest_key(key)[1] for key, _ in rows], np.uint64)
    mask = np.zeros(graph.grid.count(layer), np.bool_)
    coordinates = graph.layout.coordinates(chunk_ids)
    inside = (coordinates < graph.grid.shape(layer)).all(axis=-1)
    mask[graph.grid.index(layer, coordinates[inside])] = True
    return mask


def layer_status(graph: ChunkedGraph) -> dict[int, LayerStatus]:
    """Return the progress of every layer from 2 to the root layer, read in one scan."""
    tallies = {layer: _Tally() for layer in range(2, graph.n_layers + 1)}
    wanted = [INGEST_DONE.key, INGEST_FAILED.key]
    for key, row in graph.table.scan([keys.ingest_range()], wanted, newest_only=True):
        if tally := tallies.get(keys.split_ingest_key(key)[0]):
            tally.add(INGEST_DONE.newest(row), INGEST_FAILED.newest(row))
    return {layer: tally.status(graph, layer) for layer, tally in tallies.items()}


class _Tally:
    """Sums over the ingest rows of a layer, of which there may be millions."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(("nodes", "supervoxels", "edges", "seconds"), 0.0)
        self.done = self.failed = 0
        self.first: int | None = None
        self.last: int | None = None
        self.error: str | None = None

    def add(self, marker: dict[str, Any] | None, failure: dict[str, Any] | None) -> None:
        if marker is not None:
            self.done += 1
            for name in self.sums:
                self.sums[name] += marker[name]
            finished = int(marker["finished"])
            started = int(marker.get("started", finished))  # markers of earlier versions have no start
            self.first = started if self.first is None else min(self.first, started)
            self.last = finished if self.last is None else max(self.last, finished)
        elif failure is not None:
            self.failed += 1
            self.error = self.error or str(failure["error"])

    def status(self, graph: ChunkedGraph, layer: int) -> LayerStatus:
        return LayerStatus(
            layer=layer,
            chunks=graph.grid.count(layer),
            done=self.done,
            failed=self.failed,
            nodes=int(self.sums["nodes"]),
            supervoxels=int(self.sums["supervoxels"]),
            edges=int(self.sums["edges"]),
            seconds=round(self.sums["seconds"], 3),
            first_started=self.first,
            last_finished=self.last,
            error=self.error,
        )


def require_layer_complete(graph: ChunkedGraph, layer: int) -> None:
    """Raise NotReadyError unless every chunk of a layer is done."""
    missing = missing_coordinates(graph, layer)
    if len(missing):
        raise _not_ready(layer, missing, graph.grid.count(layer))


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
        raise _not_ready(layer, missing, len(around))


def _not_ready(layer: int, missing: IntArray, total: int) -> NotReadyError:
    return NotReadyError(
        f"layer {layer} has {len(missing)} of {total} chunks unfinished, first {tuple(missing[0].tolist())}.",
        remedy=f"Run layer {layer} first.",
    )


# -- failures ---------------------------------------------------------------------------------------------------------


def mark_failed(graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, error: BaseException) -> None:
    """Store in ingest rows why chunks, coordinates of shape (n, 3), failed; rows of done chunks do not change."""
    chunk_ids = np.unique(graph.layout.chunk_ids(layer, np.asarray(coordinates, np.int64).reshape(-1, 3)))
    failure = {
        "error": str(error) or type(error).__name__,
        "kind": error.kind if isinstance(error, SvPipelineError) else type(error).__name__,
        "worker": worker_name(),
        "time": now(),
    }
    rows = read_task_rows(graph, layer, chunk_ids)
    row_keys = keys.ingest_keys(layer, chunk_ids)
    graph.table.mutate(
        RowMutation(key, [INGEST_FAILED.set(failure)])
        for key, row in zip(row_keys, rows, strict=True)
        if row.done is None
    )
