"""Looks up the roots of a request before they can be locked, and confirms them under the locks. Reads only.

Rows that are read before the locks are held may change, so they only tell which rows to look at. Once the locks are
held, all of them are read again in one request::

    before the locks      supervoxels, and the ancestors that this process has seen before (`parent_hints`);
                          where these end or are wrong, one request for each layer;
                          with each request also rows that the plan will need: children and neighbours of those read
    with the locks        the rest of these
    under the locks       all of these rows again, and the rows of all children of the ancestors; and the edges around
    then, by the plan     what is missing
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import edges_of_chunks
from sv_pipeline.edits.plan.unknown import refusal_of_unknown
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.graph.parent_hints import hints_of
from sv_pipeline.graph.queries import chunks_touch
from sv_pipeline.grid import Box
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["RequestOfPoints", "RequestRoots"]


MAX_GUESSES = 512
"""Largest number of rows that are read before it is certain that a plan needs them."""
MAX_CHUNKS = 32
"""Largest number of chunks whose edges are read before a plan asks for them."""


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

    def __init__(self, graph: ChunkedGraph, request: RequestOfPoints, box: Box | None = None) -> None:
        self._graph, self._box = graph, box
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

    def look_further(self) -> None:
        """Read the rows of the roots, and rows that the plan will probably need."""
        self._fetch(self.current)

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
        below = below[self._graph.layout.layers(below) >= 2]
        again = np.concatenate([chains, below, seen.ids, self._probably_needed()])
        with Helpers() as pool:
            reading = pool.submit(self._read_edges, cache)
            cache.fetch(again)
            self._confirm(cache)
            reading.result()
        return cache

    def chunks_inside(self) -> npt.NDArray[np.int64]:
        """Return the layer 2 chunks in the box with nodes that were seen; coordinates of shape (n, 3).

        None are returned if there are very many, or no box.
        """
        return self._chunks_in(self._box)

    def _chunks_in(self, box: Box | None) -> npt.NDArray[np.int64]:
        if box is None:
            return np.zeros((0, 3), np.int64)
        layout, seen = self._graph.layout, self._seen.known().ids
        layer2 = seen[layout.layers(seen) == 2]
        chunks = layout.coordinates(layer2[chunks_touch(self._graph, layer2, box)])
        chunks = chunks[unique_rows(*chunks.T)]
        return chunks if len(chunks) <= MAX_CHUNKS else chunks[:0]

    def _read_edges(self, cache: NodeCache) -> None:
        """Read the edges of the chunks that the plan will probably look at: those in and beside the box."""
        box, grid = self._box, self._graph.grid
        around = None if box is None else box.grow(max(grid.chunk_size)).clip(grid.bounds)
        if len(chunks := self._chunks_in(around)):
            edges_of_chunks(self._graph, chunks, cache)

    def _fetch(self, nodes: UInt64Array) -> None:
        """Read the rows of nodes, and with the same request those that the plan will probably need."""
        self._seen.fetch(np.concatenate([nodes, self._probably_needed()]))

    def _probably_needed(self) -> UInt64Array:
        """Return the nodes that rows seen so far lead to, as far as a plan is likely to read them; none if very many.

        These are children of the ancestors, and of other nodes in the box; neighbours of ancestors, and neighbours of
        these children that are connected across chunks of higher layers; and the parents of all of them.
        """
        layout, seen = self._graph.layout, self._seen.known()
        on_chain = find(np.unique(self._matrix), seen.ids) >= 0
        opened = on_chain if self._box is None else on_chain | chunks_touch(self._graph, seen.ids, self._box)
        below = take(seen.children, np.flatnonzero(opened)).values
        owners = seen.edges.edges[:, 0]
        upwards = seen.edges.layers > layout.layers(owners)
        beside = seen.edges.edges[upwards | (find(seen.ids[on_chain], owners) >= 0), 1]
        nodes = np.unique(np.concatenate([below, beside, seen.parents[seen.parents != 0]]))
        nodes = nodes[(layout.layers(nodes) >= 2) & (find(seen.ids, nodes) < 0)]
        return nodes if len(nodes) <= MAX_GUESSES else nodes[:0]

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
        hints = hints_of(graph.table)
        matrix = self._matrix = np.zeros((len(self._supervoxels), graph.n_layers + 1), np.uint64)
        hinted = hints.above(self._supervoxels)
        self._seen.fetch(np.concatenate([self._supervoxels, hinted]))
        columns, current, rows = np.arange(graph.n_layers + 1), self._supervoxels, np.arange(len(matrix))
        while len(rows):
            layers = graph.layout.layers(current)
            matrix[rows] = np.where(columns >= layers[:, None], current[:, None], matrix[rows])
            rows, current = rows[layers < graph.n_layers], current[layers < graph.n_layers]
            if not self._seen.has(current):
                self._fetch(current)
            children, current = current, self._seen.parents(current)
            hints.note(children, current)
            rows, current = rows[current != 0], current[current != 0]
        if (find(np.unique(matrix), hinted) < 0).any():
            self._seen = NodeCache(graph)  # hints were wrong: nodes that are not in use any more are no part of a plan
        lost = self._supervoxels[graph.layout.layers(matrix[:, -1]) != graph.n_layers]
        if len(lost):
            raise refusal_of_unknown(graph, lost)
