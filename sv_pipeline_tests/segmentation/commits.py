"""Edits of the voxels of a fork, for the tests of commits and of operations."""

from __future__ import annotations

import numpy as np

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline_tests.segmentation.volumes import Labels, Watershed, make_watershed


def forked(url: str, **options: object) -> Watershed:
    watershed = make_watershed(url, mips=2, **options)  # type: ignore[arg-type]
    watershed.populate()
    Fork(url, "g").create()
    return watershed


def storage_boxes(watershed: Watershed) -> list[Box]:
    grid = ChunkGrid(watershed.grid.bounds, (16, 16, 8))
    return [grid.box(2, coordinate) for coordinate in grid.coordinates(2)]


def edit(watershed: Watershed, operation_id: int, boxes: list[Box], **changes: object) -> EditCommit:
    """An edit that adds its id to all voxels of some boxes."""
    blocks = [VoxelBlock(box, local(watershed, watershed.labels, box) + np.uint64(operation_id)) for box in boxes]
    content = {
        "operation_id": operation_id,
        "blocks": blocks,
        "generation_before": Fork(watershed.url, "g").generation(),
        "logical_time": 1000 * operation_id,
        "owner": "worker",
    }
    return EditCommit(**{**content, **changes})  # type: ignore[arg-type]


def local(watershed: Watershed, labels: Labels, box: Box) -> Labels:
    return labels[box.shifted(np.negative(watershed.grid.bounds.start)).slices]


def expected(watershed: Watershed, *edits: EditCommit) -> Labels:
    labels = watershed.labels.copy()
    for one in edits:
        for block in one.blocks:
            local(watershed, labels, block.box)[:] = block.voxels
    return labels


def voxels(watershed: Watershed, **options: object) -> Labels:
    return Fork(watershed.url, "g").open(**options).read().result()  # type: ignore[arg-type,no-any-return]
