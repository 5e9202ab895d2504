"""Finds the edges that a merge of other software made active, since its log names only the user's edge. Reads only."""

from __future__ import annotations

import numpy as np

from sv_pipeline.algorithms.components import find
from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import read_region
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.footprint import box_around
from sv_pipeline.operations.log import Operation
from sv_pipeline.operations.other_software import edited_roots, logical_time
from sv_pipeline.table import columns

__all__ = ["edges_activated_by"]


def edges_activated_by(graph: ChunkedGraph, operation: Operation) -> UInt64Array | None:
    """Return the edges between the objects that a merge joined, near its points, and the user's edge; shape (n, 2).

    A merge activates all inactive edges between the two objects, so these are the edges whose ends were on different
    ones of its old roots one millisecond before it. Returns None if the log names no edge.
    """
    users_edge, at = columns.ADDED_EDGES.newest(operation.row), logical_time(operation)
    if users_edge is None or not len(users_edge):
        return None
    users_edge = users_edge.astype(np.uint64)
    before, box = np.array(edited_roots(graph, operation), np.uint64), box_around(graph, [operation])
    if at is None or len(before) < 2:
        return users_edge
    today = roots(graph, users_edge.ravel(), missing_ok=True)
    box = graph.grid.bounds if box is None else box.clip(graph.grid.bounds)
    region = read_region(graph, NodeCache(graph), np.unique(today[today > 0]), box)
    then = roots(graph, region.supervoxels, at=at - 1, missing_ok=True)
    ends = then[find(region.supervoxels, region.edges.pairs[region.inside])]
    between = (ends[:, 0] != ends[:, 1]) & np.isin(ends, before).all(axis=1)
    return np.concatenate([users_edge, region.edges.pairs[region.inside][between]])
