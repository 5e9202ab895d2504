"""Splits: the cheapest cut between points, as plan, preview and edit. Reads; leaves writing to the session.

::

    region of the object --minimum cut--> Cut                       -> edges to remove -> hierarchy
                              ^           SupervoxelSplitRequired   -> voxels are cut, and then ...
                              |           Refused                   -> refused     |
                              +-- the region as it will be ------------------------+
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sv_pipeline.algorithms import multicut
from sv_pipeline.algorithms.multicut import Cut, LocalGraph, Refused, SupervoxelSplitRequired
from sv_pipeline.edits.commit import CommittedEdit, EditPlan
from sv_pipeline.edits.layer2 import OtherChange, pairs_of, remove_edges
from sv_pipeline.edits.locking import LockPatience
from sv_pipeline.edits.nodes import NodeCache
from sv_pipeline.edits.refusal import EditRefused, Reason
from sv_pipeline.edits.region import Region, read_region
from sv_pipeline.edits.requests import SplitRequest, log_cells, region_of
from sv_pipeline.edits.session import Resumption, Workspace, checked, plan_above, run_edit
from sv_pipeline.edits.supervoxel_split import SupervoxelSplit, plan_supervoxel_split
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.ids import UInt64Array

__all__ = ["SplitPreview", "plan_removal", "plan_split", "preview_split", "split"]


def split(
    graph: ChunkedGraph,
    request: SplitRequest,
    *,
    volume: Any = None,
    patience: LockPatience | None = None,
    resumption: Resumption | None = None,
) -> CommittedEdit:
    """Cut an object between the source points and the sink points, where the sum of affinities is lowest.

    Supervoxels with points of both sides are split, voxel by voxel, if the points are voxels.

    Parts may stay connected outside the region around the points: then there is one new root.

    Parameters
    ----------
    volume
        The graph's segmentation at mip 0, where points are to be looked up.
    patience
        How long to wait for an object that others are editing.
    resumption
        For who recovers the operation.

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
        resumption=resumption,
    )


@dataclass(frozen=True, eq=False)
class SplitPreview:
    """What a split would do now."""

    outcome: multicut.Preview | SupervoxelSplitRequired | Refused
    """Of the last minimum cut."""
    supervoxels: SupervoxelSplit | None = None
    """The cut of voxels that it takes, if it takes one. Ids of new supervoxels are provisional."""


def preview_split(graph: ChunkedGraph, request: SplitRequest, *, volume: Any = None) -> SplitPreview:
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
    cache = NodeCache(graph)
    region = read_region(graph, cache, np.unique(found), region_of(graph, request))
    outcome = multicut.preview(local_graph(region), request.sources.ids, request.sinks.ids, **_options(request))
    without_voxels = request.sources.coordinates is None or request.sinks.coordinates is None
    if not isinstance(outcome, SupervoxelSplitRequired) or without_voxels:
        return SplitPreview(outcome)
    split = plan_supervoxel_split(graph, cache, lambda *_: None, request, region, outcome)
    after = multicut.preview(local_graph(split.planned.region), split.sources, split.sinks, **_after_split(request))
    return SplitPreview(after, split)


def _options(request: SplitRequest) -> dict[str, bool]:
    return {
        "path_augmentation": request.path_augmentation,
        "disallow_isolating_cut": request.disallow_isolating_cut,
    }


def _after_split(request: SplitRequest) -> dict[str, bool]:
    """Who parts a supervoxel wants just that: a side may well be nothing but its piece."""
    return {**_options(request), "disallow_isolating_cut": False}


def local_graph(region: Region) -> LocalGraph:
    """Active edges inside a region."""
    active, edges = region.active, region.edges
    return LocalGraph(pairs_of(edges)[active], edges.affinities[active], edges.areas[active])


def plan_split(workspace: Workspace, request: SplitRequest) -> EditPlan:
    """Plan a split under the lock of its root."""
    graph = workspace.graph
    _check_one_root(workspace.roots)
    region = read_region(graph, workspace.cache, workspace.roots, region_of(graph, request))
    outcome = multicut.multicut(local_graph(region), request.sources.ids, request.sinks.ids, **_options(request))
    if isinstance(outcome, SupervoxelSplitRequired):
        return _plan_with_voxels(workspace, request, region, outcome)
    return plan_removal(workspace, "split", region, _cut_of(outcome).removed_edges)


def _plan_with_voxels(
    workspace: Workspace, request: SplitRequest, region: Region, required: SupervoxelSplitRequired
) -> EditPlan:
    """Plan to split supervoxels first, and then to remove edges."""
    split = plan_supervoxel_split(workspace.graph, workspace.cache, workspace.lock_chunks, request, region, required)
    planned = split.planned
    cut = _cut_of(multicut.multicut(local_graph(planned.region), split.sources, split.sinks, **_after_split(request)))
    plan = plan_removal(workspace, "split", planned.region, cut.removed_edges, planned.other)
    return replace(plan, supervoxels=split.change)


def _cut_of(outcome: Cut | SupervoxelSplitRequired | Refused) -> Cut:
    if isinstance(outcome, Refused):
        raise EditRefused(outcome.reason, outcome.message)
    if isinstance(outcome, SupervoxelSplitRequired):
        raise EditRefused(
            Reason.SUPERVOXEL_SPLIT_REQUIRED,
            f"the voxel cut has not parted the points: {outcome.message}",
            remedy="Move the points of one side to other supervoxels.",
        )
    return outcome


def plan_removal(
    workspace: Workspace, kind: str, region: Region, removed: UInt64Array, other: OtherChange | None = None
) -> EditPlan:
    """Plan that active edges of a region become inactive.

    An edge whose ends stay under one ancestor just above it, by a way around, cannot become inactive, and stays.

    Parameters
    ----------
    other
        What else changes, where supervoxels are replaced.

    Raises
    ------
    EditRefused
        If that is true of all of them.
    """
    graph, also = workspace.graph, other or OtherChange()
    asked = removed = np.unique(np.sort(removed, axis=1), axis=0)
    while True:
        parents = region.ancestors_of(removed, 2)
        plan = plan_above(
            workspace,
            lambda known, r=removed, p=parents: remove_edges(  # type: ignore[misc]
                graph.layout, r, p, region.edges, known, also
            ),
            np.concatenate([parents.ravel(), also.nodes]),
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
