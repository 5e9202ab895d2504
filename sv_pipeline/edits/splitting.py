"""Splits: the cheapest cut between points, as plan, preview and edit. Reads; leaves writing to the session.

::

    region of the object --minimum cut--> Cut                       -> edges to remove -> hierarchy -> parted?
        ^                     ^           SupervoxelSplitRequired   -> voxels are cut, and then ...     |
        |                     |           Refused                   -> refused     |                    | no
        |                     +-- the region as it will be ------------------------+                    |
        +-- a larger region <---------------------------------------------------------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict

import numpy as np

from sv_pipeline.algorithms.multicut import cut as multicut
from sv_pipeline.algorithms.multicut.cut import LocalGraph, Refusal, Refused, SupervoxelSplitRequired
from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.level2_change import OtherChange
from sv_pipeline.edits.plan.parting import Surroundings, roots_after
from sv_pipeline.edits.plan.region import Region
from sv_pipeline.edits.plan.removal import plan_removal
from sv_pipeline.edits.plan.supervoxel_split import SupervoxelSplit, plan_supervoxel_split, without_voxels
from sv_pipeline.edits.plan.workspace import Workspace, workspace_of_preview
from sv_pipeline.edits.requests import SplitRequest
from sv_pipeline.edits.session import EditOfPoints, Resumption, run_edit
from sv_pipeline.edits.write.commit import CommittedEdit
from sv_pipeline.edits.write.locking import LockPatience
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["SplitPreview", "plan_split", "preview_split", "split"]

log = logging.getLogger(__name__)


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

    Where the two sides stay one object by a way around the region, the region is enlarged, and the cut made again.

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
    return run_edit(graph, Split(request, volume), patience=patience, resumption=resumption)


class Split(EditOfPoints[SplitRequest]):
    """One split, as an :class:`~sv_pipeline.edits.session.Edit`."""

    def plan(self, workspace: Workspace) -> EditPlan:
        """See :func:`plan_split`."""
        return plan_split(workspace, self.request)


@dataclass(frozen=True, eq=False)
class SplitPreview:
    """What a split would do now."""

    outcome: multicut.Preview | SupervoxelSplitRequired | Refused
    """Of the last minimum cut."""
    supervoxels: SupervoxelSplit | None = None
    """The cut of voxels that it takes, if it takes one. Ids of new supervoxels are provisional."""
    refusal: EditRefused | None = None
    """Why the split would be refused."""
    objects: int = 0
    """How many objects there would be in place of the one; 0 if the split would be refused."""
    still_one_object: bool = False
    """Whether some source would still be one object with some sink, which the request allows."""
    enlarged: int = 0
    """How often the region was enlarged until the cut parted the points."""


def preview_split(graph: ChunkedGraph, request: SplitRequest, *, volume: Any = None) -> SplitPreview:
    """What :func:`split` would do now, found in the same way; nothing is locked or written.

    Raises
    ------
    EditRefused
        If the request cannot be met, whatever the cut.
    """
    request = Split(request, volume).prepare(graph).request
    workspace = workspace_of_preview(graph, np.concatenate([request.sources.ids, request.sinks.ids]))
    split = _find_split(workspace, request)
    plan = split.plan
    return SplitPreview(
        split.outcome,
        split.supervoxels,
        split.refusal,
        0 if plan is None else len(plan.hierarchy.new_roots),
        plan is not None and plan.still_one_object,
        split.enlarged,
    )


class _CutOptions(TypedDict):
    """Options of a minimum cut."""

    path_augmentation: bool
    disallow_isolating_cut: bool | None


def _options(request: SplitRequest) -> _CutOptions:
    return {
        "path_augmentation": request.path_augmentation,
        "disallow_isolating_cut": request.disallow_isolating_cut,
    }


def _after_split(request: SplitRequest) -> _CutOptions:
    """A split through a supervoxel may leave one side with nothing but its piece."""
    return {**_options(request), "disallow_isolating_cut": False}


def local_graph(region: Region) -> LocalGraph:
    """Active edges inside a region."""
    edges = region.edges.take(region.active)
    return LocalGraph(edges.pairs, edges.affinities, edges.areas)


def plan_split(workspace: Workspace, request: SplitRequest) -> EditPlan:
    """Plan a split under the lock of its root."""
    found = _find_split(workspace, request)
    if found.plan is None:
        raise found.refusal or AssertionError
    if found.enlarged:
        log.info("the region around the points was enlarged %d time(s) until the cut parted them", found.enlarged)
    return found.plan


# -- one cut, in one region -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """What a request comes to: a plan, or a refusal."""

    outcome: multicut.Preview | SupervoxelSplitRequired | Refused
    plan: EditPlan | None = None
    refusal: EditRefused | None = None
    joined: Callable[[str], EditRefused] | None = None
    """The cut parts nothing; gives the refusal that says so, with a remedy. It takes reading."""
    supervoxels: SupervoxelSplit | None = None
    enlarged: int = 0

    @property
    def needs_more(self) -> bool:
        """Whether a larger region may do better."""
        return self.joined is not None or (self.refusal is not None and self.refusal.reason in _OF_THE_REGION)


_OF_THE_REGION = frozenset({Refusal.NOT_CONNECTED, Refusal.NOT_IN_REGION, Refusal.SIDE_NOT_CONNECTED})
_MORE_POINTS = "Place points of both sides there, too"


def _find_split(workspace: Workspace, request: SplitRequest) -> _Found:
    """The cut that parts the points, in the smallest of the growing regions that has one."""
    _check_one_root(workspace.roots)
    around = Surroundings(workspace.graph, workspace.cache, workspace.roots, request)
    while True:
        found = replace(_find_in(workspace, request, around.region), enlarged=around.times)
        if not found.needs_more:
            return found
        if not request.allow_partial:
            workspace.cache.substitute(np.zeros((0, 2), np.uint64))
            if around.enlarge():
                continue
        if found.joined is None:
            return found
        remedy = f"{_MORE_POINTS}."
        if request.allow_partial:
            remedy = f"None of these edges can become inactive while both sides are one object. {remedy}"
        elif around.too_large:
            remedy = (
                f"{_MORE_POINTS}; allow more than {request.region_memory / 1e9:.2g} GB for the region; or cut one "
                "bridge at a time (--partial, allow_partial)."
            )
        return replace(found, refusal=found.joined(remedy))


def _find_in(workspace: Workspace, request: SplitRequest, region: Region) -> _Found:
    """What the request comes to in one region."""
    sources, sinks, other, split = request.sources.ids, request.sinks.ids, OtherChange(), None
    outcome = multicut.preview(local_graph(region), sources, sinks, **_options(request))
    if isinstance(outcome, SupervoxelSplitRequired):
        graph, cache = workspace.graph, workspace.cache
        if refusal := without_voxels(request, outcome):
            return _Found(outcome, refusal=refusal)
        split = plan_supervoxel_split(graph, cache, workspace.lock_chunks, request, region, outcome)
        region, other, sources, sinks = split.planned.region, split.planned.other, split.sources, split.sinks
        outcome = multicut.preview(local_graph(region), sources, sinks, **_after_split(request))
    refusal = _refusal_of(outcome)
    if refusal is not None:
        return _Found(outcome, refusal=refusal, supervoxels=split)
    assert isinstance(outcome, multicut.Preview)
    removal = plan_removal(workspace, region, outcome.cut.removed_edges, other)
    source_roots, sink_roots = (roots_after(removal.plan, region, ids) for ids in (sources, sinks))
    joined = len(np.intersect1d(source_roots, sink_roots)) > 0
    cut = removal.feasible() if joined and request.allow_partial else removal
    if joined and not (request.allow_partial and len(cut.edges)):
        return _Found(outcome, joined=partial(removal.still_connected, sources, sinks), supervoxels=split)
    change = None if split is None else split.change
    plan = EditPlan("split", cut.plan, removed_edges=cut.edges, supervoxels=change, still_one_object=joined)
    return _Found(outcome, plan, supervoxels=split)


def _refusal_of(outcome: multicut.Preview | SupervoxelSplitRequired | Refused) -> EditRefused | None:
    refused = outcome.refused if isinstance(outcome, multicut.Preview) else outcome
    if isinstance(refused, SupervoxelSplitRequired):
        return EditRefused(
            Reason.SUPERVOXEL_SPLIT_REQUIRED,
            f"the voxel cut has not parted the points: {refused.message}",
            remedy="Move the points of one side to other supervoxels.",
        )
    return None if refused is None else EditRefused(refused.reason, refused.message)


def _check_one_root(found: UInt64Array) -> None:
    if len(found) > 1:
        raise EditRefused(
            Reason.SEVERAL_ROOTS,
            f"the points are on {len(found)} objects: {', '.join(map(str, found[:5].tolist()))}.",
            remedy="Sources and sinks of a split belong on one object.",
        )
