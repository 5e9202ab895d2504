"""Replaces cross edges of layer 2 nodes that lead to an ancestor of the partner by edges to the partner. Reads only.

Merges of PyChunkedGraph leave some of these on graphs of five and more layers. They say the same as long as nobody
parts what is below the ancestor. The partners are nodes below it, beside the node's chunk, that have an edge back to
the node, or, as these may lead too high as well, to one of its ancestors.
"""

from __future__ import annotations

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import read_ancestor_matrix, read_children, read_layered_edges
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.graph.queries import chunks_touch
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table.columns import cross_edges

__all__ = ["lowered"]


def lowered(graph: ChunkedGraph, edges: LayeredEdges) -> LayeredEdges:
    """Return the edges, with those of layer 2 nodes leading to nodes of layer 2 only. Nothing is read if all do so."""
    layers = graph.layout.layers(edges.edges)
    high = (layers[:, 0] == 2) & (layers[:, 1] > 2)
    if not high.any():
        return edges
    found_layers, found = [edges.layers[~high]], [edges.edges[~high]]
    for layer, (node, ancestor) in zip(edges.layers[high].tolist(), edges.edges[high].tolist(), strict=True):
        partners = _partners(graph, layer, node, ancestor)
        if not len(partners):
            partners = np.array([ancestor], np.uint64)  # what is stored, for the check that finds it odd
        found_layers.append(np.full(len(partners), layer, np.int64))
        found.append(np.stack([np.full(len(partners), node, np.uint64), partners], axis=-1))
    return LayeredEdges(np.concatenate(found_layers), np.concatenate(found)).distinct()


def _partners(graph: ChunkedGraph, layer: int, node: int, ancestor: int) -> UInt64Array:
    box = graph.grid.box(2, graph.layout.coordinates([node])[0]).grow(1)
    current, below = np.array([ancestor], np.uint64), [np.zeros(0, np.uint64)]
    while len(current):
        current = np.unique(read_children(graph, current).values)
        current = current[graph.layout.layers(current) > 1]
        current = current[chunks_touch(graph, current, box)] if len(current) else current
        at_end = graph.layout.layers(current) == 2
        below.append(current[at_end])
        current = current[~at_end]
    candidates = np.unique(np.concatenate(below))
    back = read_layered_edges(graph, candidates, cross_edges, [layer])
    chain = read_ancestor_matrix(graph, [node])[0, 2:]
    return np.unique(back.edges[np.isin(back.edges[:, 1], chain), 0])
