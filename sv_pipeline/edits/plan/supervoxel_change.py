"""Supervoxels that an edit replaces by others, as a value and as rows. Pure; how one comes about is of its makers.

A split replaces one supervoxel by several, its undo several by one. The rows, all at the time of the edit::

    new supervoxel     former_ids = those it replaces, operation_id      (and its parent, with the hierarchy)
    old supervoxel     new_ids = those that replace it
    f-rows             split_edges, affinities, areas: the edges of new supervoxels, from both ends; and once more as
                       compacted_*, where PyChunkedGraph looks for those of today

Rows of layer 2 nodes that are retired stay as they are, so leaves of a moment are the supervoxels of that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.local_edges import LocalEdges, edit_edge_rows
from sv_pipeline.algorithms.voxel_blocks import VoxelBlocks
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowMutation

__all__ = ["SupervoxelChange", "renamed_ids", "rows_of_supervoxels"]


def renamed_ids(array: UInt64Array, old: UInt64Array, new: UInt64Array) -> UInt64Array:
    """Ids with those in ``old`` (ascending) replaced by ``new``; any shape."""
    at = find(old, array)
    return np.asarray(np.where(at >= 0, new[at], array), np.uint64) if len(old) else array


@dataclass(frozen=True, eq=False)
class SupervoxelChange:
    """Supervoxels that are replaced, their edges, their voxels. New ones have provisional ids at first."""

    ids: UInt64Array
    """New supervoxels, shape (k,)."""
    links: UInt64Array
    """(old, new), shape (m, 2)."""
    sides: npt.NDArray[np.uint8]
    """Of a cut: 1 or 2 for each of ``ids``; 0 where there is none."""
    edges: LocalEdges
    """All edges of new supervoxels, and new values of old edges."""
    chunks: UInt64Array = field(repr=False)
    """Layer 2 chunks that are locked: those in which voxels change, and their neighbours."""
    generation: int
    """Of the fork, that the voxels were read at."""
    blocks: Callable[[UInt64Array], VoxelBlocks] = field(repr=False)
    """The storage chunks that change, given the final id of each of ``ids``."""

    def renamed(self, old: UInt64Array, new: UInt64Array) -> SupervoxelChange:
        """The same change with other ids for its new supervoxels; ``old`` ascending."""
        edges = LocalEdges(
            renamed_ids(self.edges.pairs, old, new), self.edges.affinities, self.edges.areas, self.edges.active
        )
        return replace(self, ids=renamed_ids(self.ids, old, new), links=renamed_ids(self.links, old, new), edges=edges)

    @property
    def record(self) -> UInt64Array:
        """(old, new, side), shape (m, 3): what is kept of it, for its undo."""
        order = np.argsort(self.ids)
        sides = self.sides[order[find(self.ids[order], self.links[:, 1])]].astype(np.uint64)
        return np.concatenate([self.links, sides[:, None]], axis=1)


def rows_of_supervoxels(
    change: SupervoxelChange, layout: IdLayout, operation_id: int, timestamp: int
) -> tuple[list[RowMutation], list[RowMutation]]:
    """Rows of new supervoxels that nothing points to yet; and those that switch over."""
    made_by = columns.OPERATION_ID.set(operation_id, timestamp)
    new = [
        RowMutation(key, [columns.FORMER_IDS.set(former, timestamp), made_by])
        for key, former in _grouped(change.links[:, 1], change.links[:, 0])
    ]
    switching = [
        RowMutation(key, [columns.NEW_IDS.set(successors, timestamp)])
        for key, successors in _grouped(change.links[:, 0], change.links[:, 1])
    ]
    for row in edit_edge_rows(change.edges, layout):
        switching.append(
            RowMutation(
                keys.edit_edge_key(row.chunk_id),
                [
                    columns.SPLIT_EDGES.set(row.pairs, timestamp),
                    columns.AFFINITIES.set(row.affinities, timestamp),
                    columns.AREAS.set(row.areas, timestamp),
                    columns.COMPACTED_SPLIT_EDGES.set(row.pairs, timestamp),
                    columns.COMPACTED_AFFINITIES.set(row.affinities, timestamp),
                    columns.COMPACTED_AREAS.set(row.areas, timestamp),
                ],
            )
        )
    return new, switching


def _grouped(owners: UInt64Array, values: UInt64Array) -> list[tuple[bytes, UInt64Array]]:
    """Row of each owner, and its values, ascending."""
    order = np.lexsort((values, owners))
    names, starts = np.unique(owners[order], return_index=True)
    groups = np.split(values[order], starts[1:]) if len(names) else []
    return list(zip(keys.node_keys(names), groups, strict=True))
