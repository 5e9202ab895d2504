"""Exact minimum cut between two vertices of an undirected graph with real capacities. Knows no supervoxels.

The solver for integers is Dinic's in :func:`scipy.sparse.csgraph.maximum_flow`, whose capacities have 32 bits. It is
driven by *capacity scaling* (Gabow 1985; Ahuja, Magnanti, Orlin, "Network Flows", section 7.3)::

    capacities           fixed point, 64 bits, unit = 2^-59 of an upper bound of the flow
    a phase              29 leading bits of what is left -> scipy -> flow is taken off all 64 bits
    after a phase        what can still flow <= residual capacity of the cut that the phase found
    the next phase       29 bits of that bound; the last phase is the one whose cut has nothing left: it is exact

So two cuts are told apart down to 2^-59 of their weight, which is finer than sums of doubles. float32 affinities that
lie within 35 binary orders of magnitude of the weight of the cut are represented without any rounding.

Before all that, edges heavier than some cut are contracted: no minimum cut holds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, dijkstra, maximum_flow

from sv_pipeline.algorithms.multicut.graph import components

__all__ = ["MinimumCut", "minimum_cut"]

IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

FIXED_POINT_BITS = 59
"""Residual capacities reach twice a capacity, and capacities twice the bound: 61 bits and a sign."""

LARGEST_FIXED = 1 << (FIXED_POINT_BITS + 1)
"""Twice the bound, at most: an edge of this capacity is in no cut of minimum weight."""

ROUNDING = 1e-9
"""Sums of doubles are taken to be right up to this relative error; only where more is no harm."""

WORTHWHILE = 0.02
"""Contraction goes on while it takes away more than this part of the edges."""

PHASE_BITS = 29
"""Flows and capacities of a phase are at most 2^29, residual capacities at most 2^30: inside int32."""

LARGEST_CAPACITY = 1e290
"""Sums of up to 10^18 capacities stay finite."""


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A cut of minimum weight; of several, the one with the fewest vertices on the source's side."""

    on_source_side: BoolArray
    """Shape (number of vertices,): reachable from the source in the residual graph."""
    weight: float
    """Sum of the capacities that cross the cut."""


def minimum_cut(n_vertices: int, ends: IndexArray, capacities: FloatArray, source: int, sink: int) -> MinimumCut:
    """Cut ``source`` from ``sink`` at the lowest sum of capacities.

    Parameters
    ----------
    n_vertices
        Vertices are 0 .. n_vertices - 1.
    ends
        Undirected edges, shape (n, 2). The capacities of parallel edges add up; self loops are ignored.
    capacities
        Shape (n,), finite, >= 0.
    source, sink
        Two different vertices.

    Raises
    ------
    ValueError
        If ``source`` and ``sink`` are one vertex.
    """
    if source == sink:
        raise ValueError(f"source and sink are one vertex, {source}")
    proper = (ends[:, 0] != ends[:, 1]) & (capacities > 0)
    ends, capacities = ends[proper], np.minimum(capacities[proper], LARGEST_CAPACITY)
    group, bound = _contract_heavy_edges(n_vertices, ends, capacities, source, sink)
    ends = group[ends]
    while True:
        fixed, exact = _fixed_point(capacities, bound)
        on_source_side = _source_side(int(group.max()) + 1, ends, fixed, int(group[source]), int(group[sink]))
        crossing = on_source_side[ends[:, 0]] != on_source_side[ends[:, 1]]
        weight = math.fsum(capacities[crossing])
        # The weight of any cut bounds the flow: a much tighter bound pays off in finer units, where there was rounding.
        if exact or weight > bound / 2:
            return MinimumCut(on_source_side[group], weight)
        bound = weight


def _contract_heavy_edges(
    n_vertices: int, ends: IndexArray, capacities: FloatArray, source: int, sink: int
) -> tuple[IndexArray, float]:
    """Group of each vertex after joining what no minimum cut separates, and an upper bound of the cut's weight.

    An edge that is heavier than some cut is in no minimum cut. On a long thin graph, where the solver would need a
    round per vertex of length, some cut across it is so light that little remains.
    """
    group = np.arange(n_vertices)
    while True:
        pairs, weights = _sum_parallel(group[ends], capacities)
        bound = _upper_bound(int(group.max()) + 1, pairs, weights, int(group[source]), int(group[sink]))
        heavy = weights > bound * (1 + ROUNDING)
        if bound <= 0 or np.count_nonzero(heavy) <= WORTHWHILE * len(heavy):
            return group, bound
        group = components(int(group.max()) + 1, pairs[heavy])[group]


