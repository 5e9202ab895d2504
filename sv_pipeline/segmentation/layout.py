"""Owns the plan of a base: its mips, storage chunks and the boxes of populate tasks. Pure; does no I/O.

A task writes one chunk of the populate layer, at every mip. Task boxes must be whole storage chunks at each mip, or two
tasks would write one storage chunk. Everything is counted from the start of the volume, which is also where the chunk
grids of neuroglancer volumes start; so the voxel offset does not matter, and neither does what is left of a task at the
end of the volume::

    mip 0   |<------- task 0 ------>|<------- task 1 ------>|<- task 2 ->|
            |.....:.....:.....:.....|.....:.....:.....:.....|.....:.....:|     4 storage chunks per task
    mip 1   |<- task 0->|<- task 1->|<-2->|
            |.....:.....|.....:.....|.....:                                    2
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from sv_pipeline.algorithms.pyramid import halvings
from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.precomputed import Scale, VolumeInfo, coarser_scale, halving_step

__all__ = ["aligned_chunk_size", "check_alignment", "plan_scales", "populate_layer", "step_factor", "task_box"]

Triple = tuple[int, int, int]

_logger = logging.getLogger(__name__)


def populate_layer(config: OcdbtConfig, grid: ChunkGrid) -> int:
    """Layer one chunk of which is one task: the configured one, or the top layer of a smaller graph."""
    return min(config.populate_layer, grid.n_layers)


def plan_scales(source: VolumeInfo, config: OcdbtConfig, grid: ChunkGrid | None) -> tuple[Scale, ...]:
    """The mips of the base.

    Those of the source come first. Where ``config.mips`` asks for more, or the source has one only and nothing is
    asked for, coarser ones are added (`halving_step`) until the volume fits one storage chunk, or a task would not
    hold whole voxels any more. Storage chunks keep the source's shape where the task boxes of ``grid`` are multiples
    of it, else get the largest divisor of the task box that is not larger.

    Raises
    ------
    ConfigError
        If a mip that is asked for cannot be divided among the tasks.
    """
    n_copied = min(len(source.scales), config.mips or len(source.scales))
    scales = [_base_scale(scale, config) for scale in source.scales[:n_copied]]
    factors = [source.factors(mip) for mip in range(n_copied)]
    while (config.mips is None and len(source.scales) == 1) or len(scales) < (config.mips or 0):
        if config.mips is None and all(s <= c for s, c in zip(scales[-1].size, scales[-1].chunk_size, strict=True)):
            break
        factor = _triple(np.multiply(factors[-1], halving_step(scales[-1].resolution)))
        if config.mips is None and grid is not None and not _divides(factor, grid, populate_layer(config, grid)):
            break
        factors.append(factor)
        scales.append(coarser_scale(scales[0], factor, scales[-1].chunk_size))
    if grid is None:
        return tuple(scales)
    layer = populate_layer(config, grid)
    return tuple(
        replace(scale, chunk_size=aligned_chunk_size(scale, factor, grid, layer))
        for scale, factor in zip(scales, factors, strict=True)
    )


def _base_scale(scale: Scale, config: OcdbtConfig) -> Scale:
    chunk_size = config.storage_chunk_size or scale.chunk_size
    # Values in OCDBT are not compressed; so they must be encoded compactly themselves. Never sharded: one voxel
    # changed would rewrite a whole shard chunk.
    return replace(scale, chunk_size=chunk_size, encoding="compressed_segmentation", sharded=False)


def aligned_chunk_size(scale: Scale, factor: Triple, grid: ChunkGrid, layer: int) -> Triple:
    """Storage chunk shape of a mip that divides the task boxes; ConfigError if there is none."""
    shape: list[int] = []
    for axis in range(3):
        wanted, task = scale.chunk_size[axis], grid.size(layer)[axis]
        if grid.shape(layer)[axis] == 1:
            shape.append(wanted)  # one task along this axis: nothing to share
            continue
        if task % factor[axis]:
            raise _misaligned(scale, factor, grid, layer)
        per_task = task // factor[axis]
        candidates = np.arange(1, min(wanted, per_task) + 1)
        shape.append(int(candidates[per_task % candidates == 0].max()))
    if any(4 * s < c for s, c in zip(shape, scale.chunk_size, strict=True)):
        _logger.warning("mip %s gets small storage chunks, %s, to align them with the tasks", scale.key, shape)
    return _triple(shape)


def check_alignment(volume: VolumeInfo, grid: ChunkGrid, layer: int) -> None:
    """Raise ConfigError unless the task boxes are whole storage chunks at every mip."""
    for mip, scale in enumerate(volume.scales):
        factor = volume.factors(mip)
        for axis in range(3):
            if grid.shape(layer)[axis] > 1 and grid.size(layer)[axis] % (factor[axis] * scale.chunk_size[axis]):
                raise _misaligned(scale, factor, grid, layer)


def _divides(factor: Triple, grid: ChunkGrid, layer: int) -> bool:
    axes = zip(factor, grid.size(layer), grid.shape(layer), strict=True)
    return all(n == 1 or size % f == 0 for f, size, n in axes)


def _misaligned(scale: Scale, factor: Triple, grid: ChunkGrid, layer: int) -> ConfigError:
    return ConfigError(
        f"mip {scale.key} (factor {factor}, storage chunks {scale.chunk_size}) cannot be divided among populate tasks "
        f"of {grid.size(layer)} voxels (layer {layer}, CHUNK_SIZE {tuple(grid.chunk_size)}): they would share storage "
        "chunks.",
        remedy="Raise ocdbt_config.populate_layer, or lower ocdbt_config.mips; a base that was created for another "
        "grid must be wiped and created again.",
    )


def step_factor(volume: VolumeInfo, mip: int) -> Triple:
    """Factor from ``mip - 1`` to ``mip``; ConfigError if it cannot be downsampled by it."""
    step = _triple(np.floor_divide(volume.factors(mip), volume.factors(mip - 1)))
    halvings(step)
    return step


def task_box(volume: VolumeInfo, mip: int, grid: ChunkGrid, layer: int, coordinate: Triple) -> Box:
    """Voxels of ``mip`` (in its own coordinates) that a task writes; empty where the volume ends before it."""
    scale, factor = volume.scales[mip], np.asarray(volume.factors(mip))
    size = np.asarray(grid.size(layer))
    start = np.asarray(coordinate) * size // factor
    stop = (np.asarray(coordinate) + 1) * size // factor
    # The last task of an axis takes whatever the source's own coarser mip has left.
    last = np.asarray(coordinate) == np.asarray(grid.shape(layer)) - 1
    stop = np.where(last, np.maximum(stop, scale.size), stop)
    return Box.of(start, np.maximum(start, stop)).shifted(scale.voxel_offset).clip(scale.bounds)


def _triple(values: object) -> Triple:
    x, y, z = (int(value) for value in np.asarray(values).ravel())
    return (x, y, z)
