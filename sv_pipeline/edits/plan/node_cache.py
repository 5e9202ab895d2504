"""Caches the node rows that one edit reads: fetched in batches, each row once, and given to planners as arrays.

A cache lives as long as one edit that holds the locks of its roots, so no other process changes these rows meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.edits.plan.lowered_edges import lead_too_high, lowered
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    CHILDREN,
    PARENT,
    Ragged,
    cross_edges,
    newest_arrays,
    newest_ids,
)
from sv_pipeline.table.interface import RowView

__all__ = ["KnownNodes", "MissingNodes", "NodeCache", "ReadEdges", "until_known"]

Value = TypeVar("Value")


class MissingNodes(Exception):  # noqa: N818 - no error: a planner asks for rows
    """Raised by a planner that needs rows which it was not given."""

    def __init__(self, ids: UInt64Array) -> None:
        self.ids = ids
        super().__init__(f"{len(ids)} nodes are not known yet")


@dataclass(frozen=True, eq=False)
class KnownNodes:
    """Rows of nodes of layer 2 and above, as they are stored but for cross edges that lead too high."""

    ids: UInt64Array
    """Node ids, ascending, shape (n,)."""
    parents: UInt64Array
    """Parent of each node, shape (n,); 0 for roots, and for ids without a row."""
    children: Ragged
    """Children of each node."""
    edges: LayeredEdges
    """Cross edges of all nodes, those of layer 2 nodes to nodes of layer 2 only."""
    raised: LayeredEdges
    """Cross edges of layer 2 nodes that are stored with an ancestor of the partner; ``edges`` has the partners."""

    def index(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the index of each id in ``ids``.

        Raises
        ------
        MissingNodes
            If some of the rows are not known.
        """
        wanted = np.asarray(ids, np.uint64)
        at = find(self.ids, wanted)
        if (at < 0).any():
            raise MissingNodes(np.unique(wanted[at < 0]))
        return at

    def parents_of(self, ids: npt.ArrayLike) -> UInt64Array:
        """Return the stored parent of each node; raise MissingNodes if some rows are not known."""
        return np.asarray(self.parents[self.index(ids)], np.uint64)

    def edges_of(self, ids: npt.ArrayLike) -> LayeredEdges:
        """Return the stored cross edges of some nodes; raise MissingNodes if some rows are not known."""
        wanted = np.unique(np.asarray(ids, np.uint64))
        self.index(wanted)
        keep = find(wanted, self.edges.edges[:, 0]) >= 0
        return LayeredEdges(self.edges.layers[keep], self.edges.edges[keep])


@dataclass(frozen=True, eq=False)
class ReadEdges:
    """Atomic edges that an edit has read."""

    chunks: set[tuple[int, ...]]
    """Coordinates of the layer 2 chunks whose edges were read."""
    edges: Edges


