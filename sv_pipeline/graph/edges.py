"""Atomic edges of parts of a graph, from the edge files and from edits. Reads; decides nothing.

Edge files never change. Edges that edits add are stored in one row per layer 2 chunk. An edge is valid until one of its
supervoxels is replaced. A valid edge is active if its ends have the same ancestor one layer above its cross layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.algorithms.edge_rules import usable_affinities
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import ChunkEdges, Edges, read_edges_many, usable
from sv_pipeline.graph.hierarchy import Time, milliseconds, read_ancestor_matrix
from sv_pipeline.graph.queries import leaves
from sv_pipeline.grid import Box
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
    "EdgeKind",
    "SubgraphEdges",
    "has_split_edges",
    "read_edges_of_edits",
    "read_timed_edges_of_edits",
    "replaced",
    "subgraph_edges",
]

BoolArray = npt.NDArray[np.bool_]

FAKE_AFFINITY = np.finfo(np.float32).tiny
"""Affinity of an edge that a user's merge added where the watershed has no edge."""

_SPLIT_COLUMNS = (
    (SPLIT_EDGES, AFFINITIES, AREAS),
    (COMPACTED_SPLIT_EDGES, COMPACTED_AFFINITIES, COMPACTED_AREAS),
)


class EdgeKind(IntEnum):
    """Position of the two ends of an edge relative to each other."""

    IN = 0
    """Both ends are below the same layer 2 node."""
    OUT = 1
    """The ends are in one chunk, below two layer 2 nodes."""
    CROSS = 2
    """The ends are in two chunks."""


@dataclass(frozen=True)
class SubgraphEdges:
    """Edges with at least one end in a part of the graph.

    Each pair occurs once. The first end is in the part; if both are, it is the smaller one.
    """

    supervoxels: UInt64Array
    """All supervoxels of the part, sorted."""
    edges: Edges
    kinds: npt.NDArray[np.int8]
    """:class:`EdgeKind` of each edge, shape (n,)."""
    active: BoolArray
    """Whether each edge connects its ends, shape (n,)."""
    inside: BoolArray
    """Whether the second end is in the part too, shape (n,)."""

    def select(self, keep: BoolArray) -> SubgraphEdges:
        """Return some of the edges, by a mask of shape (n,)."""
        edges = Edges(*(array[keep] for array in self.edges.arrays))
        return SubgraphEdges(self.supervoxels, edges, self.kinds[keep], self.active[keep], self.inside[keep])

    def of_kind(self, kind: EdgeKind) -> Edges:
        """Return the edges of one kind."""
        return self.select(self.kinds == kind).edges

    @property
    def in_(self) -> Edges:
        """Edges below one layer 2 node."""
        return self.of_kind(EdgeKind.IN)

    @property
    def out(self) -> Edges:
        """Edges in one chunk, between two layer 2 nodes."""
        return self.of_kind(EdgeKind.OUT)

    @property
    def cross(self) -> Edges:
        """Edges between two chunks."""
        return self.of_kind(EdgeKind.CROSS)


def subgraph_edges(
    graph: ChunkedGraph,
    node_ids: npt.ArrayLike,
    *,
    box: Box | None = None,
    active_only: bool = False,
    at: Time | None = None,
) -> SubgraphEdges:
    """Return all atomic edges that touch the supervoxels below the given nodes.

    Parameters
    ----------
    node_ids
        Roots or other nodes; one id or many.
    box
        Use only supervoxels in chunks that touch this box of voxels. The other ends of their edges may be outside.
    active_only
        Leave out inactive edges.
    at
        Time for which activity is determined; default: now.
    """
    supervoxels = np.unique(leaves(graph, np.atleast_1d(np.asarray(node_ids, np.uint64)), box=box).values)
    chunks = np.unique(graph.layout.chunks(supervoxels))
    coordinates = graph.layout.coordinates(chunks)
    edges = _around(supervoxels, _all_edges(graph, coordinates))
    partners = np.setdiff1d(edges.node_ids2, supervoxels)
    edges = _take(edges, ~np.isin(edges.node_ids2, partners[replaced(graph, partners)]))
    kinds, active = _classify(graph, edges, milliseconds(at))
    result = SubgraphEdges(supervoxels, edges, kinds, active, find(supervoxels, edges.node_ids2) >= 0)
    return result.select(active) if active_only else result


