"""The keys of a base are divided among commits of neighbours, completely."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base.key_ranges import key_ranges, tasks_of_range
from sv_pipeline.segmentation.base.layout import plan_scales, task_box
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.precomputed import VolumeInfo, plan_volume

TRIPLES = st.tuples(*[st.integers(1, 120)] * 3)


@given(
    size=TRIPLES,
    offset=st.tuples(*[st.integers(-200, 200)] * 3),
    chunk=st.sampled_from([(16, 16, 8), (8, 16, 16)]),
    layer=st.integers(2, 3),
    at_most=st.sampled_from([1, 7, 30, 200, 10**6]),
)
def test_ranges_hold_every_key_once_in_order_and_name_the_tasks_that_have_it(
    size: Any, offset: Any, chunk: Any, layer: int, at_most: int
) -> None:
    source = plan_volume(resolution=(8, 8, 40), voxel_offset=offset, size=size, chunk_size=(8, 8, 8))
    grid = ChunkGrid(source.bounds, chunk)
    config = OcdbtConfig(populate_layer=layer)
    volume = VolumeInfo("uint64", plan_scales(source, config, grid))
    layer = min(layer, grid.n_layers)
    every, task_of = [], {}
    for mip, scale in enumerate(volume.scales):
        chunks = ChunkNames(scale)
        for task in grid.coordinates(layer).tolist():
            box = task_box(volume, mip, grid, layer, tuple(task))
            first = np.subtract(box.start, scale.voxel_offset) // scale.chunk_size
            stop = -(-np.subtract(box.stop, scale.voxel_offset) // scale.chunk_size)
            cells = np.stack(np.meshgrid(*map(np.arange, first, stop), indexing="ij"), -1).reshape(-1, 3)
            for name in chunks.names(cells).tolist() if len(cells) else []:
                task_of[f"{scale.key}/{name.decode()}"] = task
    ranges = list(key_ranges(volume, at_most))
    for keys in ranges:
        scale = volume.scales[keys.mip]
        chunks = ChunkNames(scale)
        names = chunks.names(chunks.cells(np.arange(keys.first, keys.stop)))
        mine = [f"{scale.key}/{name.decode()}" for name in names.tolist()]
        assert (mine[0], mine[-1]) == (keys.first_key, keys.last_key)
        xs, ys = tasks_of_range(keys, volume, grid, layer)
        assert all(task_of[key][0] in xs and task_of[key][1] in ys for key in mine)
        assert len(mine) <= max(at_most, chunks.shape[2])
        every += mine
    assert every == sorted(task_of)
    assert len(set(every)) == len(every)
