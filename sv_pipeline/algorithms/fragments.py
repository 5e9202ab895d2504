"""Fragments: the pieces of supervoxels whose voxels get sides, and the voxels that change. Knows no edges, no I/O.

A *member* is a supervoxel that takes part in the cut, and a *side* is the number of the part that a voxel goes to. In
its chunk a member may have voxels on both sides, and on each side several pieces::

    chunk 1 | chunk 2     side       nodes
    A A A A | B B B B    1 1 1 1 1 1 1 1    a a a a | c c c c
    A A A A | B B B B    1 2 2 2 2 2 2 1    a b b b | d d d c
    A A A A |            2 2 2 2            b b b b |
    C C     |            2 2                C C     |            C is wholly on one side

Every 26-connected piece of (member, side) is a *fragment* and gets a new id. A member that lies on one side in one
piece is *kept*: it keeps its id. Kept members and fragments together are the *nodes* of the plan. Until new ids are
reserved, fragment ``i`` is represented by ``placeholders(i)``, a value that no supervoxel can have as its id.

A supervoxel lies inside one chunk. This module checks that, and does not cut at chunk borders itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cc3d
import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, row_starts
from sv_pipeline.algorithms.voxel_blocks import Labels, VoxelBlock, VoxelBlocks
from sv_pipeline.errors import CorruptionError, InputError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import UInt64Array

__all__ = [
    "ChangedChunks",
    "FragmentPlan",
    "is_placeholder",
    "member_mask",
    "placeholder_index",
    "placeholders",
    "plan_fragments",
]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Sides = npt.NDArray[np.uint8]

_PLACEHOLDER = np.uint64(0xFF << 56)
"""Bits of layer 255, which no supervoxel id has."""
SLAB = 16
"""Number of z sections that are processed together."""


def placeholders(index: npt.ArrayLike) -> UInt64Array:
    """Return the placeholders of fragments, by their index."""
    return np.asarray(np.asarray(index, np.uint64) | _PLACEHOLDER, np.uint64)


def is_placeholder(nodes: npt.ArrayLike) -> BoolArray:
    """Return which nodes are placeholders of fragments; same shape."""
    return np.asarray(np.asarray(nodes, np.uint64) >= _PLACEHOLDER)


def placeholder_index(nodes: npt.ArrayLike) -> IntArray:
    """Return the index of the fragment of each placeholder; the result for other ids is meaningless."""
    return np.asarray(np.asarray(nodes, np.uint64) & ~_PLACEHOLDER, np.uint64).astype(np.int64)


@dataclass(frozen=True, eq=False)
class FragmentPlan:
    """The fragments of the members of a supervoxel split.

    Fragments are ordered by chunk (index of the grid), old id, side, first voxel (x fastest, then y, then z).
    """

    box: Box
    """Box of the segmentation that was read."""
    kept: UInt64Array
    """Members that keep their id, sorted, shape (k,)."""
    kept_sides: Sides
    kept_voxel_counts: IntArray
    old_ids: UInt64Array
    """Member from which each fragment comes, shape (f,)."""
    sides: Sides
    chunks: IntArray
    """Layer 2 chunk coordinates of each fragment, shape (f, 3)."""
    voxel_counts: IntArray
    first_voxels: IntArray
    """Absolute coordinates of the first voxel of each fragment, shape (f, 3)."""
    voxels: IntArray
    """All member voxels, as sorted running indices into ``box`` (x fastest), shape (n,)."""
    node_of_voxel: npt.NDArray[np.uint32]
    """Row in ``nodes`` of each of ``voxels``, shape (n,)."""

    def __len__(self) -> int:
        return len(self.old_ids)

    @cached_property
    def nodes(self) -> UInt64Array:
        """Placeholders of the fragments in their order, then the kept ids; shape (f + k,)."""
        return np.concatenate([placeholders(np.arange(len(self))), self.kept])

    @cached_property
    def node_sides(self) -> Sides:
        """Side of each of ``nodes``, shape (f + k,)."""
        return np.concatenate([self.sides, self.kept_sides])

    def rows(self, nodes: UInt64Array) -> IntArray:
        """Return the row in ``nodes`` of each id or placeholder, shape (n,); -1 for others."""
        order = np.argsort(self.nodes)
        found = find(self.nodes[order], nodes)
        return np.where(found >= 0, np.append(order, -1)[found], -1).astype(np.int64)

    @cached_property
    def split_ids(self) -> UInt64Array:
        """Members that are replaced by fragments, sorted."""
        return np.unique(self.old_ids)

    @cached_property
    def members(self) -> UInt64Array:
        """All members, sorted."""
        return np.union1d(self.kept, self.split_ids)

    def coordinates(self, voxels: IntArray) -> IntArray:
        """Return absolute (x, y, z) coordinates of running indices, shape (n, 3)."""
        places = np.unravel_index(voxels, self.box.shape, order="F")
        return np.asarray(np.stack(places, axis=-1) + np.asarray(self.box.start), np.int64)

    def nodes_at(self, coordinates: npt.ArrayLike) -> UInt64Array:
        """Return the node at each absolute voxel, shape (n, 3) to (n,); 0 where there is no member."""
        local = np.asarray(coordinates, np.int64).reshape(-1, 3) - self.box.start
        inside = np.asarray(((local >= 0) & (local < np.asarray(self.box.shape))).all(axis=1))
        strides = np.cumprod((1, *self.box.shape[:2]))
        row = find(self.voxels.view(np.uint64), np.where(inside, local @ strides, 0))
        found = inside & (row >= 0)
        return np.where(found, self.nodes[self.node_of_voxel[row]], np.uint64(0)).astype(np.uint64)

    def resolve(self, nodes: npt.ArrayLike, new_ids: npt.ArrayLike) -> UInt64Array:
        """Replace placeholders in ``nodes`` (any shape) by the new ids of the fragments, shape (f,)."""
        ids = self._checked_new_ids(new_ids)
        nodes = np.asarray(nodes, np.uint64)
        if not len(ids):
            return nodes
        index = np.where(is_placeholder(nodes), placeholder_index(nodes), 0)
        return np.where(is_placeholder(nodes), ids[index], nodes).astype(np.uint64)

    def renewing(self, ids: npt.ArrayLike, grid: ChunkGrid) -> FragmentPlan:
        """Return a plan that gives new ids to some kept members too; each of them becomes one fragment."""
        chosen = np.isin(self.kept, np.asarray(ids, np.uint64))
        if not chosen.any():
            return self
        n_fragments = len(self)
        rows = n_fragments + np.flatnonzero(chosen)
        is_fragment = np.arange(len(self.nodes)) < n_fragments
        is_fragment[rows] = True
        owners = np.concatenate([self.old_ids, self.kept])
        return _assemble(self.box, grid, owners, self.node_sides, is_fragment, self.voxels, self.node_of_voxel)

    def changed_chunks(self, segmentation: Labels, new_ids: npt.ArrayLike, storage: ChunkGrid) -> ChangedChunks:
        """Return the storage chunks in which voxels change, with their voxels after the change.

        Parameters
        ----------
        segmentation
            Voxels of ``box`` as they were read; they are not altered.
        new_ids
            Id of each fragment, shape (f,).
        storage
            Bounds of the volume and size of its storage chunks.
        """
        return ChangedChunks(self, segmentation, self._checked_new_ids(new_ids), storage)

    def _checked_new_ids(self, new_ids: npt.ArrayLike) -> UInt64Array:
        ids = np.asarray(new_ids, np.uint64)
        if ids.shape != (len(self),) or len(np.unique(ids)) != len(ids) or (ids == 0).any():
            raise InputError(
                f"{len(self)} fragments need {len(self)} different new ids; the ids have shape {ids.shape}, and "
                f"{len(np.unique(ids))} of them differ.",
                remedy="Reserve one id for each fragment, in its chunk.",
            )
        return ids


def plan_fragments(
    segmentation: Labels, box: Box, members: npt.ArrayLike, labels: npt.NDArray[np.integer[Any]], grid: ChunkGrid
) -> FragmentPlan:
    """Find the fragments and the kept members of a cut.

    Parameters
    ----------
    segmentation
        Supervoxel ids of ``box``, uint64, shape (x, y, z). The box must contain the chunks of all members completely
        (as far as they are inside the volume). It may be larger, for instance by a voxel on each side, so that contacts
        beyond the chunks can be seen.
    box
        Absolute position of ``segmentation``.
    members
        Supervoxels to cut, of one object or several.
    labels
        Side of each voxel, shape (x, y, z): above 0 in all voxels of members, 0 everywhere else.
    grid
        Chunk grid of the graph.

    Raises
    ------
    InputError
        If shapes do not fit, a member has no voxel in the box, or the voxels with a side are not those of the members.
    CorruptionError
        If a member has voxels in two chunks.
    """
    ids = np.unique(np.asarray(members, np.uint64))
    if segmentation.shape != box.shape or labels.shape != box.shape:
        raise InputError(f"voxels of shape {segmentation.shape} and sides of shape {labels.shape} do not fill {box}.")
    if not len(ids):
        raise InputError("the request names no supervoxel to cut.")
    voxels = np.flatnonzero(labels.ravel(order="F"))
    places = np.unravel_index(voxels, box.shape, order="F")
    sides = labels[places].astype(np.uint8)
    member = find(ids, segmentation[places])
    _check_members(ids, member, segmentation, places)
    _check_chunks(ids, member, places, box, grid)
    pieces, first = _pieces(member, sides, places)
    # A member with one side and one piece does not change.
    owners = ids[member[first]]
    _, owner_index, per_owner = np.unique(owners, return_inverse=True, return_counts=True)
    return _assemble(box, grid, owners, sides[first], per_owner[owner_index] > 1, voxels, pieces)


def _check_members(ids: UInt64Array, member: IntArray, segmentation: Labels, places: tuple[IntArray, ...]) -> None:
    if (member < 0).any():
        at = int(np.flatnonzero(member < 0)[0])
        other = int(segmentation[tuple(p[at] for p in places)])
        raise InputError(f"a voxel of supervoxel {other} has a side, but that supervoxel is not to be cut.")
    counts = np.bincount(member, minlength=len(ids))
    if (counts == 0).any():
        raise InputError(
            f"supervoxel {ids[counts == 0][0]} is to be cut, but has no voxel with a side.",
            remedy="Cut only supervoxels whose chunk lies in the box.",
        )
    mask = member_mask(segmentation, ids)
    if np.count_nonzero(mask) != len(member):
        mask[places] = False
        without, counts = np.unique(segmentation[mask], return_counts=True)
        raise InputError(
            f"{counts[0]} voxels of supervoxel {without[0]} have no side.",
            remedy="Every voxel of a supervoxel that is cut needs a side.",
        )


def member_mask(segmentation: Labels, members: npt.ArrayLike) -> BoolArray:
    """Return a boolean mask of the voxels of the given supervoxels, in Fortran order, shape of ``segmentation``."""
    wanted = np.unique(np.asarray(members, np.uint64)).tolist()
    mask = np.empty(segmentation.shape, np.bool_, order="F")
    for start in range(0, segmentation.shape[2], SLAB):
        # The mask is computed in slabs, because a copy of the whole would be as large as the voxels themselves.
        slab = np.array(segmentation[:, :, start : start + SLAB], order="F")
        mask[:, :, start : start + SLAB] = fastremap.mask_except(slab, wanted, in_place=True) != 0
    return mask


def _check_chunks(ids: UInt64Array, member: IntArray, places: tuple[IntArray, ...], box: Box, grid: ChunkGrid) -> None:
    """Check that each member lies in one chunk, and that the box contains this chunk as far as the volume does."""
    lowest, highest = (np.empty((len(ids), 3), np.int64) for _ in range(2))
    for axis, values in enumerate(places):
        low, high = np.full(len(ids), np.iinfo(np.int64).max), np.full(len(ids), -1)
        np.minimum.at(low, member, values)
        np.maximum.at(high, member, values)
        lowest[:, axis], highest[:, axis] = low, high
    chunks = grid.chunk_of(lowest + box.start)
    straddling = (chunks != grid.chunk_of(highest + box.start)).any(axis=1)
    if straddling.any():
        raise CorruptionError(
            f"supervoxel {ids[straddling][0]} has voxels in more than one chunk.",
            remedy="Run sv-pipeline verify; the watershed was made for another CHUNK_SIZE or voxel offset.",
        )
    for coordinate in np.unique(chunks, axis=0):
        whole = grid.box(2, coordinate)
        if whole.clip(box) != whole:
            raise InputError(f"the box {box} holds only a part of chunk {coordinate.tolist()} ({whole}).")


def _pieces(member: IntArray, sides: Sides, places: tuple[IntArray, ...]) -> tuple[npt.NDArray[np.uint32], IntArray]:
    """Find the 26-connected pieces of (member, side).

    Returns
    -------
    (pieces, first)
        Piece of each voxel, numbered in the order of first voxels, and the index of the first voxel of each piece.
    """
    lows = [int(p.min()) for p in places]
    shape = tuple(int(p.max()) - low + 1 for p, low in zip(places, lows, strict=True))
    inside = np.ravel_multi_index(tuple(p - low for p, low in zip(places, lows, strict=True)), shape, order="F")
    packed = member * 256 + sides
    used = np.zeros(256 * (int(member.max(initial=0)) + 1), np.bool_)
    used[packed] = True
    kind = np.uint16 if np.count_nonzero(used) < 1 << 16 else np.uint32
    dense = np.zeros(int(np.prod(shape)), kind)
    dense[inside] = np.cumsum(used).astype(kind)[packed]
    found = cc3d.connected_components(dense.reshape(shape, order="F"), connectivity=26, out_dtype=np.uint32)
    del dense
    raw = found.ravel(order="F")[inside].astype(np.int64) - 1  # components are numbered from 1 without gaps
    first = np.empty(int(raw.max(initial=-1)) + 1, np.int64)
    first[raw[::-1]] = np.arange(len(raw) - 1, -1, -1)  # the last value that is assigned to an element stays
    order = np.argsort(first)
    rank = np.empty(len(first), np.uint32)
    rank[order] = np.arange(len(first), dtype=np.uint32)
    return rank[raw], first[order]


def _assemble(
    box: Box,
    grid: ChunkGrid,
    owners: UInt64Array,
    sides: Sides,
    is_fragment: BoolArray,
    voxels: IntArray,
    pieces: npt.NDArray[np.uint32],
) -> FragmentPlan:
    """Order the pieces: fragments by chunk, old id, side, first voxel; then kept members by id."""
    counts = np.bincount(pieces, minlength=len(owners))
    first = np.empty(len(owners), np.int64)
    first[pieces[::-1]] = voxels[::-1]  # if several values are assigned to one element, the last one stays
    places = np.stack(np.unravel_index(first, box.shape, order="F"), axis=-1).astype(np.int64) + box.start
    chunks = grid.chunk_of(places)
    order = np.lexsort((first, sides, owners, np.where(is_fragment, grid.index(2, chunks), 0), ~is_fragment))
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    fragments, kept = np.split(order, [int(is_fragment.sum())])
    return FragmentPlan(
        box=box,
        kept=owners[kept],
        kept_sides=sides[kept],
        kept_voxel_counts=counts[kept],
        old_ids=owners[fragments],
        sides=sides[fragments],
        chunks=chunks[fragments],
        voxel_counts=counts[fragments],
        first_voxels=places[fragments],
        voxels=voxels,
        node_of_voxel=rank[pieces],
    )


class ChangedChunks(VoxelBlocks):
    """The storage chunks that a plan changes, as far as they lie in its box; each is computed on access."""

    def __init__(self, plan: FragmentPlan, segmentation: Labels, new_ids: UInt64Array, storage: ChunkGrid) -> None:
        if segmentation.shape != plan.box.shape:
            raise InputError(f"voxels of shape {segmentation.shape} do not fill {plan.box}.")
        self._plan, self._segmentation, self._storage = plan, segmentation, storage
        fragment = plan.node_of_voxel < len(plan)
        places = plan.coordinates(plan.voxels[fragment])
        index = storage.index(2, storage.chunk_of(places))
        # NumPy sorts numbers of 16 bits by counting.
        first = int(index.min(initial=np.iinfo(np.int64).max))
        few = int(index.max(initial=0)) - first < 1 << 16
        order = np.argsort((index - first).astype(np.uint16) if few else index, kind="stable")
        index = index[order]
        starts = np.flatnonzero(row_starts(index))
        found = index[starts]
        self._coordinates = np.stack(np.unravel_index(found, storage.shape(2)), axis=-1)
        self._places = np.split(places[order], starts[1:])
        self._values = np.split(new_ids[plan.node_of_voxel[fragment][order]], starts[1:])

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """Absolute box of each storage chunk."""
        return tuple(self._storage.box(2, c).clip(self._plan.box) for c in self._coordinates)

    def block(self, index: int) -> VoxelBlock:
        """Return the voxels of a storage chunk after the change."""
        box = self.boxes[index]
        voxels = self._segmentation[box.shifted(np.negative(self._plan.box.start)).slices].copy(order="F")
        voxels[tuple((self._places[index] - box.start).T)] = self._values[index]
        return VoxelBlock(box, voxels)
