"""The replacement of supervoxels by an edit, as a value and as rows. Pure; `supervoxel_split` and `_undo` plan it.

A split replaces one supervoxel by several, its undo several by one. These rows are written, with the timestamp of the
edit::

    new supervoxel     former_ids = supervoxels that it replaces, operation_id   (the parent comes with the hierarchy)
    old supervoxel     new_ids = supervoxels that replace it
    rows of edits      split_edges, affinities, areas = edges of the new supervoxels, in the chunks of both ends;
    (f<chunk id>)      and the same in compacted_*, where PyChunkedGraph looks for current edges

Rows of retired layer 2 nodes do not change, so the leaves of a root at some time are the supervoxels of that time.
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
    """Return an array of ids, of any shape, with the ids ``old`` (ascending) replaced by ``new``."""
    at = find(old, array)
    return np.asarray(np.where(at >= 0, new[at], array), np.uint64) if len(old) else array


@dataclass(frozen=True, eq=False)
class SupervoxelChange:
    """A replacement of supervoxels, with the edges and voxels of the new ones. New ids are provisional at first."""

    ids: UInt64Array
    """New supervoxels, shape (k,)."""
    links: UInt64Array
    """Pairs (old, new), shape (m, 2)."""
    sides: npt.NDArray[np.uint8]
    """Side of the cut for each of ``ids``, shape (k,): 1 = source, 2 = sink, 0 = none."""
    edges: LocalEdges
    """All edges of the new supervoxels, and new values of old edges."""
    chunks: UInt64Array = field(repr=False)
    """Ids of the layer 2 chunks that are locked: those in which voxels change, and their neighbours."""
    generation: int
    """Generation of the fork at which the voxels were read."""
    blocks: Callable[[UInt64Array], VoxelBlocks] = field(repr=False)
    """Returns the storage chunks that change, given the final id of each of ``ids``."""

    def renamed(self, old: UInt64Array, new: UInt64Array) -> SupervoxelChange:
        """Return the change with the ids ``old`` (ascending) replaced by ``new``; both have shape (n,)."""
        edges = LocalEdges(
            renamed_ids(self.edges.pairs, old, new), self.edges.affinities, self.edges.areas, self.edges.active
        )
        return replace(self, ids=renamed_ids(self.ids, old, new), links=renamed_ids(self.links, old, new), edges=edges)

    @property
    def record(self) -> UInt64Array:
        """The rows (old, new, side), shape (m, 3), that are stored for an undo."""
        order = np.argsort(self.ids)
        sides = self.sides[order[find(self.ids[order], self.links[:, 1])]].astype(np.uint64)
        return np.concatenate([self.links, sides[:, None]], axis=1)


def rows_of_supervoxels(
    change: SupervoxelChange, layout: IdLayout, operation_id: int, timestamp: int
) -> tuple[list[RowMutation], list[RowMutation]]:
    """Return the rows of new supervoxels, which nothing points to yet, and the rows that switch over to them."""
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
    """Return the row key of each owner with its values, both ascending."""
    order = np.lexsort((values, owners))
    names, starts = np.unique(owners[order], return_index=True)
    groups = np.split(values[order], starts[1:]) if len(names) else []
    return list(zip(keys.node_keys(names), groups, strict=True))
