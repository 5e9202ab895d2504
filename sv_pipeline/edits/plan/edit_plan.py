"""DOCSTRING."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange, renamed_ids
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import columns
from sv_pipeline.table.interface import SetCell

__all__ = ["EditPlan"]


@dataclass(frozen=True, eq=False)
class EditPlan:
    """One edit, planned to the end: nothing of it is written yet."""

    kind: str
    hierarchy: HierarchyPlan
    """With provisional ids."""
    added_edges: UInt64Array | None = None
    """What the log says, shape (n, 2)."""
    removed_edges: UInt64Array | None = None
    activated: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """All edges that become active, those that follow from new ancestors included."""
    fake_edges: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """Edges that no file has and that connect from now on."""
    supervoxels: SupervoxelChange | None = None
    """Supervoxels that are replaced, with provisional ids; their voxels."""
    still_one_object: bool = False
    """Whether ends that were to be parted are under one root all the same, which the request allows."""

    @property
    def log_cells(self) -> list[SetCell]:
        """What the operation's row says about edges."""
        cells = []
        if self.added_edges is not None:
            cells.append(columns.ADDED_EDGES.set(self.added_edges))
        if self.removed_edges is not None:
            cells.append(columns.REMOVED_EDGES.set(self.removed_edges))
        return cells

    @property
    def provisional(self) -> UInt64Array:
        """Ids that stand for new nodes and new supervoxels, ascending."""
        supervoxels = self.supervoxels.ids if self.supervoxels else np.zeros(0, np.uint64)
        return np.sort(np.concatenate([self.hierarchy.new.ids, supervoxels]))

    def renamed(self, old: UInt64Array, new: UInt64Array) -> EditPlan:
        """The same plan with other ids; ``old`` ascending."""

        def edges(array: UInt64Array | None) -> UInt64Array | None:
            return None if array is None else renamed_ids(array, old, new)

        return replace(
            self,
            hierarchy=self.hierarchy.renamed(old, new),
            added_edges=edges(self.added_edges),
            removed_edges=edges(self.removed_edges),
            activated=renamed_ids(self.activated, old, new),
            supervoxels=None if self.supervoxels is None else self.supervoxels.renamed(old, new),
        )
