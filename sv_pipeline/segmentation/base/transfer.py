"""Owns the voxels of one populate task: from the source into a store, all mips. Knows neither markers nor methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.base import BaseInfo
from sv_pipeline.segmentation.base.layout import step_factor, task_box
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import open_volume

__all__ = ["SLAB_VOXELS", "write_task"]

Triple = tuple[int, int, int]

SLAB_VOXELS = 1 << 25
"""Voxels that are downsampled at a time, about; 256 MiB."""


def write_task(
    base: BaseInfo,
    grid: ChunkGrid,
    layer: int,
    coordinate: Triple,
    store: OcdbtStore,
    transaction: ts.Transaction,
) -> tuple[Triple, ...]:
    """Write one task's voxels at every mip; the commit is the caller's.

    Mips of the source are copied from TensorStore to TensorStore. Where coarser ones are to be made, the last mip of
    the source passes through memory in slabs, and so is read once only.

    Returns
    -------
    Shape written, per mip.
    """
    boxes = [task_box(base.volume, mip, grid, layer, coordinate) for mip in range(base.n_mips)]
    targets = [store.array(mip).with_transaction(transaction) for mip in range(base.n_mips)]
    n_made = base.n_mips - base.source_mips
    n_copied = base.source_mips - (1 if n_made else 0)
    pending: list[ts.WriteFutures] = []
    for mip in range(n_copied):
        if boxes[mip].volume:
            source = ts.cast(open_volume(base.watershed_url, mip), ts.uint64)
            pending.append(targets[mip][boxes[mip].slices].write(source[boxes[mip].slices]))
    if n_made:
        _make_pyramid(base, boxes, targets, n_copied)
    for write in pending:
        write.result()
    return tuple(box.shape for box in boxes)


def _make_pyramid(base: BaseInfo, boxes: list[Box], targets: list[ts.TensorStore], seed: int) -> None:
    """Copy mip ``seed`` and make all coarser ones of it."""
    source = ts.cast(open_volume(base.watershed_url, seed), ts.uint64)
    steps = {mip: step_factor(base.volume, mip) for mip in range(seed + 1, base.n_mips)}
    total = np.prod(list(steps.values()), axis=0)
    if boxes[seed].volume == 0:
        return
    coarse = {mip: np.zeros(boxes[mip].shape, np.uint64, order="F") for mip in steps}
    for slab in _slabs(boxes[seed], np.lcm(total, base.volume.scales[seed].chunk_size)):
        labels: npt.NDArray[np.uint64] = source[slab.slices].read(order="F").result()
        write = targets[seed][slab.slices].write(labels)
        start = np.subtract(slab.start, boxes[seed].start)
        for mip, step in steps.items():
            labels = downsample(labels, step)
            start = start // step
            coarse[mip][Box.of(start, start + labels.shape).slices] = labels
        write.result()
    for mip, labels in coarse.items():
        targets[mip][boxes[mip].slices].write(labels).result()


def _slabs(box: Box, unit: npt.NDArray[np.int64]) -> Iterator[Box]:
    """The box in pieces of about `SLAB_VOXELS` that start at multiples of ``unit`` from its start."""
    size = np.minimum(box.shape, unit)
    # Grow along x, then y, then z: long pieces in memory order.
    for axis in range(3):
        room = SLAB_VOXELS // max(1, int(np.prod(size)))
        size[axis] = min(box.shape[axis], size[axis] * max(1, room))
        if size[axis] < box.shape[axis]:
            size[axis] -= size[axis] % unit[axis]
            break
    starts = [range(0, n, int(s)) for n, s in zip(box.shape, size, strict=True)]
    for start in itertools.product(*starts):
        yield Box.of(start, np.add(start, size)).shifted(box.start).clip(box)
