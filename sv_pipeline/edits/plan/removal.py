"""Edges that become inactive: the plan, what it parts, and the refusal of one that parts nothing. Reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sv_pipeline.edits.plan.bridges import describe_way
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.level2_change import OtherChange, remove_edges
from sv_pipeline.edits.plan.parting import roots_after
from sv_pipeline.edits.plan.region import Region
from sv_pipeline.edits.plan.workspace import Workspace, plan_above
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["Removal", "plan_removal"]


@dataclass(frozen=True, eq=False)
class Removal:
    """The plan of a removal of edges, in a region."""

    workspace: Workspace
    region: Region
    edges: UInt64Array
    """Pairs that are to become inactive, smaller first, shape (n, 2)."""
    plan: HierarchyPlan
    other: OtherChange = field(default_factory=OtherChange)

    @property
    def ends(self) -> UInt64Array:
        """The root of each end of the edges afterwards, shape (n, 2)."""
        return roots_after(self.plan, self.region, self.edges.ravel()).reshape(-1, 2)

    def feasible(self) -> Removal:
        """The same of those edges only that can become inactive; possibly of none.

        An edge whose ends stay under one ancestor just above it, by a way around, is active whatever is planned.
        """
        removal = self
        while len(removal.edges):
            layout, edges = removal.plan.layout, removal.edges
            layers = layout.cross_layers(edges[:, 0], edges[:, 1]) + 1
            ends = [removal.plan.new_ancestors(edges[:, side], layers) for side in (0, 1)]
            stay = ends[0] == ends[1]
            if not stay.any():
                break
            if stay.all():
                return replace(removal, edges=edges[:0])
            removal = plan_removal(self.workspace, self.region, edges[~stay], self.other)
        return removal

    def still_connected(self, sources: UInt64Array, sinks: UInt64Array, remedy: str) -> EditRefused:
        """The refusal that names a place where supervoxels of the two sides stay joined."""
        graph, cache = self.workspace.graph, self.workspace.cache
        where = describe_way(graph, cache, self.plan, self.region, sources, sinks)
        return EditRefused(
            Reason.STILL_CONNECTED,
            f"without the {len(self.edges)} edge(s) of the cut, the two sides are one object all the same: {where}",
            remedy=remedy,
        )


def plan_removal(
    workspace: Workspace, region: Region, removed: UInt64Array, other: OtherChange | None = None
) -> Removal:
    """Plan that active edges of a region become inactive, all of them.

    Parameters
    ----------
    other
        What else changes, where supervoxels are replaced.
    """
    layout, also = workspace.graph.layout, other or OtherChange()
    removed = np.unique(np.sort(removed.reshape(-1, 2), axis=1), axis=0)
    parents = region.ancestors_of(removed, 2)
    plan = plan_above(
        workspace,
        lambda known: remove_edges(layout, removed, parents, region.edges, known, also),
        np.concatenate([parents.ravel(), also.nodes]),
    )
    return Removal(workspace, region, removed, plan, also)
