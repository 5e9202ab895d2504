from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest.batches import MAX_BATCHES, Batch, Stage, cut_batches, plan_batches, spread_order

shapes = st.tuples(*[st.integers(1, 12)] * 3)


def grid_of(shape: tuple[int, int, int]) -> ChunkGrid:
    return ChunkGrid(Box.of((5, 6, 7), np.add((5, 6, 7), np.multiply(shape, 4))), (4, 4, 4))


@given(shapes, st.integers(1, 50), st.randoms(use_true_random=False))
def test_every_missing_chunk_is_in_exactly_one_batch(shape, per_batch, random) -> None:
    grid = grid_of(shape)
    coordinates = grid.coordinates(2)
    mask = np.array([random.random() < 0.4 for _ in coordinates])
    missing = coordinates[mask]
    batches = plan_batches(Stage.GRAPH, 2, grid, missing, per_batch)
    assert plan_batches(Stage.GRAPH, 2, grid, mask, per_batch) == batches
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


@given(shapes, st.integers(1, 50), st.integers(1, 20), st.integers(1, 300), st.randoms(use_true_random=False))
def test_batches_that_are_cut_hold_the_same_chunks_once(shape, per_batch, smaller, most, random) -> None:
    grid = grid_of(shape)
    mask = np.array([random.random() < 0.4 for _ in grid.coordinates(2)])
    batches = plan_batches(Stage.GRAPH, 2, grid, mask, per_batch)
    pieces = cut_batches(batches, smaller, most)
    covered = sorted(index for piece in pieces for index in range(piece.first, piece.stop))
    assert covered == sorted(index for batch in batches for index in range(batch.first, batch.stop))
    assert len(batches) <= len(pieces) <= max(most, len(batches))
    last = {batch.stop for batch in batches}
    assert all(piece.stop - piece.first >= smaller for piece in pieces if piece.stop not in last)


def test_a_large_layer_is_cut_into_as_many_batches_as_are_wanted() -> None:
    grid = ChunkGrid(Box.of((0, 0, 0), (400, 400, 100)), (4, 4, 4))
    batches = plan_batches(Stage.GRAPH, 2, grid, np.ones(grid.count(2), np.bool_), 64)
    assert len(batches) == MAX_BATCHES
    assert 3800 <= len(cut_batches(batches, 64, 10_000)) == -(-1250 // 64) * MAX_BATCHES
    assert 900 <= len(cut_batches(batches, 64, 1000)) <= 1000


@given(st.integers(1, 5000), st.data())
def test_any_first_part_of_the_order_covers_the_layer_evenly(count: int, data: st.DataObject) -> None:
    order = spread_order(np.arange(count), count)
    assert sorted(order.tolist()) == list(range(count)), "a permutation"
    first = data.draw(st.integers(1, count))
    covered = np.sort(order[:first])
    gaps = np.diff(np.r_[-1, covered, count])
    assert gaps.max() <= 4 * (count // first + 1)


@given(st.integers(2, 200), st.randoms(use_true_random=False))
def test_what_is_done_does_not_change_the_order_of_the_rest(count: int, random) -> None:
    missing = np.array([n for n in range(count) if random.random() < 0.5], np.int64)
    order = spread_order(np.arange(count), count)
    assert spread_order(missing, count).tolist() == [n for n in order.tolist() if n in set(missing.tolist())]


def test_workers_that_begin_together_write_far_apart() -> None:
    grid = grid_of((64, 64, 64))
    batches = plan_batches(Stage.GRAPH, 2, grid, grid.coordinates(2), 64)
    at_once = sorted(batch.first for batch in batches[:16])
    assert np.diff(at_once).min() >= grid.count(2) // 32
