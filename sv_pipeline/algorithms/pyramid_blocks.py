"""Which voxels of a pyramid a change of its base mip affects, and how the work is divided. Reads and writes no voxel.

All positions are counted from the start of the volume, where the storage chunks of every mip start too, so the voxel
offset does not matter::

    mip 0   |.....:.....:.....:.....|.....:.....:.....:.....|.....:..       2 cells and a bit, 4 storage chunks each
    mip 1   |.....      :.....      |.....      :.....      |....
    mip 2   |.....                  |.....                  |..

A *cell* is the smallest box that consists of whole storage chunks at every mip, so cells never share one. Cells are the
unit of locking. A *block* is a box of cells, as large as the memory budget allows. A *part* of a block is committed in
one transaction. It is the whole block, unless what is affected in the block does not fit into the budget.

Parts of one block may share storage chunks of coarser mips, and even voxels. A later part then reads what an earlier
one has written. Each part corrects everything to which its own base voxels contribute, so the result of the last one is
complete.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.box_arrays import clip, joined, parts_by_chunk, volumes
from sv_pipeline.grid import Box

__all__ = ["BYTES_PER_VOXEL", "PIECES", "MipLevel", "PyramidBlock", "PyramidGeometry", "plan_blocks", "split_to_budget"]

BYTES_PER_VOXEL = 8
COPIES_WHOLE = 3.5
"""Arrays of the size of all coarser mips while they are computed together: new, stored, in the transaction, masks."""
COPIES_BY_MIP = 2.0
"""Arrays of that size while the mips are computed in pieces: in the transaction, before and after."""
PIECES = 0.25
"""Share of the budget that the pieces may take."""

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class MipLevel:
    """One mip of a pyramid."""

    size: Triple
    """Size of the mip in voxels."""
    chunk_size: Triple
    """Size of a storage chunk in voxels; the storage grid starts at the first voxel."""
    step: Triple
    """Voxels per axis of the next finer mip that form one voxel of this mip; (1, 1, 1) for the base mip."""


@dataclass(frozen=True)
class PyramidGeometry:
    """A volume and its mips, finest first. The boxes of all methods are relative to the start of their mip."""

    levels: tuple[MipLevel, ...]

    @cached_property
    def factors(self) -> IntArray:
        """Base-mip voxels per axis that form one voxel of each mip; shape (mips, 3)."""
        return np.cumprod(np.array([level.step for level in self.levels], np.int64), axis=0)

    @cached_property
    def cell(self) -> Triple:
        """Size of a cell in base-mip voxels; the whole axis where no smaller size is possible."""
        chunks = np.array([level.chunk_size for level in self.levels], np.int64)
        edges = [1, 1, 1]
        for size in (chunks * self.factors).tolist():
            axes = zip(edges, size, self.levels[0].size, strict=True)
            edges = [math.lcm(edge, chunk) if edge < n else edge for edge, chunk, n in axes]
        x, y, z = np.minimum(edges, self.levels[0].size).tolist()
        return (x, y, z)

    def shadow(self, mip: int, array: IntArray) -> IntArray:
        """Return the boxes of ``mip`` to which boxes of the next finer mip contribute, clipped to both mips."""
        level, below = self.levels[mip], self.levels[mip - 1]
        step = np.asarray(level.step)
        limit = np.minimum(level.size, -(-np.asarray(below.size) // step))
        up = np.stack([array[:, 0] // step, -(-array[:, 1] // step)], axis=1)
        return clip(up, Box.of((0, 0, 0), limit))

    def footprint(self, mip: int, box: Box) -> Box:
        """Return the voxels of the next finer mip from which a box of ``mip`` is computed."""
        step = np.asarray(self.levels[mip].step)
        below = Box.of((0, 0, 0), self.levels[mip - 1].size)
        return Box.of(box.start * step, box.stop * step).clip(below)

    def affected(self, array: IntArray) -> list[IntArray]:
        """Return what must be recomputed at each coarser mip when base voxels in these boxes have changed.

        Returns
        -------
        One array of boxes without overlaps for each mip from 1 on. For each storage chunk they cover the bounding box
        of what is affected, which keeps the number of boxes low. Boxes of neighbouring chunks are joined where
        possible.
        """
        result: list[IntArray] = []
        for mip in range(len(self.levels)):
            if mip:
                array = self.shadow(mip, array)
            array = joined(parts_by_chunk(array, self.levels[mip].chunk_size, hull=True)[1])
            if mip:
                result.append(array)
        return result

    def bytes_whole(self, array: IntArray) -> int:
        """Return the memory in bytes for these base-mip boxes and their coarser mips if everything is held at once."""
        affected = self.affected(array)
        fine = sum(self.footprint(1, Box.of(*box)).volume for box in affected[0]) if affected else 0
        return int(BYTES_PER_VOXEL * (fine + COPIES_WHOLE * self._stored_voxels(affected)))

    def bytes_by_mip(self, array: IntArray) -> int:
        """Return the memory in bytes if each mip is computed in pieces and only what is to be committed is held."""
        return int(BYTES_PER_VOXEL * COPIES_BY_MIP * self._stored_voxels(self.affected(array)) / (1 - PIECES))

    def bytes_of_block(self, size: Triple) -> int:
        """Return `bytes_whole` of a complete block at the start of the volume, without listing its chunks."""
        shape, fine, stored = np.minimum(size, self.levels[0].size), 0, 0
        for mip, level in enumerate(self.levels):
            if mip:
                shape = np.minimum(-(-shape // np.asarray(level.step)), level.size)
                chunks = -(-shape // np.asarray(level.chunk_size))
                stored += int(np.minimum(chunks * level.chunk_size, level.size).prod())
            else:
                fine = int(shape.prod())
        return int(BYTES_PER_VOXEL * (fine + COPIES_WHOLE * stored)) if len(self.levels) > 1 else 0

    def exceeds_by_mip(self, array: IntArray, memory_budget: int) -> bool:
        """Whether `bytes_by_mip` exceeds a budget in bytes; quick for boxes of any size."""
        if len(self.levels) < 2 or not len(array):
            return False
        # The largest box is checked first, so that chunks are listed only for boxes not far beyond the budget.
        least = int(volumes(array).max()) // int(np.prod(self.levels[1].step))
        return least * BYTES_PER_VOXEL * COPIES_BY_MIP > memory_budget or self.bytes_by_mip(array) > memory_budget

    def _stored_voxels(self, affected: list[IntArray]) -> int:
        # A transaction holds whole chunks, however little of them is written.
        total = 0
        for mip, boxes in enumerate(affected, start=1):
            chunks, _ = parts_by_chunk(boxes, self.levels[mip].chunk_size, hull=True)
            size = np.asarray(self.levels[mip].chunk_size)
            whole = np.stack([chunks * size, np.minimum((chunks + 1) * size, self.levels[mip].size)], axis=1)
            total += int(volumes(whole).sum())
        return total


@dataclass(frozen=True, eq=False)
class PyramidBlock:
    """A box of cells that contains something affected."""

    box: Box
    """Base-mip voxels, relative to the start of the volume."""
    cells: tuple[Triple, ...]
    """Coordinates of the cells in the box that contain something affected, sorted."""
    affected: IntArray
    """Affected base-mip boxes, shape (n, 2, 3); they may overlap."""


def plan_blocks(geometry: PyramidGeometry, boxes: IntArray, memory_budget: int) -> list[PyramidBlock]:
    """Divide what is affected into blocks, no two of which share a storage chunk at any mip.

    Parameters
    ----------
    geometry
        The volume.
    boxes
        Base-mip boxes that have changed, relative to the start of the volume; they may overlap, or lie outside.
    memory_budget
        Memory of one block in bytes. A block has as many cells as fit, but at least one.
    """
    volume = Box.of((0, 0, 0), geometry.levels[0].size)
    boxes = clip(boxes, volume)
    if not len(boxes):
        return []
    size = _block_size(geometry, memory_budget)
    owners, parts = parts_by_chunk(boxes, size, hull=False)
    starts = np.flatnonzero(np.concatenate([[True], (owners[1:] != owners[:-1]).any(axis=1)]))
    blocks = []
    for first, last in zip(starts, [*starts[1:], len(owners)], strict=True):
        inside = joined(parts[first:last])
        cells, _ = parts_by_chunk(inside, geometry.cell, hull=True)
        box = Box.of(owners[first] * size, (owners[first] + 1) * size).clip(volume)
        blocks.append(PyramidBlock(box, tuple((x, y, z) for x, y, z in cells.tolist()), inside))
    return blocks


def _block_size(geometry: PyramidGeometry, memory_budget: int) -> Triple:
    """Double the cells of a block along their smallest axis while they fit into the budget."""
    size, volume = list(geometry.cell), geometry.levels[0].size
    while True:
        axes = [axis for axis in range(3) if size[axis] < volume[axis]]
        if not axes:
            break
        axis = min(axes, key=lambda a: size[a])
        larger = [2 * s if a == axis else s for a, s in enumerate(size)]
        if geometry.bytes_of_block((larger[0], larger[1], larger[2])) > memory_budget:
            break
        size = larger
    return size[0], size[1], size[2]


def split_to_budget(geometry: PyramidGeometry, block: PyramidBlock, memory_budget: int) -> Iterator[Box]:
    """Yield the parts of a block in order: base-mip boxes that cover what is affected, each within the budget.

    A part is never smaller than a storage chunk, even if that exceeds the budget.
    """
    waiting = [(block.box, block.affected)]
    while waiting:
        box, affected = waiting.pop()
        if not len(affected):
            continue
        at = _middle(geometry, affected) if geometry.exceeds_by_mip(affected, memory_budget) else None
        if at is None:
            yield box
            continue
        axis, position = at
        stop, start = list(box.stop), list(box.start)
        stop[axis] = start[axis] = position
        halves = Box.of(box.start, stop), Box.of(start, box.stop)
        waiting += [(half, clip(affected, half)) for half in reversed(halves)]


def _middle(geometry: PyramidGeometry, affected: IntArray) -> tuple[int, int] | None:
    """Choose where to cut: near the middle of the longest axis, between chunks of as coarse a mip as possible."""
    start, stop = affected[:, 0].min(axis=0), affected[:, 1].max(axis=0)
    for axis in np.argsort(start - stop, kind="stable"):
        for mip in reversed(range(len(geometry.levels))):
            unit = int(geometry.factors[mip][axis]) * geometry.levels[mip].chunk_size[axis]
            position = round((start[axis] + stop[axis]) / 2 / unit) * unit
            if start[axis] < position < stop[axis]:
                return int(axis), position
    return None
