"""Removal of layers of a graph, so that they can be built again. Knows what tasks write, not how they compute it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConfigError, ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.ingest.kept_counts import forget_layers, open_layers
from sv_pipeline.ingest.reservations import TASK_COLUMNS, IdRange, Reservation
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import CHILDREN, INGEST_DONE, INGEST_FAILED, INGEST_RESERVATION, PARENT, cross_edges
from sv_pipeline.table.interface import DeleteCells, RowMutation

__all__ = ["Reserved", "purge_layer", "refuse_if_edited"]

ROWS_PER_WRITE = 5_000


def purge_layer(graph: ChunkedGraph, layer: int) -> None:
    """Remove a layer and all layers above it, so that they can be built again from the layer below.

    Danger: this permanently removes their nodes and markers. No worker may build at the same time. An interrupted purge
    is completed by repeating it.

    Raises
    ------
    ConfigError
        If there is no such layer.
    ConflictError
        If edits were made, since they would be lost, or other software built the graph.
    """
    if not 2 <= layer <= graph.n_layers:
        raise ConfigError(
            f"graph {graph.graph_id!r} has no layer {layer} to purge.", remedy=f"It has layers 2 to {graph.n_layers}."
        )
    refuse_if_edited(graph, f"Rebuilding layer {layer}")
    table = graph.table
    if not table.any_row([keys.ingest_range()], TASK_COLUMNS):
        raise ConflictError(
            f"graph {graph.graph_id!r} has no ingest rows, so there is nothing to purge.",
            remedy="A graph that PyChunkedGraph ingested cannot be rebuilt in place.",
        )
    # Counts are removed first: they must never claim more than the markers.
    open_layers(graph, range(layer, graph.n_layers + 1))
    tasks: list[bytes] = []
    ranges: list[IdRange] = []
    own = [keys.ingest_range(above) for above in range(layer, graph.n_layers + 1)]
    for key, row in table.scan(own, newest_only=True):
        tasks.append(key)
        if (value := INGEST_RESERVATION.newest(row)) is not None:
            ranges += Reservation.of(value).ranges
    # Markers are deleted first: from now on these layers do not count as complete. Reservations are deleted last: by
    # them a repeated purge finds what an interrupted one has left.
    unmarked = [DeleteCells(INGEST_DONE.key), DeleteCells(INGEST_FAILED.key)]
    table.mutate(RowMutation(key, unmarked) for key in tasks)
    made = Reserved(graph.layout, ranges)
    # Nodes of the layer below lose the cells that these tasks wrote; so do nodes at higher layers that a lower task
    # made by a skip connection.
    links = [DeleteCells(PARENT.key), *(DeleteCells(cross_edges(n).key) for n in range(layer - 1, graph.n_layers))]
    for below in range(layer - 1, graph.n_layers + 1):
        for row_keys in _node_keys(graph, below):
            doomed = made.contains(keys.node_ids(row_keys)).tolist()
            table.mutate(
                RowMutation(key, [DeleteCells()] if gone else links) for key, gone in zip(row_keys, doomed, strict=True)
            )
    forget_layers(graph, range(layer, graph.n_layers + 1))
    table.mutate(RowMutation(key, [DeleteCells()]) for key in tasks)


def refuse_if_edited(graph: ChunkedGraph, what: str) -> None:
    """Raise ConflictError if the operation log is not empty; ``what`` names the action that would lose the edits."""
    if graph.table.any_row([keys.operation_range()]):
        raise ConflictError(
            f"graph {graph.graph_id!r} has operations in its log. {what} would lose the edits.",
            remedy="Build a graph under another graph_id instead.",
        )


def _node_keys(graph: ChunkedGraph, layer: int) -> Iterator[list[bytes]]:
    """Yield the keys of all rows of a layer, some thousand at a time."""
    rows = (key for key, _ in graph.table.scan([keys.layer_range(layer)], [PARENT.key, CHILDREN.key], newest_only=True))
    while batch := list(islice(rows, ROWS_PER_WRITE)):
        yield batch


class Reserved:
    """The set of all reserved ids, stored as ranges, so that its memory does not grow with the number of nodes."""

    def __init__(self, layout: IdLayout, ranges: list[IdRange]) -> None:
        self._layout = layout
        first = [counters.node_ids(layout, r.chunk_id, r.first, 1)[0] for r in ranges]
        starts = self._addresses(np.array(first, np.uint64))
        order = np.argsort(starts)
        self._starts = starts[order]
        self._stops = self._starts + np.array([r.count for r in ranges], np.uint64)[order]

    def contains(self, ids: UInt64Array) -> npt.NDArray[np.bool_]:
        """Return whether each id is in a range, shape (n,)."""
        if not len(self._starts):
            return np.zeros(len(ids), np.bool_)
        addresses = self._addresses(ids)
        index = np.searchsorted(self._starts, addresses, side="right") - 1
        return np.asarray((index >= 0) & (addresses < self._stops[index]), np.bool_)

    def _addresses(self, ids: UInt64Array) -> UInt64Array:
        """Rearrange ids so that those of one range are consecutive: in the root chunk, the shard comes first."""
        n_layers = self._layout.n_layers
        segments, shift = self._layout.segments(ids), np.uint64(self._layout.segment_bits(n_layers) - 8)
        by_shard = ((segments & np.uint64(255)) << shift) | (segments >> np.uint64(8))
        moved = self._layout.chunks(ids) | by_shard
        return np.where(self._layout.layers(ids) == n_layers, moved, ids)
