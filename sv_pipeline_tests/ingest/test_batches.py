from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest.batches import MAX_BATCHES, Batch, Stage, plan_batches

shapes = st.tuples(*[st.integers(1, 12)] * 3)


def grid_of(shape: tuple[int, int, int]) -> ChunkGrid:
    return ChunkGrid(Box.of((5, 6, 7), np.add((5, 6, 7), np.multiply(shape, 4))), (4, 4, 4))


@given(shapes, st.integers(1, 50), st.randoms(use_true_random=False))
def test_every_missing_chunk_is_in_exactly_one_batch(shape, per_batch, random) -> None:
    grid = grid_of(shape)
    coordinates = grid.coordinates(2)
    missing = coordinates[[random.random() < 0.4 for _ in coordinates]]
    batches = plan_batches(Stage.GRAPH, 2, grid, missing, per_batch)
    covered = [tuple(c) for batch in batches for c in batch.coordinates(grid).tolist()]
    assert len(covered) == len(set(covered))
    assert {tuple(c) for c in missing.tolist()} <= set(covered)
    assert len(batches) <= MAX_BATCHES


@given(shapes, st.integers(1, 50))
def test_a_batch_means_the_same_whatever_is_missing(shape, per_batch) -> None:
    grid = grid_of(shape)
    everything = plan_batches(Stage.GRAPH, 2, grid, grid.coordinates(2), per_batch)
    one_missing = plan_batches(Stage.GRAPH, 2, grid, grid.coordinates(2)[-1:], per_batch)
    assert set(one_missing) <= set(everything)


@given(st.sampled_from(Stage), st.integers(2, 20), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_key_names_its_batch_and_suits_dagster(stage, layer, first, stop) -> None:
    batch = Batch(stage, layer, first, stop)
    assert Batch.parse(batch.key) == batch
    assert batch.key.replace("_", "").isalnum()


def test_nothing_missing_is_nothing_to_do() -> None:
    assert plan_batches(Stage.VOXELS, 3, grid_of((4, 4, 4)), [], 8) == []
