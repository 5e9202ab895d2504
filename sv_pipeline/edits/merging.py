"""Merges: which edges become active, and the plan that follows. Reads; leaves writing to the session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sv_pipeline.algorithms.components import component_labels, find
from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.implied_edges import implied_edges
from sv_pipeline.edits.plan.level2_change import add_edges
from sv_pipeline.edits.plan.region import Region, read_region
from sv_pipeline.edits.plan.workspace import Workspace, plan_above, workspace_of_preview
from sv_pipeline.edits.requests import MergeRequest, check_distance, region_of
from sv_pipeline.edits.session import EditOfPoints, Resumption, run_edit
from sv_pipeline.edits.write.commit import CommittedEdit
from sv_pipeline.edits.write.locking import LockPatience
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["MergePreview", "merge", "plan_addition", "plan_merge", "preview_merge"]


@dataclass(frozen=True, eq=False)
class MergePreview:
    """What a merge would do now."""

    roots: UInt64Array
    """The objects at the points, ascending."""
    plan: EditPlan | None = None
    """With provisional ids; None if the merge would be refused."""
    refusal: EditRefused | None = None
    """Why the merge would be refused."""


def merge(
    graph: ChunkedGraph,
    request: MergeRequest,
    *,
    volume: Any = None,
    patience: LockPatience | None = None,
    resumption: Resumption | None = None,
) -> CommittedEdit:
    """Make one object of two.

    All inactive edges become active that join, inside the region around the points, the part with the source points and
    the part with the sink points; where there is none, an edge is made between the first source and the first sink.

    Parameters
    ----------
    volume
        The graph's segmentation at mip 0, where points are to be looked up.
    patience
        How long to wait for objects that others are editing.
    resumption
        For who recovers the operation.

    Raises
    ------
    EditRefused
        If this cannot be done, with a reason; nothing is changed.
    """
    return run_edit(graph, Merge(request, volume), patience=patience, resumption=resumption)


class Merge(EditOfPoints[MergeRequest]):
    """One merge, as an :class:`~sv_pipeline.edits.session.Edit`."""

    def prepare(self, graph: ChunkedGraph) -> Self:
        """With the supervoxels at the points; refused if the two sides are too far apart."""
        edit = super().prepare(graph)
        check_distance(graph, edit.request)
        return edit

    def plan(self, workspace: Workspace) -> EditPlan:
        """See :func:`plan_merge`."""
        return plan_merge(workspace, self.request)


def preview_merge(graph: ChunkedGraph, request: MergeRequest, *, volume: Any = None) -> MergePreview:
    """What :func:`merge` would do now, found in the same way; nothing is locked or written.

    Raises
    ------
    EditRefused
        If the request makes no sense, wherever the objects are.
    """
    request = Merge(request, volume).prepare(graph).request
    workspace = workspace_of_preview(graph, np.concatenate([request.sources.ids, request.sinks.ids]))
    try:
        return MergePreview(workspace.roots, plan_merge(workspace, request))
    except EditRefused as refusal:
        return MergePreview(workspace.roots, refusal=refusal)


def plan_merge(workspace: Workspace, request: MergeRequest) -> EditPlan:
    """Plan a merge under the locks of both roots."""
    _check_roots(workspace, request)
    region = read_region(workspace.graph, workspace.cache, workspace.roots, region_of(workspace.graph, request))
    pairs = _edges_to_activate(region, request)
    users_edge = np.stack([request.sources.ids[:1], request.sinks.ids[:1]], axis=-1)
    fake = users_edge if not len(pairs) else np.zeros((0, 2), np.uint64)
    added = np.concatenate([pairs, np.sort(fake, axis=1)])
    parents = region.ancestors_of(added, 2)
    return plan_addition(workspace, "merge", added, parents, users_edge, fake)


def plan_addition(
    workspace: Workspace,
    kind: str,
    added: UInt64Array,
    parents: UInt64Array,
    logged: UInt64Array,
    fake: UInt64Array,
) -> EditPlan:
    """Plan that edges become active, and with them those that follow from the new ancestors.

    Parameters
    ----------
    added, parents
        Pairs of supervoxels, smaller first, and their layer 2 nodes; shape (n, 2).
    logged
        Edges that the operation's row names.
    fake
        Those that no file has.
    """
    graph, cache = workspace.graph, workspace.cache
    plan = plan_above(workspace, lambda known: add_edges(graph.layout, added, parents, known), parents)
    implied, implied_parents = implied_edges(graph, cache, plan, added)
    if len(implied):
        added, parents = np.concatenate([added, implied]), np.concatenate([parents, implied_parents])
        plan = plan_above(workspace, lambda known: add_edges(graph.layout, added, parents, known), parents)
    return EditPlan(kind, plan, added_edges=logged, fake_edges=fake, activated=added)


def _check_roots(workspace: Workspace, request: MergeRequest) -> None:
    sources, sinks = (workspace.roots_of(points.ids) for points in (request.sources, request.sinks))
    for name, roots in (("source", sources), ("sink", sinks)):
        if len(roots) > 1:
            raise EditRefused(
                Reason.SEVERAL_ROOTS,
                f"the {name} points are on {len(roots)} objects: {', '.join(map(str, roots[:5].tolist()))}.",
                remedy="Merge two objects at a time.",
            )
    if sources[0] == sinks[0]:
        raise EditRefused(
            Reason.SAME_ROOT,
            f"all points are on one object already, root {int(sources[0])}.",
            remedy="There is nothing to merge; or place the points of one side on another object.",
        )


def _edges_to_activate(region: Region, request: MergeRequest) -> UInt64Array:
    """Inactive edges between the part with the sources and the part with the sinks, shape (n, 2)."""
    pairs, inside, active = region.edges.pairs, region.inside, region.active
    labels = component_labels(region.supervoxels, pairs[active])
    sides = []
    for name, points in (("source", request.sources), ("sink", request.sinks)):
        at = find(region.supervoxels, points.ids)
        if (at < 0).any():
            raise EditRefused(
                Reason.BAD_REQUEST,
                f"{name} {int(points.ids[at < 0][0])} is not near the voxel that the request names for it.",
                remedy="Name the voxel at which the supervoxel is, or only one of the two.",
            )
        parts = np.unique(labels[at])
        if len(parts) > 1:
            raise EditRefused(
                Reason.NOT_CONNECTED,
                f"the {name} points are not connected with each other near the merge.",
                remedy="Place them closer together, or name one only.",
            )
        sides.append(parts[0])
    if sides[0] == sides[1]:
        return pairs[:0]
    ends = labels[find(region.supervoxels, pairs[inside & ~active])]
    between = np.sort(ends, axis=1) == np.sort(np.array(sides))
    return np.asarray(pairs[inside & ~active][between.all(axis=1)], np.uint64)
