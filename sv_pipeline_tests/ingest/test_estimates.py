"""Estimates: intervals of sampled totals cover what is there, and samples are spread over the volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest.estimates import Estimate, extrapolate, share_unlike, spread_chunks

SHAPES = st.tuples(*[st.integers(1, 40)] * 3)


def grid_of(shape: tuple[int, int, int]) -> ChunkGrid:
    """A grid with this number of chunks per axis, the last of which is cut off."""
    return ChunkGrid(Box.of((3, -2, 5), np.array((3, -2, 5)) + np.array(shape) * 8 - 3), (8, 8, 8))


@given(shape=SHAPES, seed=st.integers(0, 99), data=st.data())
def test_the_chosen_chunks_are_distinct_and_in_the_volume(
    shape: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    grid = grid_of(shape)
    count = data.draw(st.integers(1, min(60, grid.count(2))))
    chosen = spread_chunks(grid, count, seed)
    assert len(np.unique(chosen, axis=0)) == count
    assert ((chosen >= 0) & (chosen < grid.shape(2))).all()
    assert np.array_equal(chosen, spread_chunks(grid, count, seed))


def test_chosen_chunks_are_spread_more_evenly_than_random_ones() -> None:
    grid = grid_of((32, 32, 32))
    octants = [np.bincount(spread_chunks(grid, 64, seed) // 16 @ [4, 2, 1], minlength=8).std() for seed in range(20)]
    randoms = [np.random.default_rng(seed).multinomial(64, [1 / 8] * 8).std() for seed in range(20)]
    assert np.mean(octants) < 0.7 * np.mean(randoms)


def test_a_sample_of_a_huge_volume_makes_no_list_of_its_chunks() -> None:
    grid = ChunkGrid(Box.of((0, 0, 0), (1 << 30,) * 3), (64, 64, 64))
    assert len(spread_chunks(grid, 20)) == 20


@pytest.mark.parametrize("kind", ["even", "dense in one corner", "mostly empty"])
def test_most_intervals_cover_the_total(kind: str) -> None:
    random = np.random.default_rng(5)
    covered = []
    for trial in range(200):
        grid = grid_of(tuple(random.integers(4, 12, 3).tolist()))
        coordinates = grid.coordinates(2)
        voxels = np.array([grid.box(2, c).volume for c in coordinates], np.float64)
        density = random.gamma(4, 0.25, len(voxels))
        if kind == "dense in one corner":
            density *= 1 + 4 * np.exp(-((coordinates / grid.shape(2)) ** 2).sum(axis=1))
        elif kind == "mostly empty":
            density *= random.random(len(voxels)) < 0.4
        quantity = density * voxels
        index = grid.index(2, spread_chunks(grid, 20, trial))
        estimate = extrapolate(quantity[index], voxels[index], len(voxels), int(voxels.sum()))
        covered.append(estimate.covers(float(quantity.sum())))
    assert np.mean(covered) > 0.88


@given(values=st.lists(st.floats(0, 1e9), min_size=1, max_size=30))
def test_a_sample_of_all_chunks_is_exact(values: list[float]) -> None:
    estimate = extrapolate(values, [7] * len(values), len(values), 7 * len(values))
    assert estimate.is_exact
    assert estimate.covers(sum(values))


@pytest.mark.parametrize(("n", "chunks"), [(0, 3), (1, 2), (4, 3)])
def test_no_sample_gives_no_interval(n: int, chunks: int) -> None:
    with pytest.raises(ValueError, match="are no sample"):
        extrapolate([1.0] * n, [1.0] * n, chunks, 10)


@pytest.mark.parametrize(("n", "share"), [(3, 0.2), (20, 0.1), (60, 0.04)])
def test_a_sample_without_scatter_bounds_the_share_of_other_chunks(n: int, share: float) -> None:
    random, bound = np.random.default_rng(n), share_unlike(n, 10_000)
    unlike = random.random((4000, n)) < share
    assert (share <= bound) or np.mean(~unlike.any(axis=1)) <= 0.05
    assert share_unlike(n, n) == 0


def test_arithmetic_keeps_the_order_of_the_bounds() -> None:
    total = Estimate(3, 2, 5) * Estimate(2, 1, 4) + Estimate.exact(1) * 3
    assert (total.value, total.low, total.high) == (9, 5, 23)
    assert Estimate.parse(total.to_dict()) == total
