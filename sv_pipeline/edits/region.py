"""The part of objects around the points of a request: supervoxels, their ancestors, their atomic edges. Reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.edits.nodes import NodeCache
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import Edges, read_edges_many
from sv_pipeline.graph.edges import read_timed_edges_of_edits
from sv_pipeline.graph.queries import chunks_touch
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array

__all__ = ["Region", "distinct_edges", "edges_of_chunks", "read_region", "reread_edges"]

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Region:
    """Supervoxels of some roots in the chunks that touch a box."""

    supervoxels: UInt64Array
    """Ascending, shape (n,)."""
    ancestors: UInt64Array
    """Highest ancestor of each up to every layer, shape (n, layers + 1)."""
    edges: Edges
    """Atomic edges with at least one end in the region; each pair once, smaller id first."""
    layers: npt.NDArray[np.int64]
    """Their cross layers."""

    @property
    def inside(self) -> BoolArray:
        """Which edges have both ends in the region."""
        return np.asarray((self._index >= 0).all(axis=1))

    @property
    def _index(self) -> npt.NDArray[np.int64]:
        return find(self.supervoxels, np.stack([self.edges.node_ids1, self.edges.node_ids2], axis=-1))

    @property
    def active(self) -> BoolArray:
        """Which edges join their ends; False where an end is outside."""
        index, inside = self._index, self.inside
        above = self.ancestors[np.where(index >= 0, index, 0), (self.layers + 1)[:, None]]
        return np.asarray(inside & (above[:, 0] == above[:, 1])) if len(index) else np.zeros(0, np.bool_)

    def ancestors_of(self, supervoxels: npt.ArrayLike, layer: int) -> UInt64Array:
        """Highest ancestor up to a layer of supervoxels of the region."""
        return np.asarray(self.ancestors[find(self.supervoxels, supervoxels), layer], np.uint64)


def read_region(graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, box: Box) -> Region:
    """Walk down from roots, pruned by a box of voxels; then read the edges of the chunks that were reached."""
    return _with_edges(graph, cache, *_walk_down(graph, cache, roots, box))


def reread_edges(graph: ChunkedGraph, cache: NodeCache, region: Region) -> Region:
    """The same region with its edges as they are now: those to other objects may have changed."""
    return _with_edges(graph, cache, region.supervoxels, region.ancestors)


def _with_edges(graph: ChunkedGraph, cache: NodeCache, supervoxels: UInt64Array, ancestors: UInt64Array) -> Region:
    chunks = np.unique(graph.layout.chunks(supervoxels))
    edges = edges_of_chunks(graph, graph.layout.coordinates(chunks), cache)
    ends = np.stack([edges.node_ids1, edges.node_ids2], axis=-1)
    touching = (find(supervoxels, ends) >= 0).any(axis=1) if len(ends) else np.zeros(0, np.bool_)
    edges = Edges(*(array[touching] for array in edges.arrays))
    return Region(supervoxels, ancestors, edges, graph.layout.cross_layers(edges.node_ids1, edges.node_ids2))


def _walk_down(graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, box: Box) -> tuple[UInt64Array, UInt64Array]:
    """Supervoxels below roots, ascending, and their ancestor matrix."""
    n_layers = graph.n_layers
    nodes = np.unique(roots)
    rows = np.zeros((len(nodes), n_layers + 1), np.uint64)
    rows[:, n_layers] = nodes
    found, found_rows = [np.zeros(0, np.uint64)], [np.zeros((0, n_layers + 1), np.uint64)]
    columns = np.arange(n_layers + 1)
    while len(nodes):
        below = cache.children(nodes)
        owner_layers = np.repeat(graph.layout.layers(nodes), below.lengths)
        rows, nodes = np.repeat(rows, below.lengths, axis=0), below.values
        keep = chunks_touch(graph, nodes, box)
        rows, nodes, owner_layers = rows[keep], nodes[keep], owner_layers[keep]
        layers = graph.layout.layers(nodes)
        between = (columns >= layers[:, None]) & (columns < owner_layers[:, None])
        rows = np.where(between, nodes[:, None], rows)
        ends = layers == 1
        found.append(nodes[ends])
        found_rows.append(rows[ends])
        nodes, rows = nodes[~ends], rows[~ends]
    supervoxels, matrix = np.concatenate(found), np.concatenate(found_rows)
    order = np.argsort(supervoxels)
    return supervoxels[order], matrix[order]


def edges_of_chunks(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], cache: NodeCache) -> Edges:
    """Atomic edges of layer 2 chunks (n, 3), of files and of edits; each pair once, smaller id first, no loops."""
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read_timed_edges_of_edits, graph, coordinates)
        files = read_edges_many(graph.edges_url, coordinates)
        parts = [part for file in files for part in (file.in_, file.between, file.cross)]
        of_edits, latest = reading.result()
    parts.append(of_edits)
    cache.note(latest)
    return distinct_edges(parts)


def distinct_edges(parts: list[Edges]) -> Edges:
    """Each pair once, smaller id first, no loops; of the same pair the largest affinity counts."""
    one, other, affinities, areas = (np.concatenate(arrays) for arrays in zip(*(p.arrays for p in parts), strict=True))
    low, high = np.minimum(one, other), np.maximum(one, other)
    # Of the same pair the largest affinity counts: inf holds, whatever else is said.
    at = unique_rows(low, high, -affinities)
    at = at[unique_rows(low[at], high[at])]
    at = at[low[at] != high[at]]
    return Edges(low[at], high[at], affinities[at], areas[at])
