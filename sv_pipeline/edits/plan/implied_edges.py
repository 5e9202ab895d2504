"""Finds the implied edges of a merge: edges that become active because their ends get a common ancestor. Reads only.

An atomic edge of cross layer ``l`` is active if and only if its ends have one ancestor at layer ``l + 1``. When a merge
puts nodes that had different parents under one new node of layer ``l + 1``, all edges of cross layer ``l`` between them
become active by this rule, wherever they are. They change the cross edges of nodes, but no parents. Edges inside a
chunk (``l`` = 1) change no row; still the merge makes them active, and its undo makes them inactive.

The edges are found by walking down both sides at once, keeping only nodes that have a node of the other side nearby: in
a neighbouring chunk for edges in files, up to a few chunks farther for edges that users have added.
"""

from __future__ import annotations

import itertools
from functools import cache as cached

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, same_rows, unique_rows
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.node_cache import KnownNodes, NodeCache
from sv_pipeline.edits.plan.region import edges_around
from sv_pipeline.edits.requests import MAX_CHUNKS_APART
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import read_timed_edges_of_edits
from sv_pipeline.ids import UInt64Array

__all__ = ["implied_edges"]

IntArray = npt.NDArray[np.int64]

FEW_NODES = 700
"""Number of nodes up to which all pairs are compared; of more, only those in neighbouring chunks."""


def implied_edges(
    graph: ChunkedGraph,
    cache: NodeCache,
    plan: HierarchyPlan,
    activated: UInt64Array,
) -> tuple[UInt64Array, UInt64Array]:
    """Find the inactive edges that the plan of a merge makes active through new common ancestors.

    Supervoxels have their stored ids, even where the plan replaces several by one: each stored supervoxel has one
    layer 2 node, whereas a new one may come from nodes with different ancestors.

    Parameters
    ----------
    plan
        The planned hierarchy after the merge.
    activated
        Pairs of supervoxels that the plan treats as active already, shape (n, 2).

    Returns
    -------
    tuple
        Pairs of supervoxels, smaller id first, and the layer 2 nodes of their ends; shape (n, 2) each.
    """
    groups, colours, nodes, tops = _old_nodes_that_meet(graph, cache.known(), plan)
    zone = _walk(graph, cache, groups, colours, nodes, tops)
    if not len(zone[0]):
        return np.zeros((0, 2), np.uint64), np.zeros((0, 2), np.uint64)
    pairs = np.sort(_stored_pairs(graph, cache, zone), axis=1)
    pairs = pairs[unique_rows(*pairs.T)]
    return _between(graph, cache, zone, pairs, activated)


def _stored_pairs(
    graph: ChunkedGraph, cache: NodeCache, zone: tuple[IntArray, UInt64Array, UInt64Array, IntArray]
) -> UInt64Array:
    """Read all edges of the chunks where the sides are neighbours; elsewhere only those that edits have made."""
    groups, colours, nodes, tops = zone
    near = _near_others(graph, groups, colours, nodes, tops, 2, 1)
    every, beside = (np.unique(graph.layout.coordinates(some), axis=0) for some in (nodes, nodes[near]))
    if cache.read_edges is not None and cache.read_edges.chunks.issuperset(map(tuple, every.tolist())):
        return cache.read_edges.edges.pairs
    pairs = []
    if len(beside):
        pairs.append(edges_around(graph, beside, cache).pairs)
    if len(every) > len(beside):
        farther = every[~np.isin(graph.layout.chunk_ids(2, every), graph.layout.chunk_ids(2, beside))]
        drawn, latest = read_timed_edges_of_edits(graph, farther)
        cache.note(latest)
        pairs.append(drawn.pairs)
    return np.concatenate(pairs)


