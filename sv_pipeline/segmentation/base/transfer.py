"""Transfers the voxels of one populate task from the source into a store, at all mips, in pieces that fit the memory.

A piece consists of whole storage chunks of every mip that it writes. Mips of the source are copied, each in pieces of
its own. Mips that the source lacks are made in chains: a piece of the finest mip passes through memory once, and yields
its part of as many coarser mips as have whole storage chunks in it; the last of them is the source of the next chain::

    mip 0  |###############|###############|...    pieces of chain 1: read from the source
    mip 1  |#######|#######|                       written from the same pieces
    mip 2  |###|###|###|###|                       read again as pieces of chain 2, 16 or 64 times fewer voxels
    mip 3  |#|#|                                   ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.memory import grouped
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.layout import step_factor, task_box
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.volume_info import Scale

__all__ = ["Piece", "in_commits", "task_pieces"]

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]
Targets = list[ts.TensorStore]

WORKING_BYTES = 16
"""Memory that a voxel of a piece takes while it is read, downsampled and handed to the transaction."""
COMMIT_BYTES = 10
"""Memory that a voxel takes in a transaction until the commit."""


@dataclass(frozen=True)
class Piece:
    """A part of a task, which is read and written at once."""

    n_voxels: int
    """Number of voxels that it writes, at all mips."""
    write: Callable[[Targets], None]
    """Writes the piece to the arrays of all mips, which are part of a transaction."""


def in_commits(pieces: Iterator[Piece], budget: int) -> Iterator[list[Piece]]:
    """Divide pieces into groups that are committed one after the other: the memory of a commit is half the budget."""
    return grouped(pieces, lambda piece: COMMIT_BYTES * piece.n_voxels, budget // 2)


def task_pieces(
    base: BaseInfo,
    grid: ChunkGrid,
    layer: int,
    coordinate: Triple,
    *,
    budget: int,
    chunks: Mapping[int, IntArray] | None = None,
) -> Iterator[Piece]:
    """Yield the pieces of one task, in the order in which they have to be written.

    Parameters
    ----------
    budget
        Memory in bytes, half of which a piece may take; pieces are not smaller than the storage chunks allow.
    chunks
        For mips whose other chunks are references: the storage chunks to write, by mip, as positions in the chunk grid
        of shape (n, 3).
    """
    chunks = chunks or {}
    limit = budget // 2 // WORKING_BYTES
    boxes = [task_box(base.volume, mip, grid, layer, coordinate) for mip in range(base.n_mips)]
    has_made = base.n_mips > base.source_mips
    seed = base.source_mips - 1
    for mip in range(base.source_mips):
        scale = base.volume.scales[mip]
        if mip in chunks:
            every = _chunk_boxes(scale, chunks[mip])
            for places in grouped(every, lambda box: box.volume, limit):
                yield _copy(base, mip, places)
        elif mip < seed or not has_made:
            for box in boxes[mip].slabs(scale.chunk_size, limit):
                yield _copy(base, mip, [box])
    if has_made:
        yield from _made_pieces(base, boxes, seed, limit, keep=seed not in chunks)


def _chunk_boxes(scale: Scale, cells: IntArray) -> list[Box]:
    """Return the boxes of storage chunks, given their positions in the chunk grid, shape (n, 3)."""
    starts = cells * np.asarray(scale.chunk_size) + scale.voxel_offset
    return [Box.of(start, start + scale.chunk_size).clip(scale.bounds) for start in starts]


def _copy(base: BaseInfo, mip: int, boxes: list[Box]) -> Piece:
    """Copy boxes of a mip of the source, from TensorStore to TensorStore."""

    def write(targets: Targets) -> None:
        source = _source(base, mip)
        for future in [targets[mip][box.slices].write(source[box.slices]) for box in boxes]:
            future.result()

    return Piece(sum(box.volume for box in boxes), write)


def _source(base: BaseInfo, mip: int) -> ts.TensorStore:
    return ts.cast(open_volume(base.watershed_url, mip), ts.uint64)


def _made_pieces(base: BaseInfo, boxes: list[Box], seed: int, limit: int, *, keep: bool) -> Iterator[Piece]:
    """Make all mips coarser than ``seed``, chain by chain; with ``keep``, also write mip ``seed`` itself."""
    first = seed
    while first < base.n_mips - 1:
        last, unit = _chain(base, first, limit)
        for slab in boxes[first].slabs(unit, limit):
            yield _made(base, boxes, range(first, last + 1), slab, from_source=first == seed, keep=keep)
        first, keep = last, False


def _chain(base: BaseInfo, first: int, limit: int) -> tuple[int, IntArray]:
    """Return the last mip that is made from pieces of mip ``first``, and the unit of these pieces, in its voxels."""
    scales = base.volume.scales
    unit: IntArray = np.asarray(scales[first].chunk_size, np.int64)
    factor, last = np.ones(3, np.int64), first
    for mip in range(first + 1, base.n_mips):
        factor = factor * step_factor(base.volume, mip)
        wider = np.lcm(unit, factor * scales[mip].chunk_size)
        if last > first and np.prod(np.minimum(wider, scales[first].size)) > limit:
            break
        last, unit = mip, wider
    return last, unit


def _made(base: BaseInfo, boxes: list[Box], mips: range, slab: Box, *, from_source: bool, keep: bool) -> Piece:
    first = mips[0]

    def write(targets: Targets) -> None:
        source = _source(base, first) if from_source else targets[first]
        labels: npt.NDArray[np.uint64] = source[slab.slices].read(order="F").result()
        writes = [targets[first][slab.slices].write(labels)] if keep else []
        start = np.subtract(slab.start, boxes[first].start)
        for mip in mips[1:]:
            step = step_factor(base.volume, mip)
            labels, start = downsample(labels, step), start // step
            box = Box.of(start, start + labels.shape).shifted(boxes[mip].start)
            writes.append(targets[mip][box.slices].write(labels))
        for future in writes:
            future.result()

    factors = np.cumprod([step_factor(base.volume, mip) for mip in mips[1:]], axis=0).prod(axis=1)
    made = sum(-(-slab.volume // int(factor)) for factor in factors)
    return Piece(made + (slab.volume if keep else 0), write)