class NodeCache:
    """Reads node rows on demand, with one request for all rows that are not cached yet."""

    def __init__(self, graph: ChunkedGraph) -> None:
        self._graph = graph
        self._columns = [PARENT.key, CHILDREN.key, *(cross_edges(n).key for n in range(2, graph.n_layers))]
        self._rows: dict[bytes, RowView] = {}
        self._read: set[int] = set()
        self._parts: list[KnownNodes] = []
        self._links = np.zeros((0, 2), np.uint64)
        self._noted = 0
        self.read_edges: ReadEdges | None = None
        """The atomic edges that were read last."""

    def substitute(self, links: UInt64Array) -> None:
        """From now on, show new children in place of old ones, as the nodes will be after the edit.

        Parameters
        ----------
        links
            Pairs (old, new), shape (m, 2). One old child may be replaced by several new ones, and several by one.
        """
        self._links = links[np.lexsort((links[:, 1], links[:, 0]))]
        self._parts = [self._decoded(sorted(self._rows, key=int))] if self._rows else []

    def note(self, timestamp: int) -> None:
        """Note the timestamp, in milliseconds, of a cell that was read elsewhere, for :meth:`latest`."""
        self._noted = max(self._noted, timestamp)

    def has(self, ids: npt.ArrayLike) -> bool:
        """Return whether the rows of all these nodes are cached."""
        return self._read.issuperset(np.asarray(ids, np.uint64).ravel().tolist())

    def fetch(self, ids: npt.ArrayLike) -> None:
        """Read the rows of these nodes, except for those that are cached."""
        missing = set(np.asarray(ids, np.uint64).ravel().tolist()) - self._read
        if missing:
            new = keys.node_keys(sorted(missing))
            found = self._graph.table.read_rows(new, self._columns, newest_only=True)
            self._rows.update((key, found.get(key, {})) for key in new)
            self._read |= missing
            self._parts.append(self._decoded(new))

    def parents(self, ids: npt.ArrayLike) -> UInt64Array:
        """Return the parent of each node, shape (n,); 0 for a root, and for a node without a row."""
        self.fetch(ids)
        return newest_ids(PARENT, self._rows, keys.node_keys(ids))

    def children(self, ids: npt.ArrayLike) -> Ragged:
        """Return the children of each node, with the replacements of :meth:`substitute`."""
        return _substituted(self.stored_children(ids), self._links)

    def stored_children(self, ids: npt.ArrayLike) -> Ragged:
        """Return the children of each node as they are stored."""
        self.fetch(ids)
        return newest_arrays(CHILDREN, self._rows, keys.node_keys(ids))

    def latest(self) -> int:
        """Return the newest timestamp, in milliseconds, of all cells that were read or noted; 0 if there are none."""
        times = (cells[0].timestamp for row in self._rows.values() for cells in row.values())
        return max(max(times, default=0), self._noted)

    def ancestors(self, ids: npt.ArrayLike) -> UInt64Array:
        """Return these nodes and all their ancestors, ascending."""
        found = [np.unique(np.asarray(ids, np.uint64))]
        while len(found[-1]):
            above = np.unique(self.parents(found[-1]))
            found.append(above[above != 0])
        return np.unique(np.concatenate(found))

    def known(self) -> KnownNodes:
        """Return all rows of layers 2 and above that were read so far."""
        if len(self._parts) > 1:
            ids = np.concatenate([part.ids for part in self._parts])
            order = np.argsort(ids)
            lengths = np.concatenate([part.children.lengths for part in self._parts])
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            children = Ragged(np.concatenate([part.children.values for part in self._parts]), offsets)
            edges, raised = (_joined([getattr(part, name) for part in self._parts]) for name in ("edges", "raised"))
            parents = np.concatenate([part.parents for part in self._parts])[order]
            self._parts = [KnownNodes(ids[order], parents, take(children, order), edges, raised)]
        return self._parts[0] if self._parts else self._decoded([])

    def _decoded(self, row_keys: list[bytes]) -> KnownNodes:
        """Decode rows to arrays; the keys are in ascending order of their ids."""
        ids = keys.node_ids(row_keys)
        row_keys = [
            key for key, layer in zip(row_keys, self._graph.layout.layers(ids).tolist(), strict=True) if layer > 1
        ]
        parts, layers = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
        for layer in range(2, self._graph.n_layers):
            pairs = newest_arrays(cross_edges(layer), self._rows, row_keys).values
            parts.append(pairs)
            layers.append(np.full(len(pairs), layer, np.int64))
        edges = LayeredEdges(np.concatenate(layers), np.concatenate(parts))
        high = lead_too_high(self._graph.layout, edges)
        return KnownNodes(
            keys.node_ids(row_keys),
            newest_ids(PARENT, self._rows, row_keys),
            _substituted(newest_arrays(CHILDREN, self._rows, row_keys), self._links),
            lowered(self._graph, edges),
            LayeredEdges(edges.layers[high], edges.edges[high]),
        )


def _joined(parts: list[LayeredEdges]) -> LayeredEdges:
    return LayeredEdges(np.concatenate([part.layers for part in parts]), np.concatenate([part.edges for part in parts]))


def _substituted(children: Ragged, links: UInt64Array) -> Ragged:
    """Replace old children by new ones, each listed once; ``links`` are pairs (old, new), sorted."""
    hit = find(np.unique(links[:, 0]), children.values) >= 0
    if not hit.any():
        return children
    owners = np.repeat(np.arange(len(children.lengths)), children.lengths)
    first = np.searchsorted(links[:, 0], children.values[hit], side="left")
    counts = np.searchsorted(links[:, 0], children.values[hit], side="right") - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.concatenate([children.values[~hit], links[np.repeat(first, counts) + within, 1]])
    owners = np.concatenate([owners[~hit], np.repeat(owners[hit], counts)])
    pairs = np.unique(np.stack([owners.astype(np.uint64), values], axis=-1), axis=0)
    offsets = np.searchsorted(pairs[:, 0], np.arange(len(children.lengths) + 1)).astype(np.int64)
    return Ragged(pairs[:, 1], offsets)


def until_known(cache: NodeCache, plan: Callable[[KnownNodes], Value]) -> Value:
    """Run a planner, fetching the rows that it misses and running it again, until it has all that it needs."""
    while True:
        try:
            return plan(cache.known())
        except MissingNodes as missing:
            cache.fetch(missing.ids)
