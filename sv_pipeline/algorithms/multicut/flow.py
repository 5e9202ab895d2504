"""Exact minimum cut between two vertices of an undirected graph with real capacities. Knows no supervoxels.

The solver is Dinic's algorithm in :func:`scipy.sparse.csgraph.maximum_flow`, whose integer capacities have 32 bits. It
is driven by *capacity scaling* (Gabow 1985; Ahuja, Magnanti, Orlin, "Network Flows", section 7.3)::

    capacities           fixed point, 64 bits, unit = 2^-59 of an upper bound of the flow
    one phase            29 leading bits of the remaining capacity -> scipy -> flow is subtracted from all 64 bits
    after a phase        remaining flow <= residual capacity of the cut that the phase found
    next phase           29 bits of that bound; the phase whose cut has no residual capacity is the last: it is exact

So two cuts are distinguished if they differ by 2^-59 of their weight, which is finer than sums of doubles. float32
affinities within 35 binary orders of magnitude of the weight of the cut are represented without rounding.

Before that, edges heavier than some cut are contracted, because no minimum cut contains them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, dijkstra, maximum_flow

from sv_pipeline.algorithms.components import components

__all__ = ["MinimumCut", "minimum_cut"]

IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

FIXED_POINT_BITS = 59
"""Residual capacities reach twice a capacity, and capacities twice the bound: this takes 61 bits and a sign."""

LARGEST_FIXED = 1 << (FIXED_POINT_BITS + 1)
"""At most twice the bound: no cut of minimum weight contains an edge of this capacity."""

ROUNDING = 1e-9
"""Relative error that sums of doubles are assumed to have at most; used only where a larger error does no harm."""

WORTHWHILE = 0.02
"""Contraction is repeated while it removes more than this fraction of the edges."""

PHASE_BITS = 29
"""Flows and capacities of a phase are at most 2^29, residual capacities at most 2^30: inside int32."""

LARGEST_CAPACITY = 1e290
"""Limit of a capacity, so that sums of up to 10^18 capacities stay finite."""


@dataclass(frozen=True, eq=False)
class MinimumCut:
    """A cut of minimum weight; of several, the one with the fewest vertices on the side of the source."""

    on_source_side: BoolArray
    """Whether each vertex is reachable from the source in the residual graph; shape (number of vertices,)."""
    weight: float
    """Sum of the capacities that cross the cut."""


def minimum_cut(n_vertices: int, ends: IndexArray, capacities: FloatArray, source: int, sink: int) -> MinimumCut:
    """Cut ``source`` from ``sink`` at the lowest sum of capacities.

    Parameters
    ----------
    n_vertices
        Number of vertices; they are 0 .. n_vertices - 1.
    ends
        Undirected edges, shape (n, 2). The capacities of parallel edges add up; self loops are ignored.
    capacities
        Capacities of the edges, shape (n,), finite, >= 0.
    source, sink
        Two different vertices.

    Raises
    ------
    ValueError
        If ``source`` and ``sink`` are the same vertex.
    """
    if source == sink:
        raise ValueError(f"source and sink are the same vertex, {source}")
    proper = (ends[:, 0] != ends[:, 1]) & (capacities > 0)
    ends, capacities = ends[proper], np.minimum(capacities[proper], LARGEST_CAPACITY)
    group, bound = _contract_heavy_edges(n_vertices, ends, capacities, source, sink)
    ends = group[ends]
    while True:
        fixed, exact = _fixed_point(capacities, bound)
        on_source_side = _source_side(int(group.max()) + 1, ends, fixed, int(group[source]), int(group[sink]))
        crossing = on_source_side[ends[:, 0]] != on_source_side[ends[:, 1]]
        weight = math.fsum(capacities[crossing])
        # The weight of any cut bounds the flow. If rounding occurred, a much tighter bound allows finer units.
        if exact or weight > bound / 2:
            return MinimumCut(on_source_side[group], weight)
        bound = weight


def _contract_heavy_edges(
    n_vertices: int, ends: IndexArray, capacities: FloatArray, source: int, sink: int
) -> tuple[IndexArray, float]:
    """Contract edges that are in no minimum cut; return the group of each vertex and an upper bound of the weight.

    An edge that is heavier than some cut is in no minimum cut. On a long thin graph, where the solver would need a
    round per vertex of length, some cut across it is so light that only little remains after the contraction.
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
    """Return the lightest of these cuts: all vertices up to a number of steps from the source, and all but the sink."""
    tails, heads = pairs.T
    steps = dijkstra(_both_arcs(n_vertices, pairs, np.ones(len(pairs))), indices=source, unweighted=True)
    if np.isinf(steps[sink]):
        return 0.0
    # Each edge joins vertices whose numbers of steps are equal or differ by one.
    crossing = (steps[tails] != steps[heads]) & np.isfinite(steps[tails])
    nearer = np.minimum(steps[tails], steps[heads])[crossing].astype(np.int64)
    layers = np.bincount(nearer, weights=weights[crossing])[: int(steps[sink])]
    return min(float(layers.min()), float(weights[(pairs == sink).any(axis=1)].sum()))


