"""The workspace of a planner: the rows that an edit has read, and the plan that follows from a change of layer 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sv_pipeline.edits.plan.hierarchy import HierarchyPlan, Layer2Change, plan_hierarchy
from sv_pipeline.edits.plan.node_cache import KnownNodes, NodeCache, until_known
from sv_pipeline.edits.plan.unknown import refusal_of_unknown
from sv_pipeline.edits.requests import Points
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.ids import UInt64Array

__all__ = ["Workspace", "plan_above", "prefetch_surroundings", "workspace_of_preview"]

SHOWN = 2
"""Number of objects, and of points on each, that a message names."""


@dataclass(frozen=True, eq=False)
class Workspace:
    """The data that a planner works with: the graph, the rows that were read, and the roots of the points."""

    graph: ChunkedGraph
    cache: NodeCache
    roots: UInt64Array
    """The locked roots, ascending."""
    root_of: dict[int, int]
    """Root of each supervoxel of the request."""
    lock_chunks: Callable[[UInt64Array, list[str]], None]
    """Locks further layer 2 chunks, given their ids and a name for each. A planner calls it before it reads any data
    that other operations could change."""

    def roots_of(self, supervoxels: UInt64Array) -> UInt64Array:
        """Return the distinct roots of supervoxels of the request, ascending."""
        return np.unique(np.array([self.root_of[sv] for sv in supervoxels.tolist()], np.uint64))

    def points_by_root(self, sides: Mapping[str, Points]) -> str:
        """Say for a message which points are on which object."""
        on: dict[int, list[str]] = {}
        for name, points in sides.items():
            places = points.ids.tolist() if points.coordinates is None else map(tuple, points.pointed.tolist())
            for supervoxel, place in zip(points.ids.tolist(), places, strict=True):
                on.setdefault(self.root_of[supervoxel], []).append(f"{name} {place}")
        return "; ".join(f"{_some(texts)} on root {root}" for root, texts in list(on.items())[:SHOWN])


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def workspace_of_preview(graph: ChunkedGraph, supervoxels: UInt64Array) -> Workspace:
    """Make the workspace of a preview, which takes no locks.

    Raises
    ------
    EditRefused
        If one of the supervoxels is not in the graph.
    """
    found = queries.roots(graph, supervoxels, missing_ok=True)
    if (found == 0).any():
        raise refusal_of_unknown(graph, np.unique(supervoxels[found == 0]))
    root_of = dict(zip(supervoxels.tolist(), found.tolist(), strict=True))
    return Workspace(graph, NodeCache(graph), np.unique(found), root_of, lambda *_: None)


def plan_above(
    workspace: Workspace, change_of: Callable[[KnownNodes], Layer2Change], parents: UInt64Array
) -> HierarchyPlan:
    """Plan a change of layer 2 and the hierarchy above it.

    Parameters
    ----------
    change_of
        Plans the change of layer 2 from the known rows; may raise MissingNodes, which fetches rows and calls it again.
    parents
        The layer 2 nodes that are replaced, any shape.
    """
    cache, layout = workspace.cache, workspace.graph.layout
    retired = cache.ancestors(parents)
    prefetch_surroundings(workspace, retired)
    return until_known(cache, lambda known: plan_hierarchy(layout, change_of(known), retired, known))


def prefetch_surroundings(workspace: Workspace, retired: UInt64Array) -> None:
    """Read rows that a plan nearly always needs, in two requests.

    These are the siblings and neighbours of the retired nodes, and then the neighbours of the siblings.
    """
    cache, layout = workspace.cache, workspace.graph.layout
    known = cache.known()
    below = take(known.children, known.index(retired)).values
    siblings = np.setdiff1d(below[layout.layers(below) >= 2], retired)
    cache.fetch(np.concatenate([siblings, np.unique(known.edges_of(retired).edges[:, 1])]))
    edges = cache.known().edges_of(siblings)
    goes_up = edges.layers > layout.layers(edges.edges[:, 0])
    cache.fetch(np.unique(edges.edges[goes_up, 1]))
