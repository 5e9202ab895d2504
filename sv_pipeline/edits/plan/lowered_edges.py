"""Replaces cross edges of layer 2 nodes that lead to an ancestor of the partner by edges to the partners. Reads only.

Merges of PyChunkedGraph leave some of these on graphs of five and more layers, in the row of either end or of both.
The rows do not tell which nodes below the ancestor are the partners, since the edge back may lead to an ancestor as
well, which the node shares with others. The atomic edges tell it: the partners are the layer 2 nodes below the ancestor
that have an active atomic edge of the cross layer to the node.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import read_edges_of_chunks
from sv_pipeline.graph.hierarchy import read_ancestor_matrix, read_children
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.ids import IdLayout, UInt64Array

__all__ = ["lead_too_high", "lowered"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def lead_too_high(layout: IdLayout, edges: LayeredEdges) -> BoolArray:
    """Return which edges lead from a layer 2 node to a node above layer 2, shape (n,)."""
    layers = layout.layers(edges.edges)
    return np.asarray((layers[:, 0] == 2) & (layers[:, 1] > 2), np.bool_)


def lowered(graph: ChunkedGraph, edges: LayeredEdges) -> LayeredEdges:
    """Return the same edges, but those of layer 2 nodes lead to nodes of layer 2; nothing is read if all do already."""
    high = lead_too_high(graph.layout, edges)
    if not high.any():
        return edges
    stored = LayeredEdges(edges.layers[high], edges.edges[high]).distinct()
    layers, ancestors = stored.layers, stored.edges
    index, partners = _partners(graph, layers, ancestors)
    unknown = np.setdiff1d(np.arange(len(layers)), index)  # they stay as they are, for the check that finds them odd
    return LayeredEdges(
        np.concatenate([edges.layers[~high], layers[index], layers[unknown]]),
        np.concatenate(
            [edges.edges[~high], np.stack([ancestors[index, 0], partners], axis=-1), ancestors[unknown]],
        ),
    ).distinct()


def _partners(graph: ChunkedGraph, layers: IntArray, edges: UInt64Array) -> tuple[IntArray, UInt64Array]:
    """Find the partners that distinct edges (node, ancestor of the partner), shape (n, 2), stand for.

    Returns
    -------
    tuple[ndarray, ndarray]
        Indices of edges, and a partner of each, both of shape (m,); an edge may have several partners, or none.
    """
    nodes = np.unique(edges[:, 0])
    below = read_children(graph, nodes)
    order = np.argsort(below.values)
    supervoxels, owners = below.values[order], np.repeat(nodes, below.lengths)[order]
    pairs = read_edges_of_chunks(graph, np.unique(graph.layout.coordinates(nodes), axis=0))[0].pairs
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    cross = graph.layout.cross_layers(pairs[:, 0], pairs[:, 1])
    at = find(supervoxels, pairs[:, 0])
    keep = (at >= 0) & np.isin(cross, layers)
    own, other, cross = owners[at[keep]], pairs[keep, 1], cross[keep]
    over_own, over_other = read_ancestor_matrix(graph, own), read_ancestor_matrix(graph, other)
    each = np.arange(len(cross))
    active = over_own[each, cross + 1] == over_other[each, cross + 1]
    own, cross, over_other = own[active], cross[active], over_other[active]
    indices, partners = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    stored = np.column_stack([layers.astype(np.uint64), edges])
    for layer in range(3, graph.n_layers + 1):
        possible = np.column_stack([cross.astype(np.uint64), own, over_other[:, layer]])
        rows, same = np.unique(np.concatenate([stored, possible]), axis=0, return_inverse=True)
        at = np.full(len(rows), -1)
        at[same[: len(stored)]] = np.arange(len(stored))
        index = at[same[len(stored) :]]
        indices.append(index[index >= 0])
        partners.append(over_other[index >= 0, 2])
    return np.concatenate(indices), np.concatenate(partners)
