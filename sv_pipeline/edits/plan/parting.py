"""Checks whether a planned cut separates its points, and enlarges the region until one does. Reads nodes and edges.

A minimum cut is computed from the edges around the points. A path outside of the region may still connect the sides::

    +----- region -----+                    In this case the planned hierarchy has one new root for both sides.
    |  source | sink   |                    Then the margin around the points is doubled and the cut computed again,
    |    |    |   |    |                    until the points have different roots, the region holds the whole object,
    +----|--------|----+                    or a larger region would take more memory than the request allows.
         +--------+    path outside

If the first region suffices, nothing more is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import Region, read_region, read_region_within
from sv_pipeline.edits.requests import SplitRequest, offset_of, region_of
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import read_ancestor_matrix
from sv_pipeline.ids import UInt64Array

__all__ = ["BYTES_PER_EDGE", "BYTES_PER_NODE", "Parted", "Surroundings", "roots_after"]

BYTES_PER_NODE = 6_000
"""Estimated memory for a layer 2 node of the region, its row and its supervoxels, in bytes: twice the value measured
on FIB-SEM data."""
BYTES_PER_EDGE = 250
"""Estimated memory for an edge in a chunk of the region, whichever object it belongs to, while the region is read and
cut, in bytes: twice the measured value."""


def roots_after(plan: HierarchyPlan, region: Region, supervoxels: UInt64Array) -> UInt64Array:
    """Return the root of each supervoxel of a region after a plan, shape (n,); new roots have provisional ids."""
    rows = region.ancestors[find(region.supervoxels, supervoxels)].copy()
    rows[:, 1] = supervoxels  # a fragment has the ancestors of the supervoxel that it comes from
    return _tops(plan, rows)


def _tops(plan: HierarchyPlan, rows: UInt64Array) -> UInt64Array:
    """Return the root after a plan of each row of ancestors by layer, shape (n, layers + 1); 0 where there are none."""
    stays = (rows != 0) & (find(plan.retired, rows) < 0)
    highest = rows.shape[1] - 1 - np.argmax(stays[:, ::-1], axis=1)
    tops = rows[np.arange(len(rows)), highest]
    return plan.new_ancestors(tops, np.full(len(tops), plan.n_layers))


@dataclass(frozen=True, eq=False)
class Parted:
    """The objects that a split makes, as far as they hold its points; they have provisional ids."""

    plan: HierarchyPlan
    sources: UInt64Array
    """Objects with source points, shape (n,)."""
    sinks: UInt64Array
    """Objects with sink points, shape (m,)."""

    def sides_of(self, graph: ChunkedGraph, supervoxels: UInt64Array) -> npt.NDArray[np.uint8]:
        """Return the side of each supervoxel, wherever it is, shape (n,): 1 = source side, 2 = sink side, 0 = neither.

        A supervoxel that the split cuts has no side. The ancestors of the others are read.
        """
        tops = _tops(self.plan, read_ancestor_matrix(graph, supervoxels))
        sides = np.where(np.isin(tops, self.sources), 1, np.where(np.isin(tops, self.sinks), 2, 0))
        return np.asarray(sides, np.uint8)


class Surroundings:
    """The region around the points of a split, which can be enlarged."""

    def __init__(self, graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, request: SplitRequest) -> None:
        self._graph, self._cache, self._roots, self._request = graph, cache, roots, request
        self._margin = np.asarray(offset_of(graph, request))
        self.region = read_region(graph, cache, roots, region_of(graph, request))
        self.times = 0
        """Number of times that the region was enlarged."""
        self.too_large = False
        """Whether the region could not be enlarged because it would take too much memory."""
        read = cache.read_edges
        assert read is not None
        self._edges_per_chunk = len(read.edges) / max(len(read.chunks), 1)

    def enlarge(self) -> bool:
        """Read a larger region that holds more of the object.

        Returns False if the region holds the whole object already, or a larger one would take too much memory. The
        cache must show the nodes as they are stored, without replacements.
        """
        before = len(self.region.layer2)
        while not self.region.whole:
            self._margin = np.maximum(2 * self._margin, self._graph.grid.chunk_size)
            box = region_of(self._graph, self._request, self._margin)
            larger = read_region_within(self._graph, self._cache, self._roots, box, self._allowed)
            if larger is None:
                self.too_large = True
                return False
            self.region = larger
            if len(larger.layer2) > before:
                self.times += 1
                return True
        return False

    def _allowed(self, nodes: int, chunks: int) -> bool:
        edges = int(chunks * self._edges_per_chunk)
        return nodes * BYTES_PER_NODE + edges * BYTES_PER_EDGE <= self._request.region_memory
