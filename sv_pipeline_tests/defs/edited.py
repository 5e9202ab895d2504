"""Edits of the voxels of a registered graph, committed as the supervoxel split does it, for tests of what follows."""

from __future__ import annotations

import time

import numpy as np

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.grid import Box
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork

__all__ = ["assert_mips_right", "damage", "edit"]


def edit(dataset: Dataset, operation_id: int, *, at: tuple[int, int, int] = (0, 0, 0), age: float = 0.0) -> Box:
    """Half of each object in a box gets another id; returns the box."""
    url, bounds = dataset.watershed_url, dataset.base.info().volume.bounds
    start = np.add(bounds.start, at)
    box = Box.of(start, np.add(start, (40, 36, 12))).clip(bounds)
    voxels = Fork(url, dataset.graph_id).open()[box.slices].read(order="F").result()
    half = np.zeros(voxels.shape, bool)
    half[: voxels.shape[0] // 2] = True
    block = VoxelBlock(box, np.where(half & (voxels > 0), voxels + np.uint64(operation_id << 20), voxels))
    when = int((time.time() - age) * 1000)
    Fork(url, dataset.graph_id).commit(
        EditCommit(operation_id, [block], Fork(url, dataset.graph_id).generation(), when, "me"),
    )
    return box


def damage(dataset: Dataset, mip: int) -> None:
    """Spoil a few voxels of a coarser mip without telling anybody."""
    store = dataset.fork.store()
    array = store.array(mip)
    start = np.asarray(array.domain.inclusive_min)[:3]
    with store.transaction() as transaction:
        slices = tuple(slice(int(a), int(a) + 3) for a in start)
        array.with_transaction(transaction)[slices].write(np.uint64(77)).result()


def assert_mips_right(dataset: Dataset) -> None:
    """Every mip is the downsampled mip below it, voxel for voxel."""
    volume = dataset.base.info().volume
    below = dataset.fork.open().read(order="F").result()
    assert len(volume.scales) > 2
    for mip in range(1, len(volume.scales)):
        stored = dataset.fork.open(mip).read(order="F").result()
        np.testing.assert_array_equal(stored, downsample(below, step_factor(volume, mip)), err_msg=f"mip {mip}")
        below = stored
