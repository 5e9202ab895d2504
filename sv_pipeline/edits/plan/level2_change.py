"""Plans how added or removed atomic edges change layer 2: the nodes that are replaced, and their successors. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import component_labels, find, same_rows, unique_rows
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.edits.plan.hierarchy import Layer2Change, NewNodes, provisional_ids
from sv_pipeline.edits.plan.node_cache import KnownNodes
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table.columns import Ragged

__all__ = ["OtherChange", "add_edges", "remove_edges"]

IntArray = npt.NDArray[np.int64]


def add_edges(layout: IdLayout, added: UInt64Array, parents: UInt64Array, known: KnownNodes) -> Layer2Change:
    """Plan layer 2 for atomic edges that become active.

    Parameters
    ----------
    added
        Pairs of supervoxels, shape (n, 2).
    parents
        Layer 2 node of each end, shape (n, 2).
    known
        Rows of these nodes.

    Raises
    ------
    MissingNodes
        If the plan needs rows that ``known`` does not hold.
    """
    retired = np.unique(parents)
    layers = layout.cross_layers(added[:, 0], added[:, 1])
    labels = component_labels(retired, parents[layers == 1])
    chunks = layout.chunks(retired[np.unique(labels, return_index=True)[1]])
    ids = provisional_ids(layout, chunks, {})
    old_children = take(known.children, known.index(retired))
    children = _grouped(old_children.values, np.repeat(labels, old_children.lengths), len(ids))

    stored = known.edges_of(retired)
    across = layers > 1
    both = np.concatenate([parents[across], parents[across][:, ::-1]])
    edges = np.concatenate([stored.edges, both])
    at = find(retired, edges)
    renamed = np.where(at >= 0, ids[labels[at]], edges)
    new = LayeredEdges(np.concatenate([stored.layers, np.tile(layers[across], 2)]), renamed).distinct()
    return Layer2Change(retired, NewNodes(ids, children, new))


@dataclass(frozen=True, eq=False)
class OtherChange:
    """Further changes of layer 2 in a removal of edges, because supervoxels are replaced."""

    nodes: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Layer 2 nodes whose children change, shape (n,)."""
    joined: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """Edges that count as active whatever the stored rows say, smaller id first, shape (n, 2)."""


def remove_edges(
    layout: IdLayout,
    removed: UInt64Array,
    parents: UInt64Array,
    edges: Edges,
    known: KnownNodes,
    other: OtherChange,
) -> Layer2Change:
    """Plan layer 2 for atomic edges that become inactive.

    Parameters
    ----------
    removed
        Pairs of supervoxels, smaller id first, shape (n, 2).
    parents
        Layer 2 node of each end, shape (n, 2).
    edges
        All atomic edges that touch supervoxels of these nodes, active or not; each pair once, smaller id first.
    known
        Rows of these nodes and of the nodes that their cross edges lead to.
    other
        Further changes, if supervoxels are replaced.

    Raises
    ------
    MissingNodes
        If the plan needs rows that ``known`` does not hold.
    """
    retired = np.unique(np.concatenate([parents.ravel(), other.nodes]))
    stored = known.edges_of(retired)
    neighbours = np.union1d(retired, stored.edges[:, 1])
    below = take(known.children, known.index(neighbours))
    order = np.argsort(below.values)
    supervoxels, owners = below.values[order], np.repeat(neighbours, below.lengths)[order]

    pairs = edges.pairs
    pairs = pairs[~same_rows(pairs, removed)]
    at = find(supervoxels, pairs)
    pairs, at = pairs[(at >= 0).all(axis=1)], at[(at >= 0).all(axis=1)]
    nodes = owners[at]
    layers = layout.cross_layers(pairs[:, 0], pairs[:, 1])

    members = np.sort(supervoxels[find(retired, owners) >= 0])
    inside = (layers == 1) & (nodes[:, 0] == nodes[:, 1]) & (find(retired, nodes[:, 0]) >= 0)
    labels = component_labels(members, pairs[inside])
    chunks = layout.chunk_ids(2, layout.coordinates(members[np.unique(labels, return_index=True)[1]]))
    ids = provisional_ids(layout, chunks, {})

    # An edge across chunks is active if and only if the rows of its two layer 2 nodes list each other.
    across = (layers > 1) & (_active(stored, nodes, layers) | same_rows(pairs, other.joined))
    both = np.concatenate([pairs[across], pairs[across][:, ::-1]])
    ends = np.concatenate([nodes[across], nodes[across][:, ::-1]])
    both_layers = np.tile(layers[across], 2)
    index = find(members, both)
    lifted = np.where(index >= 0, ids[labels[index]], ends)
    own = index[:, 0] >= 0
    new = LayeredEdges(both_layers[own], lifted[own]).distinct()
    return Layer2Change(retired, NewNodes(ids, _grouped(members, labels, len(ids)), new))


def _active(stored: LayeredEdges, nodes: UInt64Array, layers: IntArray) -> npt.NDArray[np.bool_]:
    """Return which pairs of nodes, shape (n, 2), are stored edges of their cross layer, in either direction."""
    result = np.zeros(len(nodes), np.bool_)
    for layer in np.unique(layers).tolist():
        here = layers == layer
        listed = stored.edges[stored.layers == layer]
        result[here] = same_rows(nodes[here], listed) | same_rows(nodes[here][:, ::-1], listed)
    return result


def _grouped(values: UInt64Array, labels: IntArray, count: int) -> Ragged:
    """Return the values of each label, ascending and distinct.

    A supervoxel that replaces several others is a child of several old nodes, so a value may come more than once.
    """
    at = unique_rows(labels, values)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(labels[at], minlength=count), out=offsets[1:])
    return Ragged(values[at], offsets)
