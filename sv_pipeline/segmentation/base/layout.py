"""Plans a base: its mips, its storage chunks and the boxes of populate tasks. Pure; does no I/O.

A task writes one chunk of the populate layer, at every mip. Task boxes must consist of whole storage chunks at each
mip, or two tasks would write to one storage chunk. All grids start at the first voxel of the volume, as the chunk grids
of neuroglancer volumes do. So neither the voxel offset nor an incomplete task at the end of the volume matters::

    mip 0   |<------- task 0 ------>|<------- task 1 ------>|<- task 2 ->|
            |.....:.....:.....:.....|.....:.....:.....:.....|.....:.....:|     4 storage chunks per task
    mip 1   |<- task 0->|<- task 1->|<-2->|
            |.....:.....|.....:.....|.....:                                    2
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.pyramid import halvings
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ocdbt_config import DEFAULT_POPULATE_LAYER, OcdbtConfig
from sv_pipeline.storage.precomputed import coarser_scale, halving_step
from sv_pipeline.storage.volume_info import DEFAULT_BLOCK_SIZE, LABEL_ENCODINGS, Scale, VolumeInfo

__all__ = [
    "aligned_chunk_size",
    "check_alignment",
    "fits_tasks",
    "misfit",
    "own_keys",
    "plan_scales",
    "populate_layer",
    "step_factor",
    "task_box",
    "unclear_grid",
    "usable_mips",
    "with_populate_layer",
]

Triple = tuple[int, int, int]

PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
RESERVED_KEYS = frozenset({"info", "_sv_pipeline"})
"""Names beside the folders of the mips that have another meaning."""

_logger = logging.getLogger(__name__)


def populate_layer(config: OcdbtConfig, grid: ChunkGrid) -> int:
    """Return the layer whose chunks are the tasks: the configured one, or the top layer if the graph has fewer."""
    return min(config.populate_layer or DEFAULT_POPULATE_LAYER, grid.n_layers)


def with_populate_layer(config: OcdbtConfig, grid: ChunkGrid, memory: int) -> OcdbtConfig:
    """Return the configuration with a populate layer for a new base, unless it gives one.

    The layer is 4, or the highest layer below it whose tasks fit the memory. Tasks that refer to the watershed instead
    of copying it need no memory for voxels.

    Parameters
    ----------
    memory
        Memory of a worker in bytes. A task with its mips takes about 4/3 of the 8 bytes of each of its voxels.
    """
    if config.populate_layer is not None:
        return config
    layer = populate_layer(config, grid)
    if not config.populate_method.refers:
        while layer > 2 and 8 * int(np.prod(np.minimum(grid.size(layer), grid.bounds.shape))) * 4 // 3 > memory:
            layer -= 1
    return config.model_copy(update={"populate_layer": layer})


def misfit(volume: VolumeInfo, mip: int) -> str | None:
    """Return why our downsampling cannot keep a given mip up to date; None if the info file gives no reason."""
    scale, base, below = volume.scales[mip], volume.scales[0], volume.scales[mip - 1]
    factor = volume.factors(mip)
    step = np.divide(factor, volume.factors(mip - 1))
    if not np.isin(step, 2.0 ** np.arange(32)).all():
        return f"its voxels are {step.tolist()} times those of mip {mip - 1} ({below.key}), which is no power of two"
    wanted = coarser_scale(base, factor, scale.chunk_size)
    if (scale.voxel_offset, scale.size) != (wanted.voxel_offset, wanted.size):
        return (
            f"it starts at {scale.voxel_offset} and has the size {scale.size}; {factor} times smaller than mip 0 would "
            f"be {wanted.voxel_offset} and {wanted.size}"
        )
    return None


def unclear_grid(volume: VolumeInfo, mip: int) -> str | None:
    """Return why the info file does not determine which voxels a voxel of a mip covers; None if it does.

    Our grid starts at the first voxel of the volume. That of other software starts at the origin (``ts.downsample``),
    or at the first voxel too (cloud-volume). Both agree if the voxel offset is a multiple of the factor.
    """
    start, factor = volume.bounds.start, volume.factors(mip)
    if np.mod(start, factor).any():
        return f"the volume starts at {start}, which is no multiple of {factor}: its grid is not certain"
    return None


def usable_mips(volume: VolumeInfo) -> tuple[int, str | None]:
    """Return the number of given mips, including mip 0, that can be used by the info file, and why the next cannot."""
    for mip in range(1, len(volume.scales)):
        reason = misfit(volume, mip) or unclear_grid(volume, mip)
        encoding = volume.scales[mip].encoding
        if reason is None and encoding not in LABEL_ENCODINGS:
            reason = f"its encoding {encoding} may change labels"
        if reason is not None:
            return mip, reason
    return len(volume.scales), None


def plan_scales(
    source: VolumeInfo,
    config: OcdbtConfig,
    grid: ChunkGrid | None,
    *,
    usable: int | None = None,
    referred: Collection[int] = (),
) -> tuple[Scale, ...]:
    """Plan the mips of the base.

    The usable mips of the source come first; unusable ones are replaced by our own. If ``config`` asks for more mips,
    or the source has only one and ``config`` gives no number, coarser ones are added (`halving_step`) until the volume
    fits into one storage chunk, or a task would no longer consist of whole voxels. Storage chunks keep the shape of the
    source if the task boxes of ``grid`` are multiples of it; otherwise they get the largest divisor of the task box
    that is not larger. Keys are those of the source if they are plain and distinct names.

    Parameters
    ----------
    usable
        Number of mips of the source that may be copied; by default that of `usable_mips`.
    referred
        Mips of the source that the base refers to; they keep their storage chunks and encoding.

    Raises
    ------
    ConfigError
        If a requested mip cannot be divided among the tasks.
    """
    wanted = config.mips or (len(source.scales) if len(source.scales) > 1 else None)
    n_copied = min(usable_mips(source)[0] if usable is None else usable, wanted or 1)
    scales = [
        replace(scale, sharded=False) if mip in referred else _base_scale(scale, config)
        for mip, scale in enumerate(source.scales[:n_copied])
    ]
    factors = [source.factors(mip) for mip in range(n_copied)]
    while wanted is None or len(scales) < wanted:
        may_end = config.mips is None
        if may_end and all(s <= c for s, c in zip(scales[-1].size, scales[-1].chunk_size, strict=True)):
            break
        factor = _triple(np.multiply(factors[-1], halving_step(scales[-1].resolution)))
        if may_end and grid is not None and not _divides(factor, grid, populate_layer(config, grid)):
            break
        factors.append(factor)
        coarser = coarser_scale(scales[0], factor, scales[-1].chunk_size)
        scales.append(replace(coarser, encoding="compressed_segmentation"))
    scales = [replace(scale, key=key) for scale, key in zip(scales, own_keys([s.key for s in scales]), strict=True)]
    if grid is None:
        return tuple(scales)
    layer = populate_layer(config, grid)
    return tuple(
        replace(scale, chunk_size=aligned_chunk_size(scale, factor, grid, layer))
        for scale, factor in zip(scales, factors, strict=True)
    )


def own_keys(wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose the names of the folders of mips: the wanted ones if they are plain and free, else ``NAME_2`` and so on.

    Two mips in one folder would overwrite each other's chunks, and a name with ``..`` could lead into any folder.
    """
    keys: list[str] = []
    for mip, name in enumerate(wanted):
        plain = name if PLAIN_KEY.fullmatch(name) and name not in RESERVED_KEYS else f"mip_{mip}"
        candidates = (plain if number == 1 else f"{plain}_{number}" for number in itertools.count(1))
        # Some file systems and tools do not distinguish upper and lower case.
        keys.append(next(key for key in candidates if key.lower() not in {k.lower() for k in keys}))
    return tuple(keys)


