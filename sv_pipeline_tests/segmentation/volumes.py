"""Small volumes that the tests of this room build on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base.base import Base, BaseInfo
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.segmentation.base.populate import PopulatePlan, finish_populate, populate_plan, populate_task
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info

Triple = tuple[int, int, int]
Labels = npt.NDArray[np.uint64]


def blobs(shape: Triple, seed: int = 0, n_labels: int = 40) -> Labels:
    """Labels in blocks with ragged borders, some background, ids beyond 32 bits."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_labels, tuple(-(-s // 5) for s in shape)).astype(np.uint64)
    labels = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)[: shape[0], : shape[1], : shape[2]]
    noisy = rng.random(shape) < 0.05
    labels[noisy] = rng.integers(0, n_labels, int(noisy.sum()))
    return np.asfortranarray(np.where(labels > 0, labels + np.uint64(1 << 56), labels).astype(np.uint64))


BASES: dict[str, dict[str, Any]] = {
    "single": {"manifest_kind": "single"},
    "numbered": {"manifest_kind": "numbered"},
    "by reference": {"populate_method": PopulateMethod.REFERENCE},
}
"""Kinds of bases: by their manifests, and one that refers to the watershed."""


@dataclass(frozen=True)
class Watershed:
    """A source volume on storage, and its labels."""

    url: str
    labels: Labels
    grid: ChunkGrid
    config: OcdbtConfig

    def plan(self, **changes: Any) -> PopulatePlan:
        """Create the base and plan its populate."""
        config = self.config.model_copy(update=changes)
        Base(self.url).create(config, self.grid)
        return populate_plan(Base(self.url), self.grid, config)

    def populate(self, **changes: Any) -> PopulatePlan:
        """Populate all of the base, in this process."""
        plan = self.plan(**changes)
        for task in plan.missing:
            populate_task(plan, task)
        finish_populate(plan)
        return plan


def make_watershed(
    url: str,
    *,
    size: Triple = (70, 45, 37),
    voxel_offset: Triple = (5, -7, 3),
    chunk_size: Triple = (16, 16, 8),
    storage_chunk: Triple = (16, 16, 8),
    resolution: tuple[float, float, float] = (8, 8, 40),
    seed: int = 0,
    **config: Any,
) -> Watershed:
    """A volume with one mip: odd size, non-zero offset; 3 x 2 x 3 tasks of layer 3 by default."""
    create_volume(url, resolution=resolution, voxel_offset=voxel_offset, size=size, chunk_size=storage_chunk)
    labels = blobs(size, seed)
    open_volume(url, writable=True).write(labels).result()
    grid = ChunkGrid(read_info(url).bounds, chunk_size)
    return Watershed(url, labels, grid, OcdbtConfig(**{"populate_layer": 3, **config}))


def expected_pyramid(base: BaseInfo, labels: Labels) -> list[Labels]:
    """All mips, computed from the whole volume at once."""
    pyramid = [labels]
    for mip in range(1, base.n_mips):
        pyramid.append(downsample(pyramid[-1], step_factor(base.volume, mip)))
    return pyramid


def assert_base_holds(watershed: Watershed, plan: PopulatePlan) -> None:
    """The base is the watershed's labels, at every mip, voxel for voxel."""
    store = ocdbt.OcdbtStore(Base(watershed.url).info().spec())
    for mip, expected in enumerate(expected_pyramid(plan.base, watershed.labels)):
        np.testing.assert_array_equal(store.array(mip).read().result(), expected, err_msg=f"mip {mip}")
