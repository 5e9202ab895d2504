"""Path augmentation: joins the points of each side by shortest paths, so that a cut keeps them together. Cuts nothing.

Without it, a few points on a thin neurite would be cut out of it one by one, because the minimum cut of a graph often
lies right around a point. The paths extend the points to the process that they evidently mark. When paths of the two
sides share vertices::

    no path without a supervoxel of the other side   ->  SeparatedSide
    each side is connected without shared vertices   ->  their edges are dropped from both sides
    otherwise the side with the shorter paths (geometric mean) keeps them, the other side goes around them
    no way around                                    ->  the other side keeps its paths, the first goes around
    no way around again                              ->  CrossingPaths
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from sv_pipeline.algorithms.components import components
from sv_pipeline.algorithms.multicut.graph import BoolArray, ContractedGraph, IndexArray

__all__ = ["CrossingPaths", "JoinedSides", "SeparatedSide", "Side", "join_sides"]

Side = Literal["source", "sink"]

EPSILON = float(np.finfo(np.float64).eps)
"""The length of an edge is 1 / (affinity + EPSILON), so that an edge of affinity 0 is long, but not infinitely long."""


@dataclass(frozen=True, eq=False)
class JoinedSides:
    """Edges between vertices, shape (n, 2), that connect each side; the two sides share no vertex."""

    source_edges: IndexArray
    sink_edges: IndexArray


@dataclass(frozen=True, eq=False)
class SeparatedSide:
    """The points of a side are not connected without vertices of the other side."""

    side: Side
    vertices: IndexArray
    """Points without a path to the first point of their side."""


@dataclass(frozen=True, eq=False)
class CrossingPaths:
    """Each side needs vertices that the other side needs too."""

    vertices: IndexArray
    """Vertices on the shortest paths of both sides."""


@dataclass(frozen=True, eq=False)
class _Paths:
    """The shortest paths between all pairs of vertices of one side."""

    ends_of_paths: IndexArray
    """Vertices of the side."""
    edges: IndexArray
    """Edges of all paths, shape (n, 2), unique."""
    mean_length: float
    """Geometric mean of the path lengths over the pairs; 0 without a pair."""

    def vertices(self) -> IndexArray:
        return np.union1d(self.ends_of_paths, self.edges)

    def without(self, shared: IndexArray) -> IndexArray:
        """Return the edges that touch none of the vertices ``shared``."""
        return self.edges[~np.isin(self.edges, shared).any(axis=1)]


def join_sides(
    graph: ContractedGraph, sources: IndexArray, sinks: IndexArray
) -> JoinedSides | SeparatedSide | CrossingPaths:
    """Find the shortest paths inside each side, and keep them apart from those of the other side.

    Parameters
    ----------
    graph
        Contracted graph; the length of an edge is 1 / affinity.
    sources, sinks
        Vertices of each side, unique; no vertex is in both.
    """
    source_paths = _shortest_paths(graph, sources, avoid=sinks)
    if isinstance(source_paths, _NoPath):
        return SeparatedSide("source", source_paths.vertices)
    sink_paths = _shortest_paths(graph, sinks, avoid=sources)
    if isinstance(sink_paths, _NoPath):
        return SeparatedSide("sink", sink_paths.vertices)

    shared = np.intersect1d(source_paths.vertices(), sink_paths.vertices())
    source_edges, sink_edges = source_paths.without(shared), sink_paths.without(shared)
    if _holds_together(graph, sources, source_edges) and _holds_together(graph, sinks, sink_edges):
        return JoinedSides(source_edges, sink_edges)

    if source_paths.mean_length <= sink_paths.mean_length:
        attempts: tuple[Side, ...] = ("sink", "source")
    else:
        attempts = ("source", "sink")
    for rerouted in attempts:
        if rerouted == "sink":
            paths = _shortest_paths(graph, sinks, avoid=source_paths.vertices())
            if isinstance(paths, _Paths):
                return JoinedSides(source_paths.edges, paths.edges)
        else:
            paths = _shortest_paths(graph, sources, avoid=sink_paths.vertices())
            if isinstance(paths, _Paths):
                return JoinedSides(paths.edges, sink_paths.edges)
    return CrossingPaths(shared)


@dataclass(frozen=True, eq=False)
class _NoPath:
    vertices: IndexArray


def _shortest_paths(graph: ContractedGraph, side: IndexArray, avoid: IndexArray) -> _Paths | _NoPath:
    """Find the shortest paths between all pairs of ``side`` that use no vertex of ``avoid``."""
    if len(side) < 2:
        return _Paths(side, np.empty((0, 2), np.int64), 0.0)
    allowed = np.ones(graph.n_vertices, bool)
    allowed[avoid] = False
    lengths = _lengths(graph, allowed)
    edges, logarithms = [np.empty((0, 2), np.int64)], [0.0]
    for i, start in enumerate(side[:-1]):
        others = side[i + 1 :]
        distances, predecessors = dijkstra(lengths, indices=start, return_predecessors=True)
        unreachable = np.isinf(distances[others])
        if unreachable.any():
            return _NoPath(others[unreachable])
        edges.extend(_steps_back(predecessors, others, start))
        logarithms.extend(np.log(distances[others]))
    n_pairs = len(logarithms) - 1
    mean_length = math.exp(math.fsum(logarithms) / n_pairs) if n_pairs else 0.0
    return _Paths(side, np.unique(np.sort(np.concatenate(edges), axis=1), axis=0), mean_length)


def _steps_back(predecessors: npt.NDArray[np.int32], ends: IndexArray, start: int) -> Iterator[IndexArray]:
    """Yield the edges of all paths from ``ends`` back to ``start``: one array per step, for all paths at once."""
    while len(ends):
        previous = predecessors[ends].astype(np.int64)
        yield np.stack([previous, ends], axis=1)
        ends = np.unique(previous[previous != start])


def _lengths(graph: ContractedGraph, allowed: BoolArray) -> csr_array:
    """Return the lengths of the edges between allowed vertices in both directions; the shortest of parallel edges."""
    inside = allowed[graph.ends].all(axis=1)
    ends = np.sort(graph.ends[inside], axis=1)
    length = 1.0 / (graph.capacities[inside] + EPSILON)
    order = np.lexsort((length, ends[:, 1], ends[:, 0]))
    ends, length = ends[order], length[order]
    first = np.ones(len(ends), bool)
    first[1:] = (ends[1:] != ends[:-1]).any(axis=1)
    ends, length = ends[first], length[first]
    tails, heads = np.concatenate([ends, ends[:, ::-1]]).T
    return csr_array((np.tile(length, 2), (tails, heads)), shape=(graph.n_vertices, graph.n_vertices))


def _holds_together(graph: ContractedGraph, side: IndexArray, edges: IndexArray) -> bool:
    component = components(graph.n_vertices, edges)[side]
    return bool((component == component[0]).all())
