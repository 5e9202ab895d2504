"""Finds what still connects two sides after a planned cut, for messages: a path between them, and voxels on it.

The path is a sequence of layer 2 nodes as they will be after the edit: each is one piece of its chunk, and its cross
edges lead to the connected pieces of other chunks. Where the path leaves the region and where it returns, the strongest
atomic edge is searched for, and a voxel where its two supervoxels touch. Reads only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sv_pipeline.algorithms.components import find
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import Region, edges_of_chunks
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array

__all__ = ["Bridge", "describe_way", "find_way"]

IntArray = npt.NDArray[np.int64]
MAX_NODES = 50_000
"""Number of layer 2 nodes after which the search for a path is given up."""
MAX_STEPS = 1_000
"""Longest path that is searched for, in steps from one layer 2 node to the next."""


@dataclass(frozen=True)
class Bridge:
    """A connection between two chunks: two supervoxels, and the place where they touch."""

    supervoxels: tuple[int, int]
    """The two supervoxels; (0, 0) if no atomic edge is known."""
    voxel: tuple[int, int, int]
    """A voxel (x, y, z) where they touch; the middle of the first one's chunk if that cannot be determined."""
    exact: bool
    """Whether ``voxel`` is the place of contact, rather than the middle of a chunk."""

    def __str__(self) -> str:
        where = f"{'' if self.exact else 'near '}{self.voxel}"
        return (
            f"{where} (supervoxels {self.supervoxels[0]} and {self.supervoxels[1]})" if any(self.supervoxels) else where
        )


def describe_way(
    graph: ChunkedGraph,
    cache: NodeCache,
    plan: HierarchyPlan,
    region: Region,
    sources: UInt64Array,
    sinks: UInt64Array,
) -> str:
    """Describe in one sentence where the two sides are still connected: voxels along a path between them."""
    way = find_way(graph, cache, plan, region, sources, sinks)
    if way is None:
        return f"the path between them outside of the region {region.box} is too long to be followed."
    outside = find(region.layer2, way) < 0
    outside &= ~np.isin(way, plan.new.ids)
    crossings = np.flatnonzero(outside[1:] != outside[:-1])
    if not len(crossings):
        crossings = np.arange(len(way) - 1)[: 1 if len(way) > 1 else 0]
    picked = np.unique(crossings[[0, -1]]).tolist() if len(crossings) else []
    bridges = [_bridge(graph, cache, plan, int(way[i]), int(way[i + 1])) for i in picked]
    if not bridges:
        return f"they are connected inside chunk {tuple(graph.layout.coordinates(way[:1])[0].tolist())}."
    return f"a path of {len(way)} pieces in chunks connects them, through {' and '.join(map(str, bridges))}."


def find_way(
    graph: ChunkedGraph,
    cache: NodeCache,
    plan: HierarchyPlan,
    region: Region,
    sources: UInt64Array,
    sinks: UInt64Array,
) -> UInt64Array | None:
    """Find a shortest path of layer 2 nodes, as they will be, from the sources to the sinks; None if none is found."""
    level = np.unique(_layer2_after(graph, plan, region, sources))
    goals = np.unique(_layer2_after(graph, plan, region, sinks))
    neighbours = _neighbours(graph, cache, plan)
    levels, seen = [(level, np.zeros(len(level), np.int64))], level
    while not (reached := np.flatnonzero(np.isin(level, goals))).size:
        owners, partners = neighbours(level)
        fresh = ~np.isin(partners, seen)
        level, first = np.unique(partners[fresh], return_index=True)
        if not len(level) or len(seen) > MAX_NODES or len(levels) > MAX_STEPS:
            return None
        levels.append((level, find(levels[-1][0], owners[fresh][first])))
        seen = np.concatenate([seen, level])
    at, way = int(reached[0]), []
    for nodes, before in reversed(levels):
        way.append(nodes[at])
        at = int(before[at])
    return np.array(way[::-1], np.uint64)


def _layer2_after(graph: ChunkedGraph, plan: HierarchyPlan, region: Region, supervoxels: UInt64Array) -> UInt64Array:
    old = region.ancestors_of(supervoxels, 2)
    new = plan.new_ancestors(supervoxels, np.full(len(supervoxels), 2))
    return np.where(graph.layout.layers(new) == 2, new, old)


