"""The complete plan of an edit: the values that the package `write` makes durable. Writes nothing."""

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
    """The complete plan of one edit, of which nothing is written yet."""

    kind: str
    """``merge``, ``split``, ``undo`` or ``redo``."""
    hierarchy: HierarchyPlan
    """The rows of nodes that change; new nodes have provisional ids."""
    added_edges: UInt64Array | None = None
    """Edges that the log names as added, shape (n, 2)."""
    removed_edges: UInt64Array | None = None
    """Edges that become inactive, as the log names them, shape (n, 2)."""
    activated: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """All edges that become active, including those that follow from new common ancestors, shape (n, 2)."""
    fake_edges: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """New edges that are in no edge file, shape (n, 2)."""
    supervoxels: SupervoxelChange | None = None
    """Supervoxels that are replaced, and their voxels; new supervoxels have provisional ids."""
    still_one_object: bool = False
    """Whether ends that should be separated remain under one root, which ``allow_partial`` permits."""

    @property
    def log_cells(self) -> list[SetCell]:
        """The edges of the edit, as cells of the operation's row."""
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
        """Return the plan with the ids ``old`` replaced by ``new``; both have shape (n,), and ``old`` is ascending."""

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
