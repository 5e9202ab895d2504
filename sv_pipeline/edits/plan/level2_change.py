"""What added or removed atomic edges do to layer 2 nodes: which are replaced, by what, with which cross edges. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import component_labels, find, unique_rows
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.edits.plan.hierarchy import Layer2Change, NewNodes, provisional_ids
from sv_pipeline.edits.plan.node_cache import KnownNodes
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table.columns import Ragged

__all__ = ["OtherChange", "add_edges", "remove_edges", "same_rows"]

IntArray = npt.NDArray[np.int64]


def add_edges(layout: IdLayout, added: UInt64Array, parents: UInt64Array, known: KnownNodes) -> Layer2Change:
    """Layer 2 after atomic edges became active.

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
        If rows are needed that are not known.
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
    """What else changes in layer 2 while edges become inactive, because supervoxels are replaced."""

    nodes: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Nodes whose children change."""
    joined: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """Edges that are active whatever rows say, smaller first, shape (n, 2)."""


def remove_edges(
    layout: IdLayout,
    removed: UInt64Array,
    parents: UInt64Array,
    edges: Edges,
    known: KnownNodes,
    other: OtherChange,
) -> Layer2Change:
    """Layer 2 after atomic edges became inactive.

    Parameters
    ----------
    removed
        Pairs of supervoxels, smaller first, shape (n, 2).
    parents
        Layer 2 node of each end, shape (n, 2).
    edges
        All atomic edges that touch supervoxels of these nodes, active or not; each pair once, smaller first.
    known
        Rows of these nodes and of those that their cross edges lead to.
    other
        What else changes.

    Raises
    ------
    MissingNodes
        If rows are needed that are not known.
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

    # Whether an edge across chunks is active depends on the two layer 2 nodes alone: then their rows list it.
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
    """Which (node, node) at a cross layer are among stored edges, in either direction."""
    result = np.zeros(len(nodes), np.bool_)
    for layer in np.unique(layers).tolist():
        here = layers == layer
        listed = stored.edges[stored.layers == layer]
        result[here] = same_rows(nodes[here], listed) | same_rows(nodes[here][:, ::-1], listed)
    return result


def same_rows(rows: UInt64Array, among: UInt64Array) -> npt.NDArray[np.bool_]:
    """Which rows of shape (n, 2) are also in another array of pairs."""
    if not len(rows) or not len(among):
        return np.zeros(len(rows), np.bool_)
    every, inverse = np.unique(np.concatenate([rows, among]), axis=0, return_inverse=True)
    listed = np.zeros(len(every), np.bool_)
    listed[inverse.reshape(-1)[len(rows) :]] = True
    return np.asarray(listed[inverse.reshape(-1)[: len(rows)]])


def _grouped(values: UInt64Array, labels: IntArray, count: int) -> Ragged:
    """Values of each label, ascending, each once: what replaces several supervoxels comes from several nodes."""
    at = unique_rows(labels, values)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(labels[at], minlength=count), out=offsets[1:])
    return Ragged(values[at], offsets)