def _old_nodes_that_meet(
    graph: ChunkedGraph, known: KnownNodes, plan: HierarchyPlan
) -> tuple[IntArray, UInt64Array, UInt64Array, IntArray]:
    """Return a group for each new node that unites several old ones, as four arrays of shape (n,).

    A group holds the highest old ancestors, up to the layer of the new node, of everything below the new node. The
    arrays are the group, the colour (the id of such an ancestor), the node at which the walk down starts (the same
    id), and the layer of the new node. Nodes of one colour were connected before the merge.
    """
    layers = graph.layout.layers(plan.new.ids)
    # The old highest ancestors of everything below each new node, up to its layer; filled from the bottom up.
    old_below = _old_layer2_nodes(graph, known, plan)
    groups, colours, tops = [], [], []
    for i in np.argsort(layers, kind="stable").tolist():
        node = int(plan.new.ids[i])
        if layers[i] == 2:
            old = np.array(old_below[node], np.uint64)
        else:
            children = plan.new.children.values[plan.new.children.offsets[i] : plan.new.children.offsets[i + 1]]
            below = [old_below.get(child, [child]) for child in children.tolist()]
            old = np.unique(_climb(graph, known, np.unique(np.concatenate(below).astype(np.uint64)), int(layers[i])))
            old_below[node] = old.tolist()
        if len(old) > 1:
            groups += [i] * len(old)
            colours += old.tolist()
            tops += [int(layers[i])] * len(old)
    ids = np.array(colours, np.uint64)
    return np.array(groups, np.int64), ids, ids, np.array(tops, np.int64)


def _old_layer2_nodes(graph: ChunkedGraph, known: KnownNodes, plan: HierarchyPlan) -> dict[int, list[int]]:
    """Return the retired layer 2 nodes that each new layer 2 node was made from, by its id."""
    retired = plan.retired[graph.layout.layers(plan.retired) == 2]
    at = known.index(retired)
    first_children = known.children.values[known.children.offsets[at]]
    order = np.argsort(plan.new.children.values)
    owners = np.repeat(plan.new.ids, plan.new.children.lengths)[order]
    successors = owners[find(plan.new.children.values[order], first_children)]
    made_of: dict[int, list[int]] = {}
    for old, new in zip(retired.tolist(), successors.tolist(), strict=True):
        made_of.setdefault(new, []).append(old)
    return made_of


def _climb(graph: ChunkedGraph, known: KnownNodes, nodes: UInt64Array, layer: int) -> UInt64Array:
    """Return the highest stored ancestor of each node up to a layer."""
    current, climbing = nodes.copy(), np.arange(len(nodes))
    while len(climbing):
        above = known.parents_of(current[climbing])
        fits = (above != 0) & (graph.layout.layers(above) <= layer)
        climbing, above = climbing[fits], above[fits]
        current[climbing] = above
    return current


