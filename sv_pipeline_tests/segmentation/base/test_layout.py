"""How a base is divided: mips, storage chunks, tasks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.layout import (
    check_alignment,
    plan_scales,
    populate_layer,
    task_box,
    with_populate_layer,
)
from sv_pipeline.storage.precomputed import Scale, VolumeInfo, coarser_scale

Triple = tuple[int, int, int]


def source(
    size: Triple, offset: Triple = (0, 0, 0), chunk: Triple = (64, 64, 64), resolution: Triple = (8, 8, 40), n: int = 1
) -> VolumeInfo:
    base = Scale("s0", tuple(float(r) for r in resolution), offset, size, chunk)  # type: ignore[arg-type]
    coarser = [coarser_scale(base, (2**mip, 2**mip, 1), chunk) for mip in range(1, n)]
    return VolumeInfo("uint64", (base, *coarser))


triples = st.tuples(*[st.integers(1, 90)] * 3)
offsets = st.tuples(*[st.integers(-50, 50)] * 3)
chunks = st.tuples(*[st.sampled_from([4, 6, 8, 16, 24])] * 3)


@given(triples, offsets, chunks, chunks, st.integers(2, 5))
def test_tasks_tile_every_mip_in_whole_storage_chunks(
    size: Triple, offset: Triple, chunk: Triple, storage: Triple, layer: int
) -> None:
    volume = source(size, offset, storage)
    grid = ChunkGrid(volume.bounds, chunk)
    config = OcdbtConfig(populate_layer=layer)
    layer = populate_layer(config, grid)
    base = VolumeInfo("uint64", plan_scales(volume, config, grid))
    check_alignment(base, grid, layer)
    for mip, scale in enumerate(base.scales):
        written = np.zeros(scale.size, int)
        for coordinate in grid.coordinates(layer):
            box = task_box(base, mip, grid, layer, tuple(coordinate))
            written[box.shifted(np.negative(scale.voxel_offset)).slices] += 1
            start, stop = np.subtract(box.start, scale.voxel_offset), np.subtract(box.stop, scale.voxel_offset)
            assert (start % scale.chunk_size == 0).all()
            assert ((stop % scale.chunk_size == 0) | (stop == scale.size)).all()
        assert (written == 1).all()


def test_the_mips_of_a_volume_lie_where_neuroglancer_expects_them() -> None:
    mip2 = coarser_scale(source((101, 50, 33), (-5, 7, 3)).scales[0], (4, 4, 1), (64, 64, 64))
    assert mip2.voxel_offset == (-2, 1, 3)
    assert mip2.size == (26, 13, 33)
    assert mip2.key == "32_32_40"


def test_coarser_mips_halve_z_only_when_voxels_have_become_cubes() -> None:
    base = VolumeInfo("uint64", plan_scales(source((512, 512, 512)), OcdbtConfig(), None))
    assert [base.factors(mip) for mip in range(len(base.scales))] == [
        (1, 1, 1),
        (2, 2, 1),
        (4, 4, 1),
        (8, 8, 2),
        (16, 16, 4),
        (32, 32, 8),
    ]
    assert max(base.scales[-1].size) <= 64


def test_mips_of_the_source_are_kept_and_more_are_made_only_on_demand() -> None:
    volume = source((512, 512, 512), n=2)
    assert len(plan_scales(volume, OcdbtConfig(), None)) == 2
    assert len(plan_scales(volume, OcdbtConfig(mips=1), None)) == 1
    assert len(plan_scales(volume, OcdbtConfig(mips=4), None)) == 4


def test_storage_chunks_stay_where_they_fit_and_shrink_to_a_divisor_where_not() -> None:
    volume = source((1024, 1024, 256), chunk=(64, 64, 48))
    grid = ChunkGrid(volume.bounds, (128, 128, 64))
    scales = plan_scales(volume, OcdbtConfig(populate_layer=3, mips=4), grid)
    assert [scale.chunk_size for scale in scales] == [(64, 64, 32), (64, 64, 32), (64, 64, 32), (32, 32, 32)]


def test_with_one_task_along_an_axis_storage_chunks_are_free() -> None:
    volume = source((100, 1024, 100), chunk=(64, 64, 48))
    scales = plan_scales(volume, OcdbtConfig(populate_layer=2), ChunkGrid(volume.bounds, (100, 128, 100)))
    assert scales[0].chunk_size == (64, 64, 48)


def test_a_mip_that_tasks_cannot_share_is_refused_with_a_remedy() -> None:
    volume = source((300, 300, 300), n=5)
    grid = ChunkGrid(volume.bounds, (20, 20, 20))
    with pytest.raises(ConfigError, match=r"64_64_40.*populate_layer"):
        plan_scales(volume, OcdbtConfig(populate_layer=2), grid)
    base = VolumeInfo("uint64", volume.scales)
    with pytest.raises(ConfigError, match="wiped"):
        check_alignment(base, grid, 3)


def test_made_mips_end_before_one_that_tasks_cannot_share() -> None:
    volume = source((300, 300, 300), chunk=(10, 10, 10))
    scales = plan_scales(volume, OcdbtConfig(populate_layer=2), ChunkGrid(volume.bounds, (20, 20, 20)))
    assert [scale.key for scale in scales] == ["s0", "16_16_40", "32_32_40"]


@pytest.mark.parametrize(
    ("chunk", "memory_mb", "method", "layer"),
    [
        ((64, 64, 64), 1024, "parts", 4),
        ((256, 256, 512), 1024, "parts", 2),
        ((256, 256, 512), 3000, "direct", 3),
        ((256, 256, 512), 30_000, "parts", 4),
        ((256, 256, 512), 16, "parts", 2),
        ((256, 256, 512), 16, "reference", 4),
    ],
)
def test_the_memory_of_a_worker_decides_on_the_populate_layer_of_a_new_base(
    chunk: tuple[int, int, int], memory_mb: int, method: str, layer: int
) -> None:
    grid = ChunkGrid(Box.of((0, 0, 0), np.multiply(chunk, 64)), chunk)
    config = OcdbtConfig(populate_method=method)
    assert with_populate_layer(config, grid, memory_mb << 20).populate_layer == layer
    given = OcdbtConfig(populate_method=method, populate_layer=5)
    assert with_populate_layer(given, grid, memory_mb << 20) is given


def test_the_populate_layer_is_the_top_layer_of_a_small_graph() -> None:
    small = ChunkGrid(Box((0, 0, 0), (100, 100, 100)), (64, 64, 64))
    assert small.n_layers == 3
    assert populate_layer(OcdbtConfig(), small) == 3
    large = ChunkGrid(Box((0, 0, 0), (10_000, 100, 100)), (64, 64, 64))
    assert populate_layer(OcdbtConfig(), large) == 4
