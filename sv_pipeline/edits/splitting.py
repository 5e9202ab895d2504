"""Splits: the minimum cut between points, as plan, preview and edit. Reads only; the session writes.

::

    region of the object --minimum cut--> Cut                       -> edges to remove -> hierarchy -> separated?
        ^                     ^           SupervoxelSplitRequired   -> plan to cut voxels               |
        |                     |           Refused                   -> refused   |                      | no
        |                     +-- region with the new supervoxels ---------------+                      |
        +-- a larger region <---------------------------------------------------------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.multicut import cut as multicut
from sv_pipeline.algorithms.multicut.cut import LocalGraph, Refusal, Refused, SupervoxelSplitRequired
from sv_pipeline.algorithms.voxel_cut import Doubt
from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.level2_change import OtherChange
from sv_pipeline.edits.plan.parting import Parted, Surroundings, roots_after
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
from sv_pipeline.wording import counted

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
    """Split an object between the source points and the sink points, along the cut with the lowest sum of affinities.

    A supervoxel with points of both sides is split as well, voxel by voxel, provided that the points are voxels.

    If a path outside the region still connects the two sides, the region is enlarged and the cut computed again.

    Parameters
    ----------
    volume
        The graph's segmentation at mip 0, a TensorStore; needed where the supervoxels of points have to be looked up.
    patience
        How long to wait for an object that another operation is editing.
    resumption
        The unfinished operation that is repeated; recovery passes it.

    Raises
    ------
    EditRefused
        If the split cannot be made; the error carries the reason, and nothing is changed.
    """
    return run_edit(graph, Split(request, volume), patience=patience, resumption=resumption)


class Split(EditOfPoints[SplitRequest]):
    """A split, as an :class:`~sv_pipeline.edits.session.Edit`."""

    def plan(self, workspace: Workspace) -> EditPlan:
        """See :func:`plan_split`."""
        return plan_split(workspace, self.request)


@dataclass(frozen=True, eq=False)
class SplitPreview:
    """The result that a split would have now."""

    outcome: multicut.Preview | SupervoxelSplitRequired | Refused
    """Outcome of the last minimum cut."""
    supervoxels: SupervoxelSplit | None = None
    """The planned split of supervoxels, if one is needed. Ids of new supervoxels are provisional."""
    refusal: EditRefused | None = None
    """Why the split would be refused."""
    objects: int = 0
    """Number of objects that would replace the one; 0 if the split would be refused."""
    still_one_object: bool = False
    """Whether some source and some sink would still be in one object, which ``allow_partial`` permits."""
    enlarged: int = 0
    """Number of times that the region was enlarged until the cut separated the points."""
    parted: Parted | None = None
    """The objects on both sides; None if the split would be refused, or both sides would still be one object."""

    def sides_of(self, graph: ChunkedGraph, supervoxels: UInt64Array) -> npt.NDArray[np.uint8]:
        """Return the side of each supervoxel after the split, shape (n,): 1 = source, 2 = sink, 0 = neither.

        They may lie anywhere in the object. If it is not known which objects there will be, only supervoxels in the
        region that was cut have sides. Supervoxels that are split themselves have none.
        """
        if self.parted is not None:
            return self.parted.sides_of(graph, supervoxels)
        sides = np.zeros(len(supervoxels), np.uint8)
        if isinstance(self.outcome, multicut.Preview):
            cut = self.outcome.cut
            sides[np.isin(supervoxels, cut.source_side)], sides[np.isin(supervoxels, cut.sink_side)] = 1, 2
        return sides

    @property
    def doubt(self) -> Doubt | None:
        """What is most doubtful about the cut of voxels; None if none are cut, or nothing is known against it."""
        return None if self.supervoxels is None else self.supervoxels.doubt


def preview_split(graph: ChunkedGraph, request: SplitRequest, *, volume: Any = None) -> SplitPreview:
    """Plan what :func:`split` would do now, by the same code, without locking or writing anything.

    Raises
    ------
    EditRefused
        If the request is refused before any cut is computed.
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
        split.parted,
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
    """Return the options of the second cut: a split through a supervoxel may leave one side with its piece alone."""
    return {**_options(request), "disallow_isolating_cut": False}


def local_graph(region: Region) -> LocalGraph:
    """Return the active edges inside a region as a graph for the minimum cut."""
    edges = region.edges.take(region.active)
    return LocalGraph(edges.pairs, edges.affinities, edges.areas)


def plan_split(workspace: Workspace, request: SplitRequest) -> EditPlan:
    """Plan a split; the caller holds the lock of its root."""
    found = _find_split(workspace, request)
    if found.plan is None:
        raise found.refusal or AssertionError
    if found.enlarged:
        times = counted(found.enlarged, "time")
        log.info("the region around the points was enlarged %s until the cut separated them", times)
    if found.supervoxels is not None and found.supervoxels.doubt is not None:
        log.warning("%s", found.supervoxels.doubt)
    return found.plan


# -- one cut, in one region -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """The result of a request: a plan, or a refusal."""

    outcome: multicut.Preview | SupervoxelSplitRequired | Refused
    plan: EditPlan | None = None
    refusal: EditRefused | None = None
    joined: Callable[[str], EditRefused] | None = None
    """Set if the cut separates nothing: makes the refusal that says so, given a remedy. The call reads node rows."""
    supervoxels: SupervoxelSplit | None = None
    enlarged: int = 0
    parted: Parted | None = None

    @property
    def needs_more(self) -> bool:
        """Whether the request might succeed in a larger region."""
        return self.joined is not None or (self.refusal is not None and self.refusal.reason in _OF_THE_REGION)


_OF_THE_REGION = frozenset({Refusal.NOT_CONNECTED, Refusal.NOT_IN_REGION, Refusal.SIDE_NOT_CONNECTED})
_MORE_POINTS = "Place points of both sides there as well"


def _find_split(workspace: Workspace, request: SplitRequest) -> _Found:
    """Find a cut that separates the points, in the smallest of the growing regions that has one."""
    _check_one_root(workspace, request)
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
            remedy = f"None of the cut edges can become inactive while both sides are one object. {remedy}"
        elif around.too_large:
            remedy = (
                f"{_MORE_POINTS}, allow more than {request.region_memory / 1e9:.2g} GB for the region, or cut one "
                "bridge at a time (--partial, allow_partial)."
            )
        return replace(found, refusal=found.joined(remedy))


def _find_in(workspace: Workspace, request: SplitRequest, region: Region) -> _Found:
    """Find a cut in one region, and plan what follows from it."""
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
    parted = None if joined else Parted(cut.plan, source_roots, sink_roots)
    return _Found(outcome, plan, supervoxels=split, parted=parted)


def _refusal_of(outcome: multicut.Preview | SupervoxelSplitRequired | Refused) -> EditRefused | None:
    refused = outcome.refused if isinstance(outcome, multicut.Preview) else outcome
    if isinstance(refused, SupervoxelSplitRequired):
        return EditRefused(
            Reason.SUPERVOXEL_SPLIT_REQUIRED,
            f"the voxel cut has not separated the points: {refused.message}",
            remedy="Move the points of one side to other supervoxels.",
        )
    return None if refused is None else EditRefused(refused.reason, refused.message)


def _check_one_root(workspace: Workspace, request: SplitRequest) -> None:
    if len(workspace.roots) > 1:
        where = workspace.points_by_root({"source": request.sources, "sink": request.sinks})
        raise EditRefused(
            Reason.SEVERAL_ROOTS,
            f"the points are on {len(workspace.roots)} objects: {where}.",
            remedy="Place all sources and sinks of a split on one object.",
        )