def _walk(
    graph: ChunkedGraph, cache: NodeCache, groups: IntArray, colours: UInt64Array, nodes: UInt64Array, tops: IntArray
) -> tuple[IntArray, UInt64Array, UInt64Array, IntArray]:
    """Walk all groups down to layer 2 together; nodes without a node of another colour nearby are dropped."""
    for layer in range(graph.n_layers - 1, 1, -1):
        node_layers = graph.layout.layers(nodes)
        expand = (node_layers > layer) & (tops > layer)
        if expand.any():
            below = cache.children(nodes[expand])

            def spread(array: npt.NDArray[np.generic], which=expand, times=below.lengths):  # type: ignore[no-untyped-def]
                return np.concatenate([array[~which], np.repeat(array[which], times)])

            nodes = np.concatenate([nodes[~expand], below.values])
            groups, colours, tops = spread(groups), spread(colours), spread(tops)
        reach = -(-MAX_CHUNKS_APART // (1 << (layer - 2)))
        keep = _near_others(graph, groups, colours, nodes, tops, layer, reach)
        groups, colours, nodes, tops = groups[keep], colours[keep], nodes[keep], tops[keep]
    return groups, colours, nodes, tops


def _near_others(
    graph: ChunkedGraph,
    groups: IntArray,
    colours: UInt64Array,
    nodes: UInt64Array,
    tops: IntArray,
    layer: int,
    reach: int,
) -> npt.NDArray[np.bool_]:
    """Return which nodes have a node of the same group and another colour within ``reach`` chunks of ``layer``.

    In a group whose new node is at layer ``t``, only nodes in another chunk of layer ``t - 1`` count.
    """
    keep = np.ones(len(nodes), np.bool_)
    here = np.flatnonzero(tops > layer)
    if not len(here):
        return keep
    coordinates = graph.layout.coordinates(nodes[here]) >> (layer - graph.layout.layers(nodes[here]))[:, None]
    shift = (tops[here] - 1 - layer)[:, None]
    if len(here) <= FEW_NODES:
        keep[here] = _near_others_of_few(groups[here], colours[here], coordinates, coordinates >> shift, reach)
        return keep
    _, group = np.unique(groups[here], return_inverse=True)
    _, colour = np.unique(colours[here], return_inverse=True)
    coordinates = coordinates + reach
    width = int(coordinates.max(initial=0)) + reach + 1
    cells = _key(group, coordinates, width)
    pairs = np.unique(np.stack([cells, colour], axis=-1), axis=0)
    cell_ids, counts = np.unique(pairs[:, 0], return_counts=True)
    first_colour = pairs[np.searchsorted(pairs[:, 0], cell_ids), 1]
    near = np.zeros(len(here), np.bool_)
    for offset in _offsets(reach):
        beside = coordinates + offset
        far_enough = (((beside - reach) >> shift) != ((coordinates - reach) >> shift)).any(axis=1)
        wanted = _key(group, beside, width)
        at = np.minimum(np.searchsorted(cell_ids, wanted), len(cell_ids) - 1)
        occupied = cell_ids[at] == wanted
        other = (counts[at] > 1) | (first_colour[at] != colour)
        near |= far_enough & occupied & other
    keep[here] = near
    return keep


def _near_others_of_few(
    groups: IntArray, colours: UInt64Array, coordinates: IntArray, above: IntArray, reach: int
) -> npt.NDArray[np.bool_]:
    """Compare all pairs of nodes, given the chunk of each, and above it that of ``tops - 1``; see `_near_others`."""
    near = (groups[:, None] == groups) & (colours[:, None] != colours)
    apart = np.zeros_like(near)
    for axis in range(3):
        at, top = coordinates[:, axis], above[:, axis]
        near &= np.abs(at[:, None] - at) <= reach
        apart |= top[:, None] != top
    return np.asarray((near & apart).any(axis=1))


@cached
def _offsets(reach: int) -> IntArray:
    return np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)), np.int64)


def _key(group: IntArray, coordinates: IntArray, width: int) -> IntArray:
    x, y, z = coordinates.T
    return np.asarray(((group * width + x) * width + y) * width + z, np.int64)


def _between(
    graph: ChunkedGraph,
    cache: NodeCache,
    zone: tuple[IntArray, UInt64Array, UInt64Array, IntArray],
    pairs: UInt64Array,
    activated: UInt64Array,
) -> tuple[UInt64Array, UInt64Array]:
    """Return the edges between supervoxels of different colours of one group, at the cross layer of the group."""
    groups, colours, nodes, tops = zone
    layers = graph.layout.cross_layers(pairs[:, 0], pairs[:, 1])
    pairs, layers = pairs[keep := ~same_rows(pairs, np.sort(activated, axis=1))], layers[keep]
    found, parents = [np.zeros((0, 2), np.uint64)], [np.zeros((0, 2), np.uint64)]
    for group in np.unique(groups).tolist():
        mine = groups == group
        some = pairs[layers == tops[mine][0] - 1]
        if not len(some):
            continue
        below = cache.stored_children(nodes[mine])
        order = np.argsort(below.values)
        supervoxels = below.values[order]
        owner = np.repeat(np.flatnonzero(mine), below.lengths)[order]
        at = find(supervoxels, some)
        inside = (at >= 0).all(axis=1)
        ends = owner[at[inside]]
        differ = colours[ends[:, 0]] != colours[ends[:, 1]]
        some, ends = some[inside][differ], ends[differ]
        found.append(some)
        parents.append(nodes[ends])
    every, owners = np.concatenate(found), np.concatenate(parents)
    first = unique_rows(*every.T)
    return every[first], owners[first]
