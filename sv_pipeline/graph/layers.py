"""How one layer of the hierarchy follows from the one below: pure functions on arrays. Reads and writes nothing.

Rules (the invariants of the data model):

- Supervoxels that are connected by active edges inside a chunk form one node of layer 2.
- Nodes of layer ``p - 1`` that are connected by edges of cross layer ``p - 1`` form one node of layer ``p``.
- A node without such edges skips layers: its parent is at the lowest layer at which it has an edge, or is the root.

Many chunks are computed at once, because components of different chunks never touch.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """Ids of the two ends, shape (n, 2)."""

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def empty(cls) -> LayeredEdges:
        """Return no edges."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 2), np.uint64))

    @classmethod
    def join(cls, parts: Sequence[LayeredEdges]) -> LayeredEdges:
        """Return the edges of all parts, in their order."""
        every = [cls.empty(), *parts]
        return cls(np.concatenate([part.layers for part in every]), np.concatenate([part.edges for part in every]))

    def distinct(self) -> LayeredEdges:
        """Return each edge once, sorted by owner, cross layer and partner."""
        keep = unique_rows(self.edges[:, 0], self.layers, self.edges[:, 1])
        return LayeredEdges(self.layers[keep], self.edges[keep])


@dataclass(frozen=True)
class NewParents:
    """Parents that the tasks of a layer create, before they have ids.

    A task builds one chunk. Parents are sorted by task, then by the chunk of their id, then by their smallest child.
    Ids are assigned in this order.
    """

    tasks: IntArray
    """Index of the task that creates each parent, shape (n,)."""
    chunks: UInt64Array
    """Chunk id of each parent, in the parent's own layer, shape (n,)."""
    children: Ragged
    """Children of each parent, sorted."""

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def child_tasks(self) -> IntArray:
        """Task of each child, in the order of ``children.values``."""
        return np.repeat(self.tasks, self.children.lengths)

    def of_children(self, parent_ids: UInt64Array) -> UInt64Array:
        """Return the parent of each child, in the order of ``children.values``."""
        return np.repeat(parent_ids, self.children.lengths)


def atomic_parents(
    layout: IdLayout, task_chunks: UInt64Array, supervoxels: UInt64Array, edges: npt.ArrayLike
) -> NewParents:
    """Compute the layer 2 nodes of many chunks.

    Parameters
    ----------
    layout
        The id layout of the graph.
    task_chunks
        Ids of the layer 2 chunks, sorted.
    supervoxels
        All supervoxels of these chunks, sorted.
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
    """Compute the parents of all nodes of ``layer - 1`` in many chunks of ``layer``.

    Parameters
    ----------
    layout
        The id layout of the graph.
    layer
        Layer of the chunks.
    task_chunks
        Ids of the chunks of ``layer``, sorted.
    nodes
        All nodes of ``layer - 1`` in these chunks, sorted.
    cross_edges
        Cross edges of the nodes at ``layer - 1`` and above.

    Raises
    ------
    ValueError
        If an edge of cross layer ``layer - 1`` leads to a node that is not in ``nodes``.
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
    """Return the ids of the chunks of ``parent_layer`` around chunks of ``layer`` >= 2, shape (n, 3) to (n,)."""
    return layout.chunk_ids(parent_layer, coordinates >> (parent_layer - layer))


def _lowest_cross_layer(layout: IdLayout, layer: int, nodes: UInt64Array, cross_edges: LayeredEdges) -> IntArray:
    """Return the lowest cross layer >= ``layer`` of each node's edges; the root layer for nodes without such edges."""
    lowest = np.full(len(nodes), layout.n_layers, np.int64)
    above = cross_edges.layers >= layer
    np.minimum.at(lowest, find(nodes, cross_edges.edges[above, 0]), cross_edges.layers[above])
    return lowest


def _ordered(tasks: IntArray, chunks: UInt64Array, members: UInt64Array, labels: IntArray) -> NewParents:
    """Arrange components, numbered by their smallest members, in the order of ``NewParents``."""
    order = np.lexsort((np.arange(len(tasks)), chunks, tasks))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ranks = rank[labels]
    offsets = np.zeros(len(order) + 1, np.int64)
    np.cumsum(np.bincount(ranks, minlength=len(order)), out=offsets[1:])
    children = Ragged(members[np.argsort(ranks, kind="stable")], offsets)
    return NewParents(tasks[order], chunks[order], children)


def newest_of_reruns(nodes: UInt64Array, children: Ragged) -> npt.NDArray[np.bool_]:
    """Return which nodes are valid if other software built a chunk again and left the nodes of earlier attempts behind.

    Of nodes with the same largest child, the one with the highest id is valid. ``nodes`` are sorted, and each has
    children; the result has shape (n,).
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