def replaced(graph: ChunkedGraph, supervoxels: UInt64Array) -> BoolArray:
    """Return which supervoxels were split into others, shape (n,)."""
    row_keys = keys.node_keys(supervoxels)
    rows = graph.table.read_rows(row_keys, [NEW_IDS.key], newest_only=True)
    return np.array([key in rows for key in row_keys], np.bool_)


# -- sources ----------------------------------------------------------------------------------------------------------


def _all_edges(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64]) -> Edges:
    """Return the edges of layer 2 chunks: first those of the files, then those of edits."""
    files: list[ChunkEdges] = [usable(file) for file in read_edges_many(graph.edges_url, coordinates)]
    parts = [part for file in files for part in (file.in_, file.between, file.cross)]
    return _join([*parts, read_edges_of_edits(graph, coordinates)])


def read_edges_of_edits(graph: ChunkedGraph, coordinates: npt.ArrayLike) -> Edges:
    """Return the edges that edits added in layer 2 chunks, including edges of replaced supervoxels.

    All cells are read, because there are tables whose newest compacted cell lacks edges that are still valid.
    ``coordinates`` has shape (n, 3).
    """
    return read_timed_edges_of_edits(graph, coordinates)[0]


def read_timed_edges_of_edits(graph: ChunkedGraph, coordinates: npt.ArrayLike) -> tuple[Edges, int]:
    """Return `read_edges_of_edits`, and the time of the newest of these cells in milliseconds (0 if there are none)."""
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
    return _join(parts), latest


def has_split_edges(graph: ChunkedGraph) -> bool:
    """Whether any supervoxel was ever split, since each split adds edges between its pieces."""
    columns = [SPLIT_EDGES.key, COMPACTED_SPLIT_EDGES.key]
    return next(iter(graph.table.scan([keys.prefix_range(b"f")], columns, newest_only=True)), None) is not None


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


# -- arrays -----------------------------------------------------------------------------------------------------------


def _join(parts: list[Edges]) -> Edges:
    if not parts:
        return Edges()
    return Edges(*(np.concatenate(arrays) for arrays in zip(*(part.arrays for part in parts), strict=True)))


def _take(edges: Edges, index: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Edges:
    return Edges(*(array[index] for array in edges.arrays))


def _around(supervoxels: UInt64Array, edges: Edges) -> Edges:
    """Return edges that touch the supervoxels, directed so that the first end is one of them; each pair once."""
    one = find(supervoxels, edges.node_ids1) >= 0
    other = find(supervoxels, edges.node_ids2) >= 0
    turn = (other & ~one) | (one & other & (edges.node_ids2 < edges.node_ids1))
    first = np.where(turn, edges.node_ids2, edges.node_ids1)
    second = np.where(turn, edges.node_ids1, edges.node_ids2)
    turned = _take(Edges(first, second, edges.affinities, edges.areas), one | other)
    return _take(turned, unique_rows(turned.node_ids1, turned.node_ids2))


def _classify(graph: ChunkedGraph, edges: Edges, until: int | None) -> tuple[npt.NDArray[np.int8], BoolArray]:
    """Return the kind of each edge, and whether it is active."""
    n = len(edges)
    ids, inverse = np.unique(np.concatenate([edges.node_ids1, edges.node_ids2]), return_inverse=True)
    ancestors = read_ancestor_matrix(graph, ids, until=until)
    one, other = ancestors[inverse[:n]], ancestors[inverse[n:]]
    layers = graph.layout.cross_layers(edges.node_ids1, edges.node_ids2)
    rows = np.arange(n)
    active = one[rows, layers + 1] == other[rows, layers + 1]
    in_chunk = layers == 1
    same_node = one[:, 2] == other[:, 2] if n else np.zeros(0, np.bool_)
    kinds = np.where(in_chunk, np.where(same_node, EdgeKind.IN, EdgeKind.OUT), EdgeKind.CROSS).astype(np.int8)
    return kinds, active
