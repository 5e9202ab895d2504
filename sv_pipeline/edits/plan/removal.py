"""Plans the removal of edges, and the refusal of a removal that separates nothing. Reads only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sv_pipeline.algorithms.components import unique_rows
from sv_pipeline.edits.plan.bridges import describe_way
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.level2_change import OtherChange, remove_edges
from sv_pipeline.edits.plan.parting import roots_after
from sv_pipeline.edits.plan.region import Region
from sv_pipeline.edits.plan.workspace import Workspace, plan_above
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.wording import counted

__all__ = ["Removal", "plan_removal"]


@dataclass(frozen=True, eq=False)
class Removal:
    """The plan of a removal of edges from a region."""

    workspace: Workspace
    region: Region
    edges: UInt64Array
    """Pairs of supervoxels whose edges become inactive, smaller id first, shape (n, 2)."""
    plan: HierarchyPlan
    other: OtherChange = field(default_factory=OtherChange)

    @property
    def ends(self) -> UInt64Array:
        """The root of each end of the edges after the removal, shape (n, 2)."""
        return roots_after(self.plan, self.region, self.edges.ravel()).reshape(-1, 2)

    def feasible(self) -> Removal:
        """Return the removal of those edges only that can become inactive; possibly of none.

        An edge whose ends keep a common ancestor at the layer above its cross layer, through another path, remains
        active.
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
        """Return the refusal that names a place where the two sides are still connected."""
        graph, cache = self.workspace.graph, self.workspace.cache
        where = describe_way(graph, cache, self.plan, self.region, sources, sinks)
        return EditRefused(
            Reason.STILL_CONNECTED,
            f"without the {counted(len(self.edges), 'edge')} of the cut, the two sides are still one object: {where}",
            remedy=remedy,
        )


def plan_removal(
    workspace: Workspace, region: Region, removed: UInt64Array, other: OtherChange | None = None
) -> Removal:
    """Plan the removal of active edges from a region.

    Parameters
    ----------
    removed
        Pairs of supervoxels, in any order, shape (n, 2).
    other
        Further changes of layer 2, if supervoxels are replaced.
    """
    layout, also = workspace.graph.layout, other or OtherChange()
    removed = np.sort(removed.reshape(-1, 2), axis=1)
    removed = removed[unique_rows(*removed.T)]
    parents = region.ancestors_of(removed, 2)
    plan = plan_above(
        workspace,
        lambda known: remove_edges(layout, removed, parents, region.edges, known, also),
        np.concatenate([parents.ravel(), also.nodes]),
    )
    return Removal(workspace, region, removed, plan, also)
