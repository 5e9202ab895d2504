"""Whether a planned cut parts its points, and the region that grows until one does. Reads node rows and edges.

A minimum cut is made of the edges around the points. What it parts there may hang together by a way around::

    +----- region -----+                    the plan of the hierarchy knows it: the new roots are the same.
    |  source | sink   |                    Then the margin around the points is doubled, and the cut is made again,
    |    |    |   |    |                    until the points have roots of their own, the whole object is looked at,
    +----|--------|----+                    or the region would take more memory than it may.
         +--------+    a way around

Nothing is read for that where the first region suffices.
"""

from __future__ import annotations

import numpy as np

from sv_pipeline.algorithms.components import find
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import Region, read_region, read_region_within
from sv_pipeline.edits.requests import SplitRequest, offset_of, region_of
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array

__all__ = ["BYTES_PER_EDGE", "BYTES_PER_NODE", "Surroundings", "roots_after"]

BYTES_PER_NODE = 6_000
"""What a layer 2 node of the region takes, with its row and its supervoxels: twice what was measured on FIB-SEM."""
BYTES_PER_EDGE = 250
"""What an edge of a chunk of the region takes while the region is read and cut, whichever object it belongs to;
likewise twice what was measured."""


def roots_after(plan: HierarchyPlan, region: Region, supervoxels: UInt64Array) -> UInt64Array:
    """The root of each supervoxel of a region once a plan is carried out, shape (n,); provisional where it is new."""
    rows = region.ancestors[find(region.supervoxels, supervoxels)].copy()
    rows[:, 1] = supervoxels  # a fragment has the ancestors of what it was
    stays = (rows != 0) & (find(plan.retired, rows) < 0)
    highest = rows.shape[1] - 1 - np.argmax(stays[:, ::-1], axis=1)
    tops = rows[np.arange(len(rows)), highest]
    return plan.new_ancestors(tops, np.full(len(tops), plan.n_layers))


class Surroundings:
    """The region around the points of a split; enlarged on demand."""

    def __init__(self, graph: ChunkedGraph, cache: NodeCache, roots: UInt64Array, request: SplitRequest) -> None:
        self._graph, self._cache, self._roots, self._request = graph, cache, roots, request
        self._margin = np.asarray(offset_of(graph, request))
        self.region = read_region(graph, cache, roots, region_of(graph, request))
        self.times = 0
        """How often it was enlarged."""
        self.too_large = False
        """Whether it could not be enlarged for want of memory."""
        read = cache.read_edges
        assert read is not None
        self._edges_per_chunk = len(read.edges) / max(len(read.chunks), 1)

    def enlarge(self) -> bool:
        """Read a larger region, of more of the object; False if there is no more, or that would take too much memory.

        The cache must show the nodes as they are stored.
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
