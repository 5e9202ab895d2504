"""The size of an ingest, as far as the info file determines it: chunks, batches, steps, voxels and storage chunks.

All numbers of this module are exact. They follow from the shape of the volume and from the configuration alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sv_pipeline.config import DatasetConfig, IngestMode, OcdbtConfig
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.ingest.batches import Stage, batch_count
from sv_pipeline.memory import memory_budget
from sv_pipeline.segmentation.base import layout
from sv_pipeline.storage.volume_info import VolumeInfo

__all__ = ["LayerWork", "MipWork", "Workload", "workload_of"]


@dataclass(frozen=True)
class LayerWork:
    """The tasks of one stage, in the order in which stages run."""

    name: str
    """``labels``, ``edges``, ``layer N`` or ``voxels``."""
    stage: Stage
    layer: int
    chunks: int
    """Number of tasks: chunks of the layer."""
    batches: int

    @property
    def steps(self) -> int:
        """Number of steps of a Dagster run: one per batch, one that plans and one that checks."""
        return self.batches + 2


@dataclass(frozen=True)
class MipWork:
    """One mip of the base."""

    mip: int
    voxels: int
    keys: int
    """Number of storage chunks: the largest number of keys that the mip can have."""
    referred: bool
    """Whether the base may refer to the watershed's chunks instead of copying them."""


@dataclass(frozen=True)
class Workload:
    """Everything about an ingest that the info file determines."""

    size: tuple[int, int, int]
    """Voxels (x, y, z) of the volume."""
    voxel_offset: tuple[int, int, int]
    chunk_size: tuple[int, int, int]
    layers: dict[int, int]
    """Number of chunks of each layer, from layer 2 to the root layer."""
    chunks_per_batch: int
    stages: tuple[LayerWork, ...]
    mips: tuple[MipWork, ...]
    """Mips of the base; empty if the mode has no voxels."""
    task_voxels: int
    """Voxels of the largest populate task at mip 0."""

    @property
    def grid(self) -> ChunkGrid:
        """The chunks of the volume."""
        return ChunkGrid(Box.of(self.voxel_offset, np.add(self.voxel_offset, self.size)), self.chunk_size)

    @property
    def voxels(self) -> int:
        """Number of voxels at mip 0."""
        return math.prod(self.size)

    @property
    def chunks(self) -> int:
        """Number of chunks of layer 2."""
        return self.layers[2]

    @property
    def chunk_voxels(self) -> int:
        """Voxels of a chunk that the end of the volume does not cut off."""
        return math.prod(min(n, c) for n, c in zip(self.size, self.chunk_size, strict=True))

    @property
    def makes_watershed(self) -> bool:
        """Whether the ingest makes supervoxels and edges from a source."""
        return any(work.stage is Stage.LABELS for work in self.stages)

    @property
    def builds_graph(self) -> bool:
        """Whether the ingest makes the nodes of the graph."""
        return any(work.stage is Stage.GRAPH for work in self.stages)

    @property
    def ingest_rows(self) -> int:
        """Number of rows with the done-markers of chunks: one per chunk of every layer."""
        return sum(self.layers.values()) if self.builds_graph else 0

    @property
    def files(self) -> int:
        """Number of files besides the base: markers of both watershed passes, edge and component files."""
        return 4 * self.chunks if self.makes_watershed else 0

    @property
    def batches(self) -> int:
        """Number of batches of all stages."""
        return sum(work.batches for work in self.stages)

    @property
    def steps(self) -> int:
        """Number of steps of all stages in Dagster."""
        return sum(work.steps for work in self.stages)

    @property
    def keys(self) -> int:
        """Largest number of keys of the base."""
        return sum(mip.keys for mip in self.mips)


def workload_of(
    config: DatasetConfig,
    volume: VolumeInfo,
    *,
    makes_watershed: bool | None = None,
    referred: Sequence[int] | None = None,
) -> Workload:
    """Return the size of an ingest from nothing.

    Parameters
    ----------
    config
        Configuration of the graph.
    volume
        The watershed volume, as it is or will be.
    makes_watershed
        Whether the watershed has to be made. Default: whether the configuration has a source.
    referred
        Mips of the base that refer to the watershed. Default: those that the info file allows, if the populate method
        refers at all.

    Raises
    ------
    ConfigError
        If the volume cannot be divided into the configured mips and populate tasks, or has too many chunks for the ids.
    """
    grid = ChunkGrid(volume.bounds, config.graph_config.chunk_size)
    IdLayout(grid.n_layers, config.graph_config.spatial_bits)
    mode, per_batch = config.ingest.mode, config.ingest.chunks_per_batch
    layers = {layer: grid.count(layer) for layer in range(2, grid.n_layers + 1)}
    budget = memory_budget(config.ingest.worker_memory_mb)
    ocdbt = layout.with_populate_layer(config.ocdbt_config, grid, budget)
    populate_layer = layout.populate_layer(ocdbt, grid)
    kinds: list[tuple[str, Stage, int, int]] = []
    if config.source is not None if makes_watershed is None else makes_watershed:
        kinds += [(str(stage), stage, 2, per_batch) for stage in (Stage.LABELS, Stage.EDGES)]
    if mode is not IngestMode.SETUP:
        for layer in layers:
            if mode is not IngestMode.VOXELS:
                kinds.append((f"layer {layer}", Stage.GRAPH, layer, per_batch))
            if mode is not IngestMode.GRAPH and layer == populate_layer:
                kinds.append(("voxels", Stage.VOXELS, layer, 1))
    return Workload(
        size=volume.bounds.shape,
        voxel_offset=volume.bounds.start,
        chunk_size=grid.chunk_size,
        layers=layers,
        chunks_per_batch=per_batch,
        stages=tuple(
            LayerWork(name, stage, layer, layers[layer], batch_count(layers[layer], size))
            for name, stage, layer, size in kinds
        ),
        mips=() if mode in (IngestMode.GRAPH, IngestMode.SETUP) else _mips(ocdbt, volume, grid, referred),
        task_voxels=math.prod(min(a, b) for a, b in zip(volume.bounds.shape, grid.size(populate_layer), strict=True)),
    )


def _mips(
    ocdbt: OcdbtConfig, volume: VolumeInfo, grid: ChunkGrid, referred: Sequence[int] | None
) -> tuple[MipWork, ...]:
    usable = layout.usable_mips(volume)[0]
    if referred is None:
        given = range(min(usable, ocdbt.mips or usable)) if ocdbt.populate_method.refers else ()
        referred = [m for m in given if layout.fits_tasks(volume.scales[m], volume.factors(m), ocdbt, grid)]
    scales = layout.plan_scales(volume, ocdbt, grid, usable=usable, referred=referred)
    return tuple(
        MipWork(
            mip,
            math.prod(scale.size),
            math.prod(-(-n // c) for n, c in zip(scale.size, scale.chunk_size, strict=True)),
            mip in referred,
        )
        for mip, scale in enumerate(scales)
    )