def _neighbours(
    graph: ChunkedGraph, cache: NodeCache, plan: HierarchyPlan
) -> Callable[[UInt64Array], tuple[UInt64Array, UInt64Array]]:
    """Return a function from layer 2 nodes, ascending, to the owners and partners of all their cross edges."""
    layer2 = graph.layout.layers(plan.new.edges.edges[:, 0]) == 2
    planned = np.concatenate([plan.new.edges.edges[layer2], plan.rewritten.edges])

    def edges(nodes: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
        stored = nodes[~np.isin(nodes, plan.new.ids)]
        cache.fetch(stored)
        found = [cache.known().edges_of(stored).edges, planned[np.isin(planned[:, 0], nodes)]]
        pairs = np.concatenate(found)
        pairs = pairs[find(plan.retired, pairs[:, 1]) < 0]
        pairs = np.unique(pairs, axis=0)  # of several shortest paths, the same is found whatever else was read
        return pairs[:, 0], pairs[:, 1]

    return edges


# -- places -----------------------------------------------------------------------------------------------------------


def _bridge(graph: ChunkedGraph, cache: NodeCache, plan: HierarchyPlan, one: int, other: int) -> Bridge:
    """Find the strongest atomic edge between two layer 2 nodes, and a voxel where its supervoxels touch."""
    sides = [_children(cache, plan, node) for node in (one, other)]
    coordinates = graph.layout.coordinates(np.array([one, other], np.uint64))
    edges = edges_of_chunks(graph, np.unique(coordinates, axis=0), cache)
    pairs = edges.pairs
    forward, backward = (
        np.isin(pairs[:, i], sides[0]) & np.isin(pairs[:, 1 - i], sides[1]) for i in (0, 1)
    )  # pairs hold the smaller id first, whichever side it is on
    between = np.flatnonzero(forward | backward)
    supervoxels = np.zeros(2, np.uint64)
    if len(between):
        best = between[np.argmax(edges.affinities[between])]
        supervoxels = pairs[best] if forward[best] else pairs[best, ::-1]
    voxel = _contact(graph, coordinates, supervoxels) if len(between) else None
    if voxel is None:
        box = graph.grid.box(2, coordinates[0])
        middle = (np.asarray(box.start) + np.asarray(box.stop)) // 2
        return Bridge(_named(supervoxels), _triple(middle), exact=False)
    return Bridge(_named(supervoxels), _triple(voxel), exact=True)


def _named(supervoxels: UInt64Array) -> tuple[int, int]:
    return int(supervoxels[0]), int(supervoxels[1])


def _triple(voxel: IntArray) -> tuple[int, int, int]:
    return int(voxel[0]), int(voxel[1]), int(voxel[2])


def _children(cache: NodeCache, plan: HierarchyPlan, node: int) -> UInt64Array:
    at = np.flatnonzero(plan.new.ids == node)
    if len(at):
        return plan.new.children.values[plan.new.children.offsets[at[0]] : plan.new.children.offsets[at[0] + 1]]
    return cache.children(np.array([node], np.uint64)).values


def _contact(graph: ChunkedGraph, coordinates: IntArray, supervoxels: UInt64Array) -> IntArray | None:
    """Find a voxel (x, y, z) of the first supervoxel that is as near as possible to the second, at the shared face.

    Returns None if the chunks do not touch, the graph has no fork, or a supervoxel has no voxel at the face.
    """
    step = coordinates[1] - coordinates[0]
    if np.abs(step).max() != 1 or not graph.fork.exists():
        return None
    box = graph.grid.box(2, coordinates[0])
    start = np.select([step > 0, step < 0], [np.asarray(box.stop) - 1, np.asarray(box.start) - 1], box.start)
    stop = np.select([step > 0, step < 0], [np.asarray(box.stop) + 1, np.asarray(box.start) + 1], box.stop)
    seam = Box.of(start, stop)
    volume = graph.fork.open()
    labels = np.asarray(volume[seam.slices].read().result(), np.uint64)
    one, other = (np.argwhere(labels == supervoxel) for supervoxel in supervoxels)
    if not len(one) or not len(other):
        return None
    distances, _ = cKDTree(other).query(one)
    touch = one[distances == distances.min()]
    # The voxel in the middle of these lies inside the contact, not at its edge.
    return np.asarray(touch[np.argmin(np.abs(touch - touch.mean(axis=0)).sum(axis=1))] + start, np.int64)
