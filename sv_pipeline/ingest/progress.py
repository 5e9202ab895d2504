"""How far the layers of a graph are, by their done-markers; and undoing layers. Computes no node.

What has no done-marker is not done, whatever a scheduler says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConflictError, NotReadyError, SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.reservations import Reservation, TaskRow, decode_task_row, now, read_task_rows, worker_name
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    CHILDREN,
    INGEST_DONE,
    INGEST_FAILED,
    INGEST_RESERVATION,
    PARENT,
    cross_edges,
)
from sv_pipeline.table.interface import DeleteCells, RowMutation

__all__ = [
    "LayerStatus",
    "done_coordinates",
    "layer_status",
    "mark_failed",
    "missing_coordinates",
    "purge_layer",
    "require_layer_complete",
    "require_neighbourhood_complete",
]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerStatus:
    """How far one layer is."""

    layer: int
    chunks: int
    """Chunks of the layer."""
    done: int
    failed: int
    """Chunks that failed last time and are not done."""
    nodes: int
    """Nodes that the layer's tasks made, roots and other skips included."""
    supervoxels: int
    edges: int
    seconds: float
    """Work, added over all chunks."""
    first_finished: int | None
    """Milliseconds since the epoch."""
    last_finished: int | None
    error: str | None
    """The first failure."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.chunks

    @property
    def throughput(self) -> float | None:
        """Chunks per second between the first and the last that finished; None while unknown."""
        if self.first_finished is None or self.last_finished is None or self.last_finished <= self.first_finished:
            return None
        return (self.done - 1) / (self.last_finished - self.first_finished) * 1000


# -- looking ----------------------------------------------------------------------------------------------------------


def done_coordinates(graph: ChunkedGraph, layer: int) -> IntArray:
    """Coordinates of the chunks of a layer that have a done-marker, shape (n, 3), in the order of their index."""
    return graph.grid.coordinates(layer)[_done_mask(graph, layer)]


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
    """How far every layer is, in one scan; from layer 2 to the root layer."""
    by_layer: dict[int, list[TaskRow]] = defaultdict(list)
    wanted = [INGEST_DONE.key, INGEST_FAILED.key]
    for key, row in graph.table.scan([keys.ingest_range()], wanted, newest_only=True):
        by_layer[keys.split_ingest_key(key)[0]].append(decode_task_row(row))
    return {layer: _status(graph, layer, by_layer[layer]) for layer in range(2, graph.n_layers + 1)}


def _status(graph: ChunkedGraph, layer: int, rows: list[TaskRow]) -> LayerStatus:
    markers = [row.done for row in rows if row.done is not None]
    failures = [row.failed for row in rows if row.done is None and row.failed is not None]
    finished = [int(marker["finished"]) for marker in markers]
    return LayerStatus(
        layer=layer,
        chunks=graph.grid.count(layer),
        done=len(markers),
        failed=len(failures),
        nodes=sum(int(marker["nodes"]) for marker in markers),
        supervoxels=sum(int(marker["supervoxels"]) for marker in markers),
        edges=sum(int(marker["edges"]) for marker in markers),
        seconds=round(sum(float(marker["seconds"]) for marker in markers), 3),
        first_finished=min(finished, default=None),
        last_finished=max(finished, default=None),
        error=str(failures[0]["error"]) if failures else None,
    )


def require_layer_complete(graph: ChunkedGraph, layer: int) -> None:
    """NotReadyError unless every chunk of a layer is done."""
    missing = missing_coordinates(graph, layer)
    if len(missing):
        raise _not_ready(layer, missing, graph.grid.count(layer))


def require_neighbourhood_complete(graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike) -> None:
    """NotReadyError unless some chunks of a layer and all that touch them are done; coordinates of shape (n, 3).

    That is as far as atomic edges reach, and all that the layer above needs to know.
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
    """Remember why chunks could not be done, shape (n, 3); those that are done stay as they are."""
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


# -- undoing ----------------------------------------------------------------------------------------------------------


def purge_layer(graph: ChunkedGraph, layer: int) -> None:
    """Undo a layer and all above it, so that they can be built again from the layer below.

    Danger: removes their nodes and markers for good. May be interrupted and repeated. No worker may be building.

    Raises
    ------
    ConflictError
        If edits were made (they would be lost), or other software built the graph.
    """
    if not 2 <= layer <= graph.n_layers:
        raise ValueError(f"layer {layer} is outside 2..{graph.n_layers}")
    table = graph.table
    if next(iter(table.scan([keys.operation_range()])), None) is not None:
        raise ConflictError(
            f"graph {graph.graph_id!r} has operations in its log: rebuilding layer {layer} would lose the edits.",
            remedy="Build a graph under another graph_id instead.",
        )
    ingest = {keys.split_ingest_key(key): row for key, row in table.scan([keys.ingest_range()], newest_only=True)}
    if not ingest:
        raise ConflictError(
            f"graph {graph.graph_id!r} was not built here, or not begun: there is nothing to purge.",
            remedy="A graph that PyChunkedGraph ingested cannot be rebuilt in place.",
        )
    tasks = {place: row for place, row in ingest.items() if place[0] >= layer}
    # Markers first: from now on nobody takes these layers for complete. Reservations last: a purge that was
    # interrupted finds by them what it still has to remove.
    table.mutate(RowMutation(keys.ingest_key(*place), [DeleteCells(INGEST_DONE.key)]) for place in tasks)
    made = [
        Reservation.of(value).node_ids(graph) for row in tasks.values() if (value := INGEST_RESERVATION.newest(row))
    ]
    doomed = set(keys.node_keys(np.concatenate(made))) if made else set()
    for batch in _batches(_undo(graph, layer, doomed)):
        table.mutate(batch)
    table.mutate(RowMutation(keys.ingest_key(*place), [DeleteCells()]) for place in tasks)


def _undo(graph: ChunkedGraph, layer: int, doomed: set[bytes]) -> Iterator[RowMutation]:
    """Removes nodes; and from all others of ``layer - 1`` and above what the tasks of these layers put there."""
    links = [DeleteCells(PARENT.key), *(DeleteCells(cross_edges(n).key) for n in range(layer - 1, graph.n_layers))]
    for below in range(layer - 1, graph.n_layers + 1):
        for key, _ in graph.table.scan([keys.layer_range(below)], [PARENT.key, CHILDREN.key], newest_only=True):
            yield RowMutation(key, [DeleteCells()] if key in doomed else links)


def _batches(mutations: Iterable[RowMutation], size: int = 5_000) -> Iterator[list[RowMutation]]:
    batch: list[RowMutation] = []
    for mutation in mutations:
        batch.append(mutation)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
