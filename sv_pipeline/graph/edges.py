"""Atomic edges of parts of a graph, from the edge files and from edits. Reads; decides nothing.

Edge files never change. Edges that edits add are stored in one row per layer 2 chunk. An edge is valid until one of its
supervoxels is replaced. A valid edge is active if its ends have the same ancestor one layer above its cross layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.edge_rules import usable_affinities
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import ChunkEdges, read_edges_many, usable
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    AFFINITIES,
    AREAS,
    COMPACTED_AFFINITIES,
    COMPACTED_AREAS,
    COMPACTED_SPLIT_EDGES,
    FAKE_EDGES,
    NEW_IDS,
    OLD_FAKE_EDGES,
    SPLIT_EDGES,
    ArrayColumn,
    side_by_side,
)
from sv_pipeline.table.interface import RowView

__all__ = [
    "FAKE_AFFINITY",
    "has_split_edges",
    "read_edges_of_chunks",
    "read_timed_edges_of_edits",
    "replaced",
]

BoolArray = npt.NDArray[np.bool_]

FAKE_AFFINITY = np.finfo(np.float32).tiny
"""Affinity of an edge that a user's merge added where the watershed has no edge."""

_SPLIT_COLUMNS = (
    (SPLIT_EDGES, AFFINITIES, AREAS),
    (COMPACTED_SPLIT_EDGES, COMPACTED_AFFINITIES, COMPACTED_AREAS),
)


def replaced(graph: ChunkedGraph, supervoxels: UInt64Array) -> BoolArray:
    """Return which supervoxels were split into others, shape (n,)."""
    if not len(supervoxels):
        return np.zeros(0, np.bool_)
    row_keys = keys.node_keys(supervoxels)
    rows = graph.table.read_rows(row_keys, [NEW_IDS.key], newest_only=True)
    return np.array([key in rows for key in row_keys], np.bool_)


# -- sources ----------------------------------------------------------------------------------------------------------


def read_edges_of_chunks(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64]) -> tuple[Edges, int]:
    """Read the atomic edges of layer 2 chunks, coordinates of shape (n, 3), from edge files and from edits.

    Returns
    -------
    tuple[Edges, int]
        The edges, each pair once, smaller id first, without loops; and the time of the newest cell that was read, in
        milliseconds.
    """
    with Helpers() as pool:
        reading = pool.submit(read_timed_edges_of_edits, graph, coordinates)
        files = read_edges_many(graph.edges_url, coordinates)
        kinds = [[file.in_ for file in files], [file.between for file in files], [file.cross for file in files]]
        edges = usable(ChunkEdges(*map(Edges.join, kinds)))
        of_edits, latest = reading.result()
    return Edges.join([edges.in_, edges.between, edges.cross, of_edits]).distinct(), latest


def read_timed_edges_of_edits(graph: ChunkedGraph, coordinates: npt.ArrayLike) -> tuple[Edges, int]:
    """Return the edges that edits added in layer 2 chunks, and the time of the newest of their cells.

    Edges of replaced supervoxels are included. All cells are read, because there are tables whose newest compacted cell
    lacks edges that are still valid.

    Parameters
    ----------
    graph
        The graph to read.
    coordinates
        Coordinates of the chunks, shape (n, 3).

    Returns
    -------
    tuple[Edges, int]
        The edges, and the time in milliseconds; 0 if there are none.
    """
    chunk_ids = graph.layout.chunk_ids(2, np.asarray(coordinates, np.int64).reshape(-1, 3))
    columns = [FAKE_EDGES, OLD_FAKE_EDGES, *(column for group in _SPLIT_COLUMNS for column in group)]
    rows = graph.table.read_rows(keys.edit_edge_keys(chunk_ids), [column.key for column in columns])
    parts = []
    for key, row in rows.items():
        for group in _SPLIT_COLUMNS:
            parts += _split_edges(key, row, *group)
        for column in (FAKE_EDGES, OLD_FAKE_EDGES):
            parts += [_fake_edges(pairs) for _, pairs in column.history(row)]
    latest = max((cells[0].timestamp for row in rows.values() for cells in row.values()), default=0)
    return Edges.join(parts), latest


def has_split_edges(graph: ChunkedGraph) -> bool:
    """Whether any supervoxel was ever split, since each split adds edges between its pieces."""
    columns = [SPLIT_EDGES.key, COMPACTED_SPLIT_EDGES.key]
    return graph.table.any_row([keys.prefix_range(b"f")], columns)


def _split_edges(
    key: bytes,
    row: RowView,
    edges: ArrayColumn[np.uint64],
    affinities: ArrayColumn[np.float32],
    areas: ArrayColumn[np.uint64],
) -> list[Edges]:
    groups = side_by_side(row, edges, affinities, areas)
    if groups is None:
        raise CorruptionError(
            f"row {key.decode()!r} has {edges.key.qualifier.decode()}, but not as many affinities and areas.",
            remedy="Recover the operation that wrote it.",
        )
    return [
        Edges(pairs[:, 0], pairs[:, 1], usable_affinities(affinity, may_be_inf=True), area)
        for pairs, affinity, area in groups
    ]


def _fake_edges(pairs: UInt64Array) -> Edges:
    n = len(pairs)
    return Edges(pairs[:, 0], pairs[:, 1], np.full(n, FAKE_AFFINITY, np.float32), np.zeros(n, np.uint64))