def _sum_parallel(ends: IndexArray, capacities: FloatArray) -> tuple[IndexArray, FloatArray]:
    """Return unique pairs of different vertices, lower first, and the sums of their capacities."""
    proper = ends[:, 0] != ends[:, 1]
    pairs, starts, order = _sorted_pairs(ends[proper])
    if len(starts) == 0:
        return pairs, np.empty(0)
    return pairs[starts], np.add.reduceat(capacities[proper][order], starts)


def _sorted_pairs(ends: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Return the sorted pairs, lower vertex first, the start of each distinct pair, and the sorting order."""
    pairs = np.sort(ends, axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    differs = np.ones(len(pairs), bool)
    differs[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs, np.flatnonzero(differs), order


def _fixed_point(capacities: FloatArray, bound: float) -> tuple[IndexArray, bool]:
    """Convert capacities to integers of a common unit; also return whether no relevant capacity was rounded.

    Capacities above the bound are lowered to twice the bound, because no cut of minimum weight contains such an edge.
    Values are rounded up, so that an edge of any small capacity remains an edge.
    """
    if bound <= 0:
        return np.ones(len(capacities), np.int64), True
    _, exponent = math.frexp(bound)
    scaled = np.ldexp(np.minimum(capacities, 2 * bound), FIXED_POINT_BITS - exponent)
    rounded = np.ceil(scaled)
    return rounded.astype(np.int64), bool((rounded == scaled).all())


def _source_side(n_vertices: int, ends: IndexArray, capacities: IndexArray, source: int, sink: int) -> BoolArray:
    """Return the vertices reachable from the source in the residual graph of a maximum integer flow."""
    residual = _residual_graph(n_vertices, ends, capacities)
    starts = residual.indptr
    # Both arcs of an edge have the same capacity, so what can leave the sink is what can reach it.
    remaining = min(_sum(residual.data[starts[end] : starts[end + 1]]) for end in (source, sink))
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
    """Return both arcs of every edge, sorted by tail and head. Parallel edges are summed as integers, in any order."""
    proper = ends[:, 0] != ends[:, 1]
    pairs, starts, order = _sorted_pairs(ends[proper])
    capacities = capacities[proper][order]
    if len(starts):
        # Sums of many parallel edges above the bound would overflow; they are limited like a single edge.
        overflow = np.add.reduceat(capacities.astype(np.float64), starts) > LARGEST_FIXED
        pairs, capacities = pairs[starts], np.where(overflow, LARGEST_FIXED, np.add.reduceat(capacities, starts))
    return _both_arcs(n_vertices, pairs, capacities)


def _both_arcs(n_vertices: int, pairs: IndexArray, data: npt.NDArray[Any]) -> csr_array:
    """Return a sparse matrix with both arcs of distinct edges, sorted by tail and head."""
    tails, heads = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((heads, tails))
    starts = np.searchsorted(tails[order], np.arange(n_vertices + 1))
    arcs = np.tile(data, 2)[order], heads[order].astype(np.int32), starts.astype(np.int32)
    return csr_array(arcs, shape=(n_vertices, n_vertices))


def _with_data(pattern: csr_array, data: npt.NDArray[Any]) -> csr_array:
    return csr_array((data, pattern.indices, pattern.indptr), shape=pattern.shape)


def _reachable(residual: csr_array, source: int) -> BoolArray:
    """Return the vertices that are reachable along arcs of positive residual capacity."""
    is_open = residual.data > 0
    starts = np.concatenate([[0], np.cumsum(is_open)])[residual.indptr]
    open_arcs = csr_array((is_open[is_open], residual.indices[is_open], starts), shape=residual.shape)
    reached = np.zeros(residual.shape[0], bool)
    reached[breadth_first_order(open_arcs, source, return_predecessors=False)] = True
    return reached


def _sum(capacities: IndexArray) -> float:
    """Return the sum as a double slightly above the exact value; 64-bit integers could overflow at large vertices."""
    return float(capacities.astype(np.float64).sum()) * (1 + ROUNDING)