def _upper_bound(n_vertices: int, pairs: IndexArray, weights: FloatArray, source: int, sink: int) -> float:
    """Weight of the lightest cut among: all vertices up to a number of steps from the source; all but the sink."""
    tails, heads = pairs.T
    adjacency = coo_array((np.ones(len(pairs)), (tails, heads)), shape=(n_vertices, n_vertices)).tocsr()
    steps = dijkstra(adjacency, directed=False, indices=source, unweighted=True)
    if np.isinf(steps[sink]):
        return 0.0
    # Edges join vertices of the same or of successive numbers of steps.
    crossing = (steps[tails] != steps[heads]) & np.isfinite(steps[tails])
    nearer = np.minimum(steps[tails], steps[heads])[crossing].astype(np.int64)
    layers = np.bincount(nearer, weights=weights[crossing])[: int(steps[sink])]
    return min(float(layers.min()), float(weights[(pairs == sink).any(axis=1)].sum()))


def _sum_parallel(ends: IndexArray, capacities: FloatArray) -> tuple[IndexArray, FloatArray]:
    """Unique pairs of different vertices, lower first, and the sums of their capacities."""
    proper = ends[:, 0] != ends[:, 1]
    pairs, starts, order = _sorted_pairs(ends[proper])
    if len(starts) == 0:
        return pairs, np.empty(0)
    return pairs[starts], np.add.reduceat(capacities[proper][order], starts)


def _sorted_pairs(ends: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Pairs, lower vertex first, sorted; where each distinct one starts; and the order that sorts them."""
    pairs = np.sort(ends, axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    differs = np.ones(len(pairs), bool)
    differs[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs, np.flatnonzero(differs), order


def _fixed_point(capacities: FloatArray, bound: float) -> tuple[IndexArray, bool]:
    """Capacities as integers of a common unit, and whether those that can matter were not rounded.

    Capacities above the bound are lowered to twice the bound: no cut of minimum weight holds such an edge.
    Rounding goes up: an edge of however small a capacity still is an edge.
    """
    if bound <= 0:
        return np.ones(len(capacities), np.int64), True
    _, exponent = math.frexp(bound)
    scaled = np.ldexp(np.minimum(capacities, 2 * bound), FIXED_POINT_BITS - exponent)
    rounded = np.ceil(scaled)
    return rounded.astype(np.int64), bool((rounded == scaled).all())


def _source_side(n_vertices: int, ends: IndexArray, capacities: IndexArray, source: int, sink: int) -> BoolArray:
    """Vertices reachable from the source in the residual graph of a maximum flow of integers."""
    residual = _residual_graph(n_vertices, ends, capacities)
    remaining = min(_sum(residual[[source]].data), _sum(residual[:, [sink]].data))
    tails = np.repeat(np.arange(n_vertices), np.diff(residual.indptr))
    while True:
        shift = max(0, math.frexp(remaining)[1] - PHASE_BITS)
        phase = _with_data(residual, np.minimum(residual.data >> shift, 1 << PHASE_BITS).astype(np.int32))
        flow = maximum_flow(phase, source, sink, method="dinic").flow
        phase.data -= flow.data
        residual.data -= flow.data.astype(np.int64) << shift
        reached = _reachable(phase, source)
        remaining = _sum(residual.data[reached[tails] & ~reached[residual.indices]])
        if shift == 0 or remaining == 0:
            return _reachable(residual, source)


def _residual_graph(n_vertices: int, ends: IndexArray, capacities: IndexArray) -> csr_array:
    """Both arcs of every edge, sorted by tail and head; parallel edges summed (in integers, so in any order)."""
    shape = (n_vertices, n_vertices)
    proper = ends[:, 0] != ends[:, 1]
    pairs, starts, order = _sorted_pairs(ends[proper])
    capacities = capacities[proper][order]
    if len(starts):
        # Many parallel edges above the bound would overflow; the limit of a single edge serves for their sum as well.
        overflow = np.add.reduceat(capacities.astype(np.float64), starts) > LARGEST_FIXED
        pairs, capacities = pairs[starts], np.where(overflow, LARGEST_FIXED, np.add.reduceat(capacities, starts))
    tails, heads = np.concatenate([pairs, pairs[:, ::-1]]).T.astype(np.int32)
    arcs = coo_array((np.tile(capacities, 2), (tails, heads)), shape=shape).tocsr()
    arcs.sort_indices()
    return arcs


def _with_data(pattern: csr_array, data: npt.NDArray[Any]) -> csr_array:
    return csr_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)


def _reachable(residual: csr_array, source: int) -> BoolArray:
    """Vertices that arcs of positive residual capacity lead to."""
    is_open = residual.data > 0
    starts = np.concatenate([[0], np.cumsum(is_open)])[residual.indptr]
    open_arcs = csr_array((is_open[is_open], residual.indices[is_open], starts), shape=residual.shape)
    reached = np.zeros(residual.shape[0], bool)
    reached[breadth_first_order(open_arcs, source, return_predecessors=False)] = True
    return reached


def _sum(capacities: IndexArray) -> float:
    """Sum as a double, slightly above the true one: 64 bits would overflow at a vertex with many edges."""
    return float(capacities.astype(np.float64).sum()) * (1 + ROUNDING)
