"""Transfers the voxels of one populate task from the source into a store, at all mips."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.layout import step_factor, task_box
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.volume_info import Scale

__all__ = ["SLAB_VOXELS", "write_task"]

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]

SLAB_VOXELS = 1 << 25
"""Number of voxels that are downsampled at a time, about; they take 256 MiB."""


def write_task(
    base: BaseInfo,
    grid: ChunkGrid,
    layer: int,
    coordinate: Triple,
    store: OcdbtStore,
    transaction: ts.Transaction,
    *,
    chunks: Mapping[int, IntArray] | None = None,
) -> None:
    """Write one task's voxels at every mip; the caller commits the transaction.

    Mips of the source are copied from TensorStore to TensorStore. If coarser mips have to be made, the last mip of the
    source passes through memory in slabs, so it is read only once.

    Parameters
    ----------
    chunks
        For mips whose other chunks are references: the storage chunks to write, by mip, as positions in the chunk grid
        of shape (n, 3).
    """
    chunks = chunks or {}
    boxes = [task_box(base.volume, mip, grid, layer, coordinate) for mip in range(base.n_mips)]
    targets = [store.array(mip).with_transaction(transaction) for mip in range(base.n_mips)]
    n_made = base.n_mips - base.source_mips
    n_copied = base.source_mips - (1 if n_made else 0)
    pending: list[ts.WriteFutures] = []
    for mip in range(base.source_mips):
        if mip in chunks:
            places = _chunk_boxes(base.volume.scales[mip], chunks[mip])
        else:
            places = [boxes[mip]] if boxes[mip].volume and mip < n_copied else []
        if places:
            source = ts.cast(open_volume(base.watershed_url, mip), ts.uint64)
            pending += [targets[mip][box.slices].write(source[box.slices]) for box in places]
    if n_made:
        _make_pyramid(base, boxes, targets, n_copied, keep=n_copied not in chunks)
    for write in pending:
        write.result()


def _chunk_boxes(scale: Scale, cells: IntArray) -> list[Box]:
    """Return the boxes of storage chunks, given their positions in the chunk grid, shape (n, 3)."""
    starts = cells * np.asarray(scale.chunk_size) + scale.voxel_offset
    return [Box.of(start, start + scale.chunk_size).clip(scale.bounds) for start in starts]


def _make_pyramid(base: BaseInfo, boxes: list[Box], targets: list[ts.TensorStore], seed: int, *, keep: bool) -> None:
    """Make all mips coarser than ``seed`` from it; with ``keep``, also write mip ``seed`` itself."""
    source = ts.cast(open_volume(base.watershed_url, seed), ts.uint64)
    steps = {mip: step_factor(base.volume, mip) for mip in range(seed + 1, base.n_mips)}
    total = np.prod(list(steps.values()), axis=0)
    if boxes[seed].volume == 0:
        return
    coarse = {mip: np.zeros(boxes[mip].shape, np.uint64, order="F") for mip in steps}
    for slab in _slabs(boxes[seed], np.lcm(total, base.volume.scales[seed].chunk_size)):
        labels: npt.NDArray[np.uint64] = source[slab.slices].read(order="F").result()
        write = targets[seed][slab.slices].write(labels) if keep else None
        start = np.subtract(slab.start, boxes[seed].start)
        for mip, step in steps.items():
            labels = downsample(labels, step)
            start = start // step
            coarse[mip][Box.of(start, start + labels.shape).slices] = labels
        if write is not None:
            write.result()
    for mip, labels in coarse.items():
        targets[mip][boxes[mip].slices].write(labels).result()


def _slabs(box: Box, unit: npt.NDArray[np.int64]) -> Iterator[Box]:
    """Divide a box into pieces of about `SLAB_VOXELS` that start at multiples of ``unit`` from its start."""
    size = np.minimum(box.shape, unit)
    # Pieces grow along x, then y, then z, so that they are long in memory order.
    for axis in range(3):
        room = SLAB_VOXELS // max(1, int(np.prod(size)))
        size[axis] = min(box.shape[axis], size[axis] * max(1, room))
        if size[axis] < box.shape[axis]:
            size[axis] -= size[axis] % unit[axis]
            break
    starts = [range(0, n, int(s)) for n, s in zip(box.shape, size, strict=True)]
    for start in itertools.product(*starts):
        yield Box.of(start, np.add(start, size)).shifted(box.start).clip(box)