def _base_scale(scale: Scale, config: OcdbtConfig) -> Scale:
    chunk_size = config.storage_chunk_size or _triple(np.minimum(scale.chunk_size, config.max_dst_chunk_shape))
    # OCDBT does not compress values, so they need a compact encoding. They are never sharded, because a change of one
    # voxel would rewrite a whole shard.
    return replace(
        scale,
        chunk_size=chunk_size,
        encoding="compressed_segmentation",
        block_size=scale.block_size if scale.encoding == "compressed_segmentation" else DEFAULT_BLOCK_SIZE,
        sharded=False,
    )


def aligned_chunk_size(scale: Scale, factor: Triple, grid: ChunkGrid, layer: int) -> Triple:
    """Return a storage chunk shape for a mip that divides the task boxes; raise ConfigError if there is none."""
    shape: list[int] = []
    for axis in range(3):
        wanted, task = scale.chunk_size[axis], grid.size(layer)[axis]
        if grid.shape(layer)[axis] == 1:
            shape.append(wanted)  # there is only one task along this axis, so no storage chunk is shared
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
    """Raise ConfigError unless the task boxes consist of whole storage chunks at every mip."""
    for mip, scale in enumerate(volume.scales):
        factor = volume.factors(mip)
        if not _divides(np.multiply(factor, scale.chunk_size), grid, layer):
            raise _misaligned(scale, factor, grid, layer)


