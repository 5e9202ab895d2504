"""Splits: the cheapest cut between points, as plan, preview and edit. Reads; leaves writing to the session.

::

    region of the object --minimum cut--> Cut                       -> edges to remove -> hierarchy
                                          SupervoxelSplitRequired   -> refused, until voxels can be cut in the same plan
                                          Refused                   -> refused
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sv_pipeline.algorithms import multicut
from sv_pipeline.algorithms.multicut import Cut, LocalGraph, Refused, SupervoxelSplitRequired
from sv_pipeline.edits.commit import CommittedEdit, EditPlan
from sv_pipeline.edits.layer2 import pairs_of, remove_edges
from sv_pipeline.edits.locking import LockPatience
from sv_pipeline.edits.nodes import NodeCache
from sv_pipeline.edits.refusal import EditRefused, Reason
from sv_pipeline.edits.region import Region, read_region
from sv_pipeline.edits.requests import SplitRequest, log_cells, region_of
from sv_pipeline.edits.session import Workspace, checked, plan_above, run_edit
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array

__all__ = ["plan_removal", "plan_split", "preview_split", "split"]


def split(
    graph: ChunkedGraph, request: SplitRequest, *, volume: Any = None, patience: LockPatience | None = None
) -> CommittedEdit:
    """Cut an object between the source points and the sink points, where the sum of affinities is lowest.

    Parts may stay connected outside the region around the points: then there is one new root.

    Parameters
    ----------
    volume
        The graph's segmentation at mip 0, where points are to be looked up.
    patience
        How long to wait for an object that others are editing.

    Raises
    ------
    EditRefused
        If this cannot be done, with a reason; nothing is changed.
    """
    return run_edit(
        graph,
        request,
        plan_split,
        prepare=lambda r: checked(graph, r, volume),
        log_cells=lambda r: log_cells(graph, r),
        patience=patience,
    )


def preview_split(
    graph: ChunkedGraph, request: SplitRequest, *, volume: Any = None
) -> multicut.Preview | SupervoxelSplitRequired | Refused:
    """The cut that :func:`split` would make now; nothing is locked or written.

    Raises
    ------
    EditRefused
        If the request cannot be met, whatever the cut.
    """
    request = checked(graph, request, volume)
    every = np.concatenate([request.sources.ids, request.sinks.ids])
    found = roots(graph, every, missing_ok=True)
    if (found == 0).any():
        raise EditRefused(Reason.NOT_FOUND, f"supervoxel {int(every[found == 0][0])} is not in the graph.")
    _check_one_root(np.unique(found))
    box = region_of(graph, request)
    region = read_region(graph, NodeCache(graph), np.unique(found), box)
    return multicut.preview(
        local_graph(region),
        request.sources.ids,
        request.sinks.ids,
        path_augmentation=request.path_augmentation,
        disallow_isolating_cut=request.disallow_isolating_cut,
    )


def local_graph(region: Region) -> LocalGraph:
    """Active edges inside a region."""
    active, edges = region.active, region.edges
    return LocalGraph(pairs_of(edges)[active], edges.affinities[active], edges.areas[active])


def plan_split(workspace: Workspace, request: SplitRequest) -> EditPlan:
    """Plan a split under the lock of its root."""
    graph = workspace.graph
    _check_one_root(workspace.roots)
    region = read_region(graph, workspace.cache, workspace.roots, region_of(graph, request))
    outcome = multicut.multicut(
        local_graph(region),
        request.sources.ids,
        request.sinks.ids,
        path_augmentation=request.path_augmentation,
        disallow_isolating_cut=request.disallow_isolating_cut,
    )
    if isinstance(outcome, Refused):
        raise EditRefused(outcome.reason, outcome.message)
    if isinstance(outcome, SupervoxelSplitRequired):
        raise EditRefused(
            Reason.SUPERVOXEL_SPLIT_REQUIRED,
            outcome.message,
            remedy="Move the points of one side to other supervoxels.",
        )
    assert isinstance(outcome, Cut)
    return plan_removal(workspace, "split", region, outcome.removed_edges)


def plan_removal(workspace: Workspace, kind: str, region: Region, removed: UInt64Array) -> EditPlan:
    """Plan that active edges of a region become inactive.

    An edge whose ends stay under one ancestor just above it, by a way around, cannot become inactive, and stays.

    Raises
    ------
    EditRefused
        If that is true of all of them.
    """
    graph = workspace.graph
    asked = removed = np.unique(np.sort(removed, axis=1), axis=0)
    while True:
        parents = region.ancestors_of(removed, 2)
        plan = plan_above(
            workspace,
            lambda known, r=removed, p=parents: remove_edges(graph.layout, r, p, region.edges, known),  # type: ignore[misc]
            parents,
        )
        layers = graph.layout.cross_layers(removed[:, 0], removed[:, 1])
        ends = [plan.new_ancestors(removed[:, side], layers + 1) for side in (0, 1)]
        stay = ends[0] == ends[1]
        if not stay.any():
            return EditPlan(kind, plan, removed_edges=removed)
        removed = removed[~stay]
        if not len(removed):
            raise EditRefused(
                Reason.STILL_CONNECTED,
                f"all {len(asked)} edges of the cut join what is also connected just outside the region.",
                remedy="Place the points where the other connection is, too, or enlarge the region.",
            )


def _check_one_root(found: UInt64Array) -> None:
    if len(found) > 1:
        raise EditRefused(
            Reason.SEVERAL_ROOTS,
            f"the points are on {len(found)} objects: {', '.join(map(str, found[:5].tolist()))}.",
            remedy="Sources and sinks of a split belong on one object.",
        )
