"""Merges: chooses the edges that become active, and plans the new hierarchy. Reads only; the session writes."""

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
    """The result that a merge would have now."""

    roots: UInt64Array
    """Roots of the objects at the points, ascending."""
    plan: EditPlan | None = None
    """The planned edit, with provisional ids; None if the merge would be refused."""
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
    """Merge two objects into one.

    Inside the region around the points, all inactive edges between the part with the source points and the part with
    the sink points become active. If there are none, a new edge between the first source and the first sink is added.

    Parameters
    ----------
    volume
        The graph's segmentation at mip 0, a TensorStore; needed where the supervoxels of points have to be looked up.
    patience
        How long to wait for objects that other operations are editing.
    resumption
        The unfinished operation that is repeated; recovery passes it.

    Raises
    ------
    EditRefused
        If the merge cannot be made; the error carries the reason, and nothing is changed.
    """
    return run_edit(graph, Merge(request, volume), patience=patience, resumption=resumption)


class Merge(EditOfPoints[MergeRequest]):
    """A merge, as an :class:`~sv_pipeline.edits.session.Edit`."""

    def prepare(self, graph: ChunkedGraph) -> Self:
        """Look up the supervoxels of the points; raise EditRefused if the two sides are too far apart."""
        edit = super().prepare(graph)
        check_distance(graph, edit.request)
        return edit

    def plan(self, workspace: Workspace) -> EditPlan:
        """See :func:`plan_merge`."""
        return plan_merge(workspace, self.request)


def preview_merge(graph: ChunkedGraph, request: MergeRequest, *, volume: Any = None) -> MergePreview:
    """Plan what :func:`merge` would do now, by the same code, without locking or writing anything.

    Raises
    ------
    EditRefused
        If the request itself is invalid, whichever objects the points are on.
    """
    request = Merge(request, volume).prepare(graph).request
    workspace = workspace_of_preview(graph, np.concatenate([request.sources.ids, request.sinks.ids]))
    try:
        return MergePreview(workspace.roots, plan_merge(workspace, request))
    except EditRefused as refusal:
        return MergePreview(workspace.roots, refusal=refusal)


def plan_merge(workspace: Workspace, request: MergeRequest) -> EditPlan:
    """Plan a merge; the caller holds the locks of both roots, or only wants a preview."""
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
    """Plan an edit that makes edges active, including the edges that become active through new common ancestors.

    Parameters
    ----------
    kind
        Kind of the edit, as :attr:`EditPlan.kind` has it.
    added, parents
        Pairs of supervoxels, smaller id first, and the layer 2 nodes of their ends; shape (n, 2) each.
    logged
        Edges that the operation's row in the log names, shape (m, 2).
    fake
        New edges that are in no edge file, shape (k, 2).
    """
    graph, cache = workspace.graph, workspace.cache
    plan = plan_above(workspace, lambda known: add_edges(graph.layout, added, parents, known), parents)
    implied, implied_parents = implied_edges(graph, cache, plan, added)
    if len(implied):
        added, parents = np.concatenate([added, implied]), np.concatenate([parents, implied_parents])
        plan = plan_above(workspace, lambda known: add_edges(graph.layout, added, parents, known), parents)
    return EditPlan(kind, plan, added_edges=logged, fake_edges=fake, activated=added)


def _check_roots(workspace: Workspace, request: MergeRequest) -> None:
    sides = {"source": request.sources, "sink": request.sinks}
    sources, sinks = (workspace.roots_of(points.ids) for points in sides.values())
    for name, roots in (("source", sources), ("sink", sinks)):
        if len(roots) > 1:
            raise EditRefused(
                Reason.SEVERAL_ROOTS,
                f"the {name} points are on {len(roots)} objects: {workspace.points_by_root({name: sides[name]})}.",
                remedy="Place all points of one side on one object; a merge joins two objects.",
            )
    if sources[0] == sinks[0]:
        raise EditRefused(
            Reason.SAME_ROOT,
            f"all points are on one object already, root {int(sources[0])}.",
            remedy="If this is not the object that you mean, place the points of one side on another object.",
        )


def _edges_to_activate(region: Region, request: MergeRequest) -> UInt64Array:
    """Return the inactive edges between the part with the sources and the part with the sinks, shape (n, 2)."""
    pairs, inside, active = region.edges.pairs, region.inside, region.active
    labels = component_labels(region.supervoxels, pairs[active])
    sides = []
    for name, points in (("source", request.sources), ("sink", request.sinks)):
        at = find(region.supervoxels, points.ids)
        if (at < 0).any():
            raise EditRefused(
                Reason.BAD_REQUEST,
                f"{name} {int(points.ids[at < 0][0])} is not near the voxel that the request names for it.",
                remedy="Give a voxel of the supervoxel, or name only one of the two.",
            )
        parts = np.unique(labels[at])
        if len(parts) > 1:
            raise EditRefused(
                Reason.NOT_CONNECTED,
                f"the {name} points are not connected with each other near the merge.",
                remedy="Place them closer together, or use only one of them.",
            )
        sides.append(parts[0])
    if sides[0] == sides[1]:
        return pairs[:0]
    ends = labels[find(region.supervoxels, pairs[inside & ~active])]
    between = np.sort(ends, axis=1) == np.sort(np.array(sides))
    return np.asarray(pairs[inside & ~active][between.all(axis=1)], np.uint64)