def fits_tasks(scale: Scale, factor: Triple, config: OcdbtConfig, grid: ChunkGrid) -> bool:
    """Return whether populate tasks consist of whole storage chunks of a mip with its present chunk size."""
    return _divides(np.multiply(factor, scale.chunk_size), grid, populate_layer(config, grid))


def _divides(voxels: npt.ArrayLike, grid: ChunkGrid, layer: int) -> bool:
    """Return whether tasks consist of whole boxes of this shape, in voxels of mip 0; a single task on an axis does."""
    whole = np.mod(grid.size(layer), voxels) == 0
    return bool(np.all(whole | (np.asarray(grid.shape(layer)) == 1)))


def _misaligned(scale: Scale, factor: Triple, grid: ChunkGrid, layer: int) -> ConfigError:
    return ConfigError(
        f"mip {scale.key} (factor {factor}, storage chunks {scale.chunk_size}) cannot be divided among populate tasks "
        f"of {grid.size(layer)} voxels (layer {layer}, CHUNK_SIZE {tuple(grid.chunk_size)}): they would share storage "
        "chunks.",
        remedy="Raise ocdbt_config.populate_layer, or lower ocdbt_config.mips; a base that was created for another "
        "grid must be wiped and created again.",
    )


def step_factor(volume: VolumeInfo, mip: int) -> Triple:
    """Return the factor from ``mip - 1`` to ``mip``; raise ConfigError if downsampling by it is impossible."""
    step = _triple(np.floor_divide(volume.factors(mip), volume.factors(mip - 1)))
    halvings(step)
    return step


def task_box(volume: VolumeInfo, mip: int, grid: ChunkGrid, layer: int, coordinate: Triple) -> Box:
    """Return the box that a task writes, in voxels of ``mip``; it is empty if the volume ends before it."""
    scale, factor = volume.scales[mip], np.asarray(volume.factors(mip))
    size = np.asarray(grid.size(layer))
    start = np.asarray(coordinate) * size // factor
    stop = (np.asarray(coordinate) + 1) * size // factor
    # The last task along an axis also takes the rest of a coarser mip of the source.
    last = np.asarray(coordinate) == np.asarray(grid.shape(layer)) - 1
    stop = np.where(last, np.maximum(stop, scale.size), stop)
    return Box.of(start, np.maximum(start, stop)).shifted(scale.voxel_offset).clip(scale.bounds)


def _triple(values: object) -> Triple:
    x, y, z = (int(value) for value in np.asarray(values).ravel())
    return (x, y, z)
