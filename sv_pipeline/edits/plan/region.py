"""Reads the part of objects around the points of a request: supervoxels, their ancestors and their atomic edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.edits.plan.node_cache import NodeCache, ReadEdges
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import read_edges_of_chunks
from sv_pipeline.graph.queries import chunks_touch
from sv_pipeline.grid import Box
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array

__all__ = [
    "Allowance",
    "Region",
    "edges_around",
    "edges_of_chunks",
    "read_region",
    "read_region_within",
    "reread_edges",
]

BoolArray = npt.NDArray[np.bool_]
Allowance = Callable[[int, int], bool]
"""Given a number of nodes and a number of layer 2 chunks, returns whether these nodes, and the edges of these chunks,
may be read."""


@dataclass(frozen=True, eq=False)
class Region:
    """The supervoxels of some roots in the chunks that touch a box of voxels."""

    supervoxels: UInt64Array
    """Supervoxel ids, ascending, shape (n,)."""
    ancestors: UInt64Array
    """Highest ancestor of each supervoxel up to every layer, shape (n, layers + 1); column = layer."""
    edges: Edges
    """Atomic edges with at least one end in the region; each pair once, smaller id first."""
    layers: npt.NDArray[np.int64]
    """Cross layer of each edge."""
    box: Box
    """The box of voxels; the region consists of the chunks that touch it."""
    whole: bool
    """Whether the region holds all supervoxels of its roots."""

    @property
    def layer2(self) -> UInt64Array:
        """Layer 2 nodes of the region, ascending."""
        return np.unique(self.ancestors[:, 2])

    @cached_property
    def inside(self) -> BoolArray:
        """Mask of the edges that have both ends in the region."""
        return np.asarray((self._index >= 0).all(axis=1))

    @cached_property
    def _index(self) -> npt.NDArray[np.int64]:
        return find(self.supervoxels, self.edges.pairs)

    @cached_property
    def active(self) -> BoolArray:
        """Mask of the edges that are active; False where an end is outside of the region."""
        index, inside = self._index, self.inside
        above = self.ancestors[np.where(index >= 0, index, 0), (self.layers + 1)[:, None]]
        return np.asarray(inside & (above[:, 0] == above[:, 1])) if len(index) else np.zeros(0, np.bool_)

    def ancestors_of(self, supervoxels: npt.ArrayLike, layer: int) -> UInt64Array:
        """Return the highest ancestor, up to a layer, of supervoxels of the region; any shape."""
        return np.asarray(self.ancestors[find(self.supervoxels, supervoxels), layer], np.uint64)


def read_region(graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, box: Box) -> Region:
    """Read the supervoxels of roots in the chunks that touch a box of voxels, and the edges of these chunks."""
    region = read_region_within(graph, cache, roots, box, lambda *_: True)
    assert region is not None
    return region


def read_region_within(
    graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, box: Box, allowed: Allowance
) -> Region | None:
    """Read a region as :func:`read_region` does, but return None, before too much is read, if it is too large."""
    above = _walk_down(graph, cache, roots, box, allowed)
    if above is None:
        return None
    # The chunks are known at layer 2 already, so their edges can be read while the supervoxels are.
    chunks = graph.layout.coordinates(above.nodes)
    chunks = chunks[unique_rows(*chunks.T)]
    if not allowed(len(above.nodes), len(chunks)):
        return None
    with Helpers() as pool:
        edges = _edges_at_hand(graph, chunks, cache)
        reading = None if edges is not None else pool.submit(edges_of_chunks, graph, chunks, cache)
        # These include rows that plans need next: the nodes that cross edges lead to.
        cache.fetch(np.concatenate([above.nodes, cache.known().edges.edges[:, 1]]))
        supervoxels, ancestors = _last_step(graph, cache, above)
        if reading is not None:
            edges = reading.result()
    assert edges is not None
    return Region(supervoxels, ancestors, *_touching(graph, supervoxels, edges), box, above.whole)


def reread_edges(graph: ChunkedGraph, cache: NodeCache, region: Region) -> Region:
    """Return the region with its edges read again, since edges to other objects may have changed."""
    coordinates = np.unique(graph.layout.coordinates(region.supervoxels), axis=0)
    edges = edges_of_chunks(graph, coordinates, cache)
    touching, layers = _touching(graph, region.supervoxels, edges)
    return replace(region, edges=touching, layers=layers)


def _touching(graph: ChunkedGraph, supervoxels: UInt64Array, edges: Edges) -> tuple[Edges, npt.NDArray[np.int64]]:
    """Return the edges that touch the supervoxels, and their cross layers."""
    ends = edges.pairs
    touching = (find(supervoxels, ends) >= 0).any(axis=1) if len(ends) else np.zeros(0, np.bool_)
    edges = edges.take(touching)
    return edges, graph.layout.cross_layers(edges.node_ids1, edges.node_ids2)


@dataclass(frozen=True, eq=False)
class _Reached:
    """Nodes that a walk down from roots has reached, and their ancestors."""

    nodes: UInt64Array
    """Node ids, shape (n,)."""
    ancestors: UInt64Array
    """Highest ancestor of each node up to every layer, shape (n, layers + 1)."""
    whole: bool = True
    """Whether the walk has left no node out."""


def _step_down(graph: ChunkedGraph, cache: NodeCache, reached: _Reached) -> _Reached:
    """Go from nodes to their children."""
    below = cache.children(reached.nodes)
    owner_layers = np.repeat(graph.layout.layers(reached.nodes), below.lengths)
    ancestors = np.repeat(reached.ancestors, below.lengths, axis=0)
    layers = graph.layout.layers(below.values)
    columns = np.arange(graph.n_layers + 1)
    between = (columns >= layers[:, None]) & (columns < owner_layers[:, None])
    return _Reached(below.values, np.where(between, below.values[:, None], ancestors))


def _walk_down(
    graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, box: Box, allowed: Allowance
) -> _Reached | None:
    """Walk from roots down to the layer 2 nodes whose chunks touch a box; None if that takes too many nodes."""
    nodes = np.unique(roots)
    ancestors = np.zeros((len(nodes), graph.n_layers + 1), np.uint64)
    ancestors[:, graph.n_layers] = nodes
    reached, found, whole = _Reached(nodes, ancestors), [], True
    while len(reached.nodes):
        at_end = graph.layout.layers(reached.nodes) == 2
        found.append(_Reached(reached.nodes[at_end], reached.ancestors[at_end]))
        if not allowed(sum(len(r.nodes) for r in found) + int(np.count_nonzero(~at_end)), 0):
            return None
        below = _step_down(graph, cache, _Reached(reached.nodes[~at_end], reached.ancestors[~at_end]))
        keep = chunks_touch(graph, below.nodes, box)
        whole &= bool(keep.all())
        reached = _Reached(below.nodes[keep], below.ancestors[keep])
    parts = np.concatenate([r.nodes for r in found]), np.concatenate([r.ancestors for r in found])
    return _Reached(*parts, whole)


def _last_step(graph: ChunkedGraph, cache: NodeCache, above: _Reached) -> tuple[UInt64Array, UInt64Array]:
    """Return the supervoxels of layer 2 nodes, ascending, and their ancestors, shape (n, layers + 1)."""
    reached = _step_down(graph, cache, above)
    order = np.argsort(reached.nodes)
    return reached.nodes[order], reached.ancestors[order]


def edges_around(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], cache: NodeCache) -> Edges:
    """Return the edges of layer 2 chunks, coordinates of shape (n, 3).

    If the edit has read the edges of all these chunks last, they are not read again.
    """
    edges = _edges_at_hand(graph, coordinates, cache)
    return edges_of_chunks(graph, coordinates, cache) if edges is None else edges


def _edges_at_hand(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], cache: NodeCache) -> Edges | None:
    """Return the edges of layer 2 chunks if those that were read last include them."""
    read, wanted = cache.read_edges, set(map(tuple, coordinates.tolist()))
    if read is None or not read.chunks.issuperset(wanted):
        return None
    if read.chunks == wanted:
        return read.edges
    chunks = graph.layout.chunk_ids(2, graph.layout.coordinates(read.edges.pairs))
    return read.edges.take((find(np.sort(graph.layout.chunk_ids(2, coordinates)), chunks) >= 0).any(axis=1))


def edges_of_chunks(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], cache: NodeCache) -> Edges:
    """Read the atomic edges of layer 2 chunks, coordinates of shape (n, 3), from edge files and from edits.

    Each pair is returned once, smaller id first, without loops.
    """
    edges, latest = read_edges_of_chunks(graph, coordinates)
    cache.note(latest)
    cache.read_edges = ReadEdges(set(map(tuple, coordinates.tolist())), edges)
    return edges
