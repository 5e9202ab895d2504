"""Reads what finished operations have changed from the rows of nodes, for our edits and those of other software alike.

A new node was made at the logical time of its root. All ancestors of a new node are new, so a walk down from the new
roots finds all new nodes. An old node was replaced if its parent is still an old node, because a node that remains gets
a new parent. Each walk takes two requests per layer, for any number of operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    CHILDREN,
    FORMER_IDS,
    FORMER_PARENTS,
    OPERATION_ID,
    PARENT,
    ArrayColumn,
    newest_arrays,
    newest_ids,
    newest_timestamps,
)

__all__ = ["Owned", "made_layer2", "replaced_layer2", "replaced_roots", "replaced_supervoxels"]

IntArray = npt.NDArray[np.int64]


class Owned(NamedTuple):
    """Nodes that belong to several operations."""

    owners: IntArray
    """Index of the operation that each node belongs to, shape (n,)."""
    nodes: UInt64Array
    """Node ids, shape (n,)."""

    @classmethod
    def of(cls, groups: list[UInt64Array]) -> Owned:
        """Join one array of nodes for each operation."""
        owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return cls(owners.astype(np.int64), np.concatenate([np.zeros(0, np.uint64), *groups]).astype(np.uint64))

    def of_owner(self, owner: int) -> UInt64Array:
        """Return the nodes of one operation, ascending, without duplicates."""
        return np.unique(self.nodes[self.owners == owner])

    def where(self, mask: npt.NDArray[np.bool_]) -> Owned:
        """Return the nodes that a mask selects."""
        return Owned(self.owners[mask], self.nodes[mask])


class _Below(NamedTuple):
    """The nodes that a column of other nodes names."""

    named: Owned
    by: IntArray
    """Index of the node that names each of them, shape (n,)."""


def replaced_roots(graph: ChunkedGraph, roots: Owned) -> Owned:
    """Return the roots that new roots replaced."""
    return _below(graph, roots, FORMER_PARENTS).named


def made_layer2(graph: ChunkedGraph, roots: Owned) -> Owned:
    """Return the layer 2 nodes that were made together with new roots."""
    found, level, times = [], roots, _creation(graph, roots.nodes)
    while len(level.nodes):
        found.append(level.where(graph.layout.layers(level.nodes) == 2))
        children, by = _below(graph, level, CHILDREN)
        new = (graph.layout.layers(children.nodes) >= 2) & (_creation(graph, children.nodes) == times[by])
        level, times = children.where(new), times[by][new]
    return _joined(found)


def replaced_layer2(graph: ChunkedGraph, roots: Owned) -> Owned:
    """Return the layer 2 nodes that were replaced together with old roots."""
    found, level = [], roots
    while len(level.nodes):
        found.append(level.where(graph.layout.layers(level.nodes) == 2))
        children, by = _below(graph, level, CHILDREN)
        row_keys = keys.node_keys(children.nodes)
        rows = graph.table.read_rows(row_keys, [PARENT.key], newest_only=True)
        left = newest_ids(PARENT, rows, row_keys) == level.nodes[by]
        level = children.where(left & (graph.layout.layers(children.nodes) >= 2))
    return _joined(found)


def replaced_supervoxels(graph: ChunkedGraph, layer2: Owned, operations: IntArray) -> list[UInt64Array]:
    """Return pairs (old, new) of the supervoxels that each operation replaced, shape (n, 2) each.

    Parameters
    ----------
    layer2
        The new layer 2 nodes of the operations.
    operations
        Ids of the operations, shape (m,); the owners in ``layer2`` are indices into it.
    """
    children = _below(graph, layer2, CHILDREN).named
    supervoxels = np.unique(children.nodes)
    rows = graph.table.read_rows(keys.node_keys(supervoxels), [FORMER_IDS.key, OPERATION_ID.key])
    pairs: dict[int, list[tuple[int, int]]] = {}
    for key, row in rows.items():
        former = FORMER_IDS.newest(row)
        if former is not None:
            for _, operation in OPERATION_ID.history(row):
                pairs.setdefault(operation, []).extend((old, int(key)) for old in former.tolist())
    return [np.array(sorted(set(pairs.get(i, []))), np.uint64).reshape(-1, 2) for i in operations.tolist()]


def _below(graph: ChunkedGraph, nodes: Owned, column: ArrayColumn[np.uint64]) -> _Below:
    row_keys = keys.node_keys(nodes.nodes)
    arrays = newest_arrays(column, graph.table.read_rows(row_keys, [column.key], newest_only=True), row_keys)
    by = np.repeat(np.arange(len(row_keys)), arrays.lengths)
    return _Below(Owned(nodes.owners[by], arrays.values), by)


def _creation(graph: ChunkedGraph, nodes: UInt64Array) -> IntArray:
    """Return when nodes were made, in milliseconds since the epoch, shape (n,)."""
    row_keys = keys.node_keys(nodes)
    return newest_timestamps(CHILDREN, graph.table.read_rows(row_keys, [CHILDREN.key], newest_only=True), row_keys)


def _joined(parts: list[Owned]) -> Owned:
    owners = np.concatenate([np.zeros(0, np.int64), *(part.owners for part in parts)])
    return Owned(owners, np.concatenate([np.zeros(0, np.uint64), *(part.nodes for part in parts)]))
