"""How one layer of the hierarchy follows from the one below: pure functions on arrays. Reads and writes nothing.

Rules (the invariants of the data model):

- Supervoxels that active edges join inside a chunk become one node of layer 2.
- Nodes of layer ``p - 1`` that edges of cross layer ``p - 1`` join become one node of layer ``p``.
- A node that nothing joins skips layers: its parent is at the lowest layer at which it has an edge, or is the root.

Many chunks are computed at once: components of different chunks never touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import component_labels, find, unique_rows
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table.columns import Ragged

__all__ = ["LayeredEdges", "NewParents", "atomic_parents", "layer_parents", "newest_of_reruns", "parent_chunks"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayeredEdges:
    """Directed edges with their cross layers; the first end owns the edge."""

    layers: IntArray
    """Cross layer of each edge, shape (n,)."""
    edges: UInt64Array
    """Shape (n, 2)."""

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def empty(cls) -> LayeredEdges:
        """No edges."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 2), np.uint64))

    def distinct(self) -> LayeredEdges:
        """Each edge once, sorted by owner, cross layer and partner."""
        keep = unique_rows(self.edges[:, 0], self.layers, self.edges[:, 1])
        return LayeredEdges(self.layers[keep], self.edges[keep])


@dataclass(frozen=True)
class NewParents:
    """Parents that a layer's tasks make, before they have ids.

    In the order of their tasks, then of the chunks their ids are in, then of their smallest children: the order in
    which ids are given.
    """

    tasks: IntArray
    """Index of the task that makes each parent, shape (n,)."""
    chunks: UInt64Array
    """Chunk id, in the parent's own layer, shape (n,)."""
    children: Ragged
    """Children of each parent, ascending."""

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def child_tasks(self) -> IntArray:
        """Task of each child."""
        return np.repeat(self.tasks, self.children.lengths)

    def of_children(self, parent_ids: UInt64Array) -> UInt64Array:
        """Parent of each child, in the order of ``children.values``."""
        return np.repeat(parent_ids, self.children.lengths)


def atomic_parents(
    layout: IdLayout, task_chunks: UInt64Array, supervoxels: UInt64Array, edges: npt.ArrayLike
) -> NewParents:
    """Layer 2 nodes of many chunks.

    Parameters
    ----------
    task_chunks
        Ids of the layer 2 chunks, ascending.
    supervoxels
        All supervoxels of these chunks, ascending.
    edges
        Active edges inside chunks, shape (n, 2).
    """
    labels = component_labels(supervoxels, edges)
    first = np.unique(labels, return_index=True)[1]
    chunks = layout.chunk_ids(2, layout.coordinates(supervoxels[first]))
    return _ordered(find(task_chunks, chunks), chunks, supervoxels, labels)


def layer_parents(
    layout: IdLayout, layer: int, task_chunks: UInt64Array, nodes: UInt64Array, cross_edges: LayeredEdges
) -> NewParents:
    """Parents of all nodes of ``layer - 1`` in many chunks of ``layer``.

    Parameters
    ----------
    task_chunks
        Ids of the chunks of ``layer``, ascending.
    nodes
        All nodes of ``layer - 1`` in these chunks, ascending.
    cross_edges
        Their cross edges at ``layer - 1`` and above (invariant 1).

    Raises
    ------
    ValueError
        If an edge of cross layer ``layer - 1`` leads to something that is not among the nodes.
    """
    labels = component_labels(nodes, cross_edges.edges[cross_edges.layers == layer - 1])
    sizes = np.bincount(labels)
    first = np.unique(labels, return_index=True)[1]
    coordinates = layout.coordinates(nodes[first])
    parent_layers = np.where(sizes > 1, layer, _lowest_cross_layer(layout, layer, nodes, cross_edges)[first])
    chunks = np.zeros(len(sizes), np.uint64)
    for parent_layer in np.unique(parent_layers).tolist():
        here = parent_layers == parent_layer
        chunks[here] = parent_chunks(layout, coordinates[here], layer - 1, parent_layer)
    return _ordered(find(task_chunks, parent_chunks(layout, coordinates, layer - 1, layer)), chunks, nodes, labels)


def parent_chunks(layout: IdLayout, coordinates: IntArray, layer: int, parent_layer: int) -> UInt64Array:
    """Ids of the chunks of ``parent_layer`` around chunks of ``layer`` >= 2, shape (n, 3) to (n,)."""
    return layout.chunk_ids(parent_layer, coordinates >> (parent_layer - layer))


def _lowest_cross_layer(layout: IdLayout, layer: int, nodes: UInt64Array, cross_edges: LayeredEdges) -> IntArray:
    """Lowest cross layer >= ``layer`` of each node's edges; the root layer for nodes without any."""
    lowest = np.full(len(nodes), layout.n_layers, np.int64)
    above = cross_edges.layers >= layer
    np.minimum.at(lowest, find(nodes, cross_edges.edges[above, 0]), cross_edges.layers[above])
    return lowest


def _ordered(tasks: IntArray, chunks: UInt64Array, members: UInt64Array, labels: IntArray) -> NewParents:
    """Components, numbered by their smallest members, in the order of ``NewParents``."""
    order = np.lexsort((np.arange(len(tasks)), chunks, tasks))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ranks = rank[labels]
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(np.bincount(ranks, minlength=len(order)), out=offsets[1:])
    children = Ragged(members[np.argsort(ranks, kind="stable")], offsets)
    return NewParents(tasks[order], chunks[order], children)


def newest_of_reruns(nodes: UInt64Array, children: Ragged) -> npt.NDArray[np.bool_]:
    """Which nodes count where other software built a chunk again and left the nodes of earlier tries behind.

    Of nodes with the same largest child the one with the highest id counts. ``nodes`` are ascending, and each has
    children; shape (n,).
    """
    if not len(nodes):
        return np.zeros(0, np.bool_)
    largest = np.maximum.reduceat(children.values, children.offsets[:-1])
    order = np.lexsort((nodes, largest))
    last = np.ones(len(nodes), np.bool_)
    last[:-1] = largest[order][1:] != largest[order][:-1]
    counts = np.zeros(len(nodes), np.bool_)
    counts[order] = last
    return counts
