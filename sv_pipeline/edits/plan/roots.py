"""Looks up the roots of a request before they can be locked, and confirms them under the locks. Reads only.

Rows that are read before the locks are held may change, so they only tell which rows to look at. Once the locks are
held, all of them are read again in one request, together with rows that nearly every plan needs next::

    before the locks      supervoxels -> layer 2 -> ... -> roots, one request for each layer;
                          rows of the roots, while the locks are requested
    under the locks       these rows again, and the rows of all their children
    then, by the plan     rows of the nodes that the edges of both lead to
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.wording import counted

__all__ = ["RequestOfPoints", "RequestRoots"]


class RequestOfPoints(Protocol):
    """The common part of all requests."""

    @property
    def user(self) -> str:
        """The user who makes the request."""
        ...

    @property
    def supervoxels(self) -> UInt64Array:
        """Supervoxels whose roots are edited, shape (n,)."""
        ...


class RequestRoots:
    """The roots of a request: looked up when this is made, and again after each failed attempt to lock them."""

    def __init__(self, graph: ChunkedGraph, request: RequestOfPoints) -> None:
        self._graph = graph
        self._supervoxels = np.unique(request.supervoxels)
        self._tries = 0
        self._look_up()

    def find(self) -> UInt64Array:
        """Return the roots to lock, looked up again from the second call on."""
        if self._tries:
            gone = self._supervoxels[replaced(self._graph, self._supervoxels)]
            if len(gone):
                raise EditRefused(
                    Reason.NOT_FOUND,
                    f"supervoxel {int(gone[0])} was split into others.",
                    remedy="Look up the supervoxel of the point in the current segmentation.",
                )
            self._look_up()
        self._tries += 1
        return self.current

    @property
    def current(self) -> UInt64Array:
        """The roots that were found last, ascending."""
        return np.unique(self._matrix[:, -1])

    @property
    def root_of(self) -> dict[int, int]:
        """The root of each supervoxel of the request."""
        return dict(zip(self._supervoxels.tolist(), self._matrix[:, -1].tolist(), strict=True))

    def look_at_roots(self) -> None:
        """Read the rows of the roots, which list their children."""
        self._seen.fetch(self.current)

    def read_again(self) -> NodeCache:
        """Read again, under the locks, all rows that were read before, and the rows of their children.

        Raises
        ------
        EditRefused
            If the ancestors that were found before the locks were taken are no longer those of the supervoxels. While
            an edit is being recovered, its rows may be removed; such roots can be locked but are not in use.
        """
        cache = NodeCache(self._graph)
        chains = np.unique(self._matrix[:, 2:])
        chains = chains[self._graph.layout.layers(chains) >= 2]
        seen = self._seen.known()
        below = take(seen.children, np.flatnonzero(np.isin(seen.ids, chains))).values
        cache.fetch(np.concatenate([chains, below[self._graph.layout.layers(below) >= 2]]))
        self._confirm(cache)
        return cache

    def _confirm(self, cache: NodeCache) -> None:
        matrix, supervoxels = self._matrix, self._supervoxels
        below = cache.children(matrix[:, 2])
        owners = np.repeat(np.arange(len(supervoxels)), below.lengths)
        listed = np.zeros(len(supervoxels), np.bool_)
        listed[owners[below.values == supervoxels[owners]]] = True
        for layer in range(3, self._graph.n_layers + 1):
            child, parent = matrix[:, layer - 1], matrix[:, layer]
            listed &= (child == parent) | (cache.parents(child) == parent)
        if not listed.all():
            raise EditRefused(
                Reason.LOCKED,
                f"the object of supervoxel {int(supervoxels[~listed][0])} is being changed or recovered.",
                repeat="Try again in a moment.",
            )

    def _look_up(self) -> None:
        graph, self._seen = self._graph, NodeCache(self._graph)
        matrix = np.zeros((len(self._supervoxels), graph.n_layers + 1), np.uint64)
        columns, current, rows = np.arange(graph.n_layers + 1), self._supervoxels, np.arange(len(matrix))
        while len(rows):
            layers = graph.layout.layers(current)
            matrix[rows] = np.where(columns >= layers[:, None], current[:, None], matrix[rows])
            rows, current = rows[layers < graph.n_layers], current[layers < graph.n_layers]
            current = self._seen.parents(current)
            rows, current = rows[current != 0], current[current != 0]
        self._matrix = matrix
        lost = self._supervoxels[graph.layout.layers(matrix[:, -1]) != graph.n_layers]
        if len(lost):
            names = ", ".join(str(i) for i in lost[:5].tolist())
            raise EditRefused(
                Reason.NOT_FOUND,
                f"graph {graph.graph_id!r} lacks {counted(len(lost), 'supervoxel')}: {names}.",
                remedy="Check that the ids are of this graph.",
            )
