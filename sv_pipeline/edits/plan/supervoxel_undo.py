"""Plans the undo of a supervoxel split: its fragments become one supervoxel again, with voxels and edges. Reads only.

An id is never used again. If supervoxel A was split into A1 and A2, the undo makes a new supervoxel A' in its place::

    voxels    all voxels of A1 and A2 become A'
    edges     A' gets all edges of A, A1 and A2 to current supervoxels; of several, the largest affinity counts, so
              an affinity of inf is restored
    graph     edges that the split removed become active again, and the layer 2 nodes of A1 and A2 become one

The effects of later edits elsewhere remain. If a fragment was split again, that later edit must be undone first.
"""

from __future__ import annotations

from dataclasses import dataclass

import fastremap
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.local_edges import LocalEdges, combined
from sv_pipeline.algorithms.voxel_blocks import Labels, VoxelBlock, VoxelBlocks
from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.hierarchy import provisional_ids
from sv_pipeline.edits.plan.implied_edges import implied_edges
from sv_pipeline.edits.plan.level2_change import add_edges
from sv_pipeline.edits.plan.region import edges_of_chunks
from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange, renamed_ids
from sv_pipeline.edits.plan.supervoxel_split import lock_around
from sv_pipeline.edits.plan.workspace import Workspace, plan_above
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.hierarchy import read_ancestor_matrix
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.pair import Older, restore_advice
from sv_pipeline.operations.writing import read_identity

__all__ = ["UndoOfSplit", "plan_undo_of_split"]


@dataclass(frozen=True, eq=False)
class UndoOfSplit:
    """The request to undo an operation that split supervoxels."""

    user: str
    operation_id: int
    """Id of the operation that is undone."""
    record: UInt64Array
    """Rows (old, new, side) of the supervoxels that it replaced, shape (n, 3)."""
    edges: UInt64Array
    """Edges that it removed, between current supervoxels, shape (m, 2)."""

    @property
    def supervoxels(self) -> UInt64Array:
        """The fragments and the ends of the edges, ascending."""
        return np.unique(np.concatenate([self.record[:, 1], self.edges.ravel()]))


def plan_undo_of_split(workspace: Workspace, request: UndoOfSplit) -> EditPlan:
    """Plan the undo; the caller holds the locks of all roots concerned. Locks the chunks around the fragments."""
    graph, cache, layout = workspace.graph, workspace.cache, workspace.graph.layout
    old, fragments = request.record[:, 0], request.record[:, 1]
    chunks = np.unique(layout.coordinates(fragments), axis=0)
    locked = lock_around(graph, workspace.lock_chunks, chunks)
    olds, index = np.unique(old, return_inverse=True)
    ids = provisional_ids(layout, layout.chunks(olds), {})
    successors = ids[index]
    links = np.stack([fragments, successors], axis=-1)
    names = _Names.of(np.concatenate([fragments, olds]), np.concatenate([successors, ids]))

    ends = np.unique(np.concatenate([fragments, request.edges.ravel()]))
    parents = read_ancestor_matrix(graph, ends)[:, 2]
    cache.fetch(parents)
    cache.substitute(links)
    first = fragments[np.unique(old, return_index=True)[1]]
    united = np.stack([first[index], fragments], axis=-1)
    joined = np.concatenate([united, request.edges])
    added, nodes = names.of_ids(joined), parents[find(ends, joined)]
    plan = plan_above(workspace, lambda known: add_edges(layout, added, nodes, known), nodes)
    implied, implied_nodes = implied_edges(graph, cache, plan, joined)
    if len(implied):
        added, nodes = np.concatenate([added, names.of_ids(implied)]), np.concatenate([nodes, implied_nodes])
        plan = plan_above(workspace, lambda known: add_edges(layout, added, nodes, known), nodes)
    edges = _edges_of_successors(workspace, chunks, names, ids)
    active = np.unique(np.sort(added[added[:, 0] != added[:, 1]], axis=1), axis=0)
    boxes = _changed_boxes(graph, request.operation_id)
    generation = graph.fork.generation()

    def blocks(final: UInt64Array) -> VoxelBlocks:
        return _Relabelled.of(graph, boxes, generation, fragments, final[index])

    return EditPlan(
        "undo",
        plan,
        added_edges=active,
        activated=active,
        supervoxels=SupervoxelChange(ids, links, np.zeros(len(ids), np.uint8), edges, locked, generation, blocks),
    )


@dataclass(frozen=True, eq=False)
class _Names:
    """A mapping from ids of supervoxels to their ids after the undo."""

    old: UInt64Array
    new: UInt64Array

    @classmethod
    def of(cls, old: UInt64Array, new: UInt64Array) -> _Names:
        order = np.argsort(old)
        return cls(old[order], new[order])

    def of_ids(self, array: UInt64Array) -> UInt64Array:
        """Map an array of ids, of any shape, to the new ids."""
        return renamed_ids(array, self.old, self.new)


def _edges_of_successors(
    workspace: Workspace, chunks: npt.NDArray[np.int64], names: _Names, ids: UInt64Array
) -> LocalEdges:
    """Return the edges of the new supervoxels to each other and to all current supervoxels."""
    edges = edges_of_chunks(workspace.graph, chunks, workspace.cache)
    pairs = names.of_ids(edges.pairs)
    touching = np.isin(pairs, ids)
    keep = touching.any(axis=1)
    partners = np.unique(pairs[keep][~touching[keep]])
    gone = partners[replaced(workspace.graph, partners)] if len(partners) else partners
    keep &= ~np.isin(pairs, gone).any(axis=1)
    return combined(LocalEdges.of(pairs[keep], edges.affinities[keep], edges.areas[keep], False))


def _changed_boxes(graph: ChunkedGraph, operation_id: int) -> tuple[Box, ...]:
    """Return the boxes of the storage chunks that an operation changed.

    Raises
    ------
    CorruptionError
        If the fork has no record of the operation, or one of another operation with the same number.
    """
    record = graph.fork.record(operation_id)
    if record is None:
        raise CorruptionError(
            f"the fork has no record of the voxels that operation {operation_id} changed, but the table says it did.",
            remedy="Run `sv-pipeline verify`.",
        )
    if record.identity != read_identity(graph.table, operation_id):
        raise CorruptionError(
            f"the voxels that the fork has under the number {operation_id} are of another operation than the one to "
            "undo.",
            remedy=restore_advice(graph, Older.NEITHER),
        )
    return record.boxes


class _Relabelled(VoxelBlocks):
    """The storage chunks that an operation changed, with other ids; each is read on demand."""

    def __init__(self, boxes: tuple[Box, ...], volume: ts.TensorStore, names: dict[int, int]) -> None:
        self._boxes, self._volume, self._names = boxes, volume, names

    @classmethod
    def of(
        cls, graph: ChunkedGraph, boxes: tuple[Box, ...], generation: int, old: UInt64Array, new: UInt64Array
    ) -> _Relabelled:
        volume = graph.fork.open(version=generation)
        return cls(boxes, volume, dict(zip(old.tolist(), new.tolist(), strict=True)))

    @property
    def boxes(self) -> tuple[Box, ...]:
        return self._boxes

    def block(self, index: int) -> VoxelBlock:
        """Read the voxels of a storage chunk, and give them their new ids."""
        box = self._boxes[index]
        voxels: Labels = np.array(self._volume[box.slices].read(order="F").result(), np.uint64, order="F")
        return VoxelBlock(box, fastremap.remap(voxels, self._names, preserve_missing_labels=True, in_place=True))
