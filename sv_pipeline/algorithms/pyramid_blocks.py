"""Owns what of a pyramid a change of its base mip touches, and how that is divided. Pure; reads and writes no voxel.

Everything is counted from the start of the volume, where the storage chunks of every mip start too; so the voxel offset
does not matter::

    mip 0   |.....:.....:.....:.....|.....:.....:.....:.....|.....:..       2 cells and a bit, 4 storage chunks each
    mip 1   |.....      :.....      |.....      :.....      |....
    mip 2   |.....                  |.....                  |..

A *cell* is the smallest box of which every mip has whole storage chunks: cells never share one. It is what is locked. A
*block* is a box of cells, as large as the memory budget allows. A *part* of a block is what is committed at once: the
whole block, unless what is affected in it does not fit into the budget.

Parts of one block may share storage chunks of coarser mips, and even voxels: then the later one finds what the earlier
one has written. Each makes right whatever its own base voxels contribute to, so after the last one all of it is.
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

__all__ = ["PIECES", "MipLevel", "PyramidBlock", "PyramidGeometry", "plan_blocks", "split_to_budget"]

BYTES_PER_VOXEL = 8
COPIES_WHOLE = 3.5
"""Arrays of the size of all coarser mips while they are made at once: new, stored, in the transaction, masks."""
COPIES_BY_MIP = 2.0
"""The same where they are made piece by piece: in the transaction, as they were and as they will be."""
PIECES = 0.25
"""Share of the budget that the pieces may take."""

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class MipLevel:
    """One mip of a pyramid."""

    size: Triple
    """Voxels."""
    chunk_size: Triple
    """Voxels of a storage chunk; the grid starts at the first voxel."""
    step: Triple
    """Voxels of the mip below, per axis, that make one of this; (1, 1, 1) for the base mip."""


@dataclass(frozen=True)
class PyramidGeometry:
    """A volume and its mips, finest first. All boxes of all methods are counted from the start of the mip."""

    levels: tuple[MipLevel, ...]

    @cached_property
    def factors(self) -> IntArray:
        """Voxels of the base mip, per axis, that make one of each mip; shape (mips, 3)."""
        return np.cumprod(np.array([level.step for level in self.levels], np.int64), axis=0)

    @cached_property
    def cell(self) -> Triple:
        """Base-mip voxels of a cell; the whole axis where no smaller one would do."""
        chunks = np.array([level.chunk_size for level in self.levels], np.int64)
        edges = [1, 1, 1]
        for size in (chunks * self.factors).tolist():
            axes = zip(edges, size, self.levels[0].size, strict=True)
            edges = [math.lcm(edge, chunk) if edge < n else edge for edge, chunk, n in axes]
        x, y, z = np.minimum(edges, self.levels[0].size).tolist()
        return (x, y, z)

    def shadow(self, mip: int, array: IntArray) -> IntArray:
        """Voxels of ``mip`` that voxels of boxes of the mip below have a part in; none outside either mip."""
        level, below = self.levels[mip], self.levels[mip - 1]
        step = np.asarray(level.step)
        limit = np.minimum(level.size, -(-np.asarray(below.size) // step))
        up = np.stack([array[:, 0] // step, -(-array[:, 1] // step)], axis=1)
        return clip(up, Box.of((0, 0, 0), limit))

    def footprint(self, mip: int, box: Box) -> Box:
        """Voxels of the mip below that a box of ``mip`` is made of."""
        step = np.asarray(self.levels[mip].step)
        below = Box.of((0, 0, 0), self.levels[mip - 1].size)
        return Box.of(box.start * step, box.stop * step).clip(below)

    def affected(self, array: IntArray) -> list[IntArray]:
        """Per mip above the base, what is to be made again when base voxels in these boxes have changed.

        Returns
        -------
        One array per mip from 1 on: boxes that do not overlap. Of each storage chunk they hold the bounding box of what
        is affected (which makes the boxes few); boxes of neighbouring chunks are joined where they can be.
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
        """Memory that these boxes of the base mip need, with all their coarser mips, if everything is held at once."""
        affected = self.affected(array)
        fine = sum(self.footprint(1, Box.of(*box)).volume for box in affected[0]) if affected else 0
        return int(BYTES_PER_VOXEL * (fine + COPIES_WHOLE * self._stored_voxels(affected)))

    def bytes_by_mip(self, array: IntArray) -> int:
        """The same if each mip is made piece by piece of the one below, and only what is to be committed is held."""
        return int(BYTES_PER_VOXEL * COPIES_BY_MIP * self._stored_voxels(self.affected(array)) / (1 - PIECES))

    def bytes_of_block(self, size: Triple) -> int:
        """What `bytes_whole` says of all of a block at the start of the volume; without a list of its chunks."""
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
        """Whether `bytes_by_mip` is more than a budget; quick for boxes of any size."""
        if len(self.levels) < 2 or not len(array):
            return False
        # The largest box alone; so the chunks of a box are listed only if it is not far beyond the budget.
        least = int(volumes(array).max()) // int(np.prod(self.levels[1].step))
        return least * BYTES_PER_VOXEL * COPIES_BY_MIP > memory_budget or self.bytes_by_mip(array) > memory_budget

    def _stored_voxels(self, affected: list[IntArray]) -> int:
        # A transaction holds whole chunks, whatever of them is written.
        total = 0
        for mip, boxes in enumerate(affected, start=1):
            chunks, _ = parts_by_chunk(boxes, self.levels[mip].chunk_size, hull=True)
            size = np.asarray(self.levels[mip].chunk_size)
            whole = np.stack([chunks * size, np.minimum((chunks + 1) * size, self.levels[mip].size)], axis=1)
            total += int(volumes(whole).sum())
        return total


@dataclass(frozen=True, eq=False)
class PyramidBlock:
    """A box of cells with something affected in it."""

    box: Box
    """Base-mip voxels, from the start of the volume."""
    cells: tuple[Triple, ...]
    """Coordinates of the cells in it that hold something affected, sorted."""
    affected: IntArray
    """What is affected in it: boxes of base-mip voxels, shape (n, 2, 3); they may overlap."""


def plan_blocks(geometry: PyramidGeometry, boxes: IntArray, memory_budget: int) -> list[PyramidBlock]:
    """Divide what is affected into blocks of which no two share a storage chunk at any mip.

    Parameters
    ----------
    geometry
        The volume.
    boxes
        Base-mip voxels that have changed, from the start of the volume; they may overlap, or lie outside.
    memory_budget
        Bytes. Blocks are made of as many cells as fit; a single cell may be more.
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
    """Cells doubled along their smallest axes while they fit."""
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
    """The parts of a block, in order: boxes of the base mip that cover what is affected, each within the budget.

    A part is never smaller than a storage chunk, even if that is more than the budget.
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
    """Where to cut: near the middle of the longest axis, between chunks of as coarse a mip as possible."""
    start, stop = affected[:, 0].min(axis=0), affected[:, 1].max(axis=0)
    for axis in np.argsort(start - stop, kind="stable"):
        for mip in reversed(range(len(geometry.levels))):
            unit = int(geometry.factors[mip][axis]) * geometry.levels[mip].chunk_size[axis]
            position = round((start[axis] + stop[axis]) / 2 / unit) * unit
            if start[axis] < position < stop[axis]:
                return int(axis), position
    return None
