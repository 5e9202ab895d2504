"""Chunks in space: every voxel is in one chunk of each layer, and the number of layers is PyChunkedGraph's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout

Triple = tuple[int, int, int]


def triples(low: int, high: int) -> st.SearchStrategy[Triple]:
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def grids(draw: st.DrawFn, *, max_chunks: int = 5) -> ChunkGrid:
    """Volumes anywhere, with chunks of any shape, the last ones cut off."""
    chunk_size = draw(triples(1, 9))
    start = draw(triples(-100, 100))
    shape = tuple(draw(st.integers(1, s * max_chunks)) for s in chunk_size)
    return ChunkGrid(Box.of(start, np.add(start, shape)), chunk_size)


# -- layers -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 17), st.integers(0, 2))
@example(1, 0)
@example(2, 0)
@example(3, 0)
@example(1024, 1)
@example(1025, 2)
@example(1 << 17, 0)
def test_number_of_layers_is_that_of_the_longest_axis(n_chunks: int, axis: int) -> None:
    size = np.ones(3, np.int64)
    size[axis] = n_chunks
    grid = ChunkGrid(Box.of((0, 0, 0), size * (64, 32, 16) - (5, 3, 1)), (64, 32, 16))
    assert grid.shape(2)[axis] == n_chunks
    assert grid.n_layers == math.ceil(math.log2(n_chunks)) + 2
    # kvdbclient's formula, which goes through quotients of logarithms.
    assert grid.n_layers == int(np.ceil(np.log(n_chunks) / np.log(2))) + 2


@given(grids())
def test_each_layer_halves_the_one_below_until_one_chunk_is_left(grid: ChunkGrid) -> None:
    assert grid.shape(1) == grid.shape(2)
    for layer in range(3, grid.n_layers + 1):
        expected = tuple(math.ceil(n / 2 ** (layer - 2)) for n in grid.shape(2))
        assert grid.shape(layer) == expected == tuple(-(-n // 2) for n in grid.shape(layer - 1))
    assert grid.shape(grid.n_layers) == (1, 1, 1)
    assert grid.n_layers == 2 or max(grid.shape(grid.n_layers - 1)) == 2


@given(grids())
def test_every_chunk_of_a_grid_has_an_id_even_with_the_fewest_bits(grid: ChunkGrid) -> None:
    layout = IdLayout(grid.n_layers, max(1, grid.n_layers - 2))
    for layer in range(1, grid.n_layers + 1):
        coordinates = grid.coordinates(max(layer, 2))
        ids = layout.chunk_ids(layer, coordinates)
        assert len(np.unique(ids)) == grid.count(max(layer, 2))
        np.testing.assert_array_equal(layout.coordinates(ids), coordinates)


# -- chunks and voxels ------------------------------------------------------------------------------------------------


@given(grids(max_chunks=3))
def test_every_voxel_is_in_exactly_one_chunk_of_each_layer(grid: ChunkGrid) -> None:
    for layer in range(2, grid.n_layers + 1):
        seen = np.zeros(grid.bounds.shape, np.int64)
        for coordinate in grid.coordinates(layer):
            box = grid.box(layer, coordinate)
            assert box.volume > 0
            seen[box.shifted(np.negative(grid.bounds.start)).slices] += 1
        assert (seen == 1).all()


@given(grids(), st.data())
def test_a_voxel_is_in_the_box_of_its_chunk(grid: ChunkGrid, data: st.DataObject) -> None:
    """Chunks are counted from the corner of the volume, wherever that is."""
    bounds = grid.bounds
    voxel = [data.draw(st.integers(a, b - 1)) for a, b in zip(bounds.start, bounds.stop, strict=True)]
    [coordinate] = grid.chunk_of([voxel])
    for layer in range(2, grid.n_layers + 1):
        box = grid.box(layer, coordinate >> (layer - 2))
        assert (np.array(box.start) <= voxel).all()
        assert (np.array(voxel) < box.stop).all()


def test_a_chunk_counts_from_the_voxel_offset() -> None:
    grid = ChunkGrid(Box.of((104, -57, 13), (179, 10, 58)), (32, 32, 32))
    assert grid.shape(2) == (3, 3, 2)
    assert grid.box(2, (0, 0, 0)) == Box.of((104, -57, 13), (136, -25, 45))
    assert grid.box(2, (2, 2, 1)) == Box.of((168, 7, 45), (179, 10, 58))
    assert grid.chunk_of([[104, -57, 13], [135, -26, 44], [136, -25, 45]]).tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]


@given(grids())
def test_children_of_all_chunks_are_the_layer_below_each_once(grid: ChunkGrid) -> None:
    for layer in range(3, grid.n_layers + 1):
        children = np.concatenate([grid.children(layer, c) for c in grid.coordinates(layer)])
        np.testing.assert_array_equal(np.sort(grid.index(layer - 1, children)), np.arange(grid.count(layer - 1)))
        for coordinate in grid.coordinates(layer):
            for child in grid.children(layer, coordinate):
                assert (child >> 1 == coordinate).all()
                inner, outer = grid.box(layer - 1, child), grid.box(layer, coordinate)
                assert inner.clip(outer) == inner


@given(grids())
def test_index_and_coordinates_are_inverse(grid: ChunkGrid) -> None:
    for layer in range(2, grid.n_layers + 1):
        coordinates = grid.coordinates(layer)
        assert coordinates.shape == (grid.count(layer), 3)
        assert coordinates.dtype == np.int64
        np.testing.assert_array_equal(grid.index(layer, coordinates), np.arange(grid.count(layer)))


@pytest.mark.parametrize("chunk_size", [(0, 1, 1), (1, -2, 1)])
def test_chunks_without_voxels_are_refused(chunk_size: Triple) -> None:
    with pytest.raises(ConfigError, match="CHUNK_SIZE"):
        ChunkGrid(Box.of((0, 0, 0), (5, 5, 5)), chunk_size)


def test_an_empty_volume_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        ChunkGrid(Box.of((0, 0, 0), (5, 0, 5)), (2, 2, 2))


# -- boxes ------------------------------------------------------------------------------------------------------------

boxes = st.builds(Box.of, triples(-20, 20), triples(-20, 20))


@given(boxes, boxes)
def test_a_clipped_box_holds_the_voxels_of_both(a: Box, b: Box) -> None:
    def voxels(box: Box) -> set[Triple]:
        return set() if box.volume == 0 else {(x, y, z) for x, y, z in _corners_and_middle(box)}

    clipped = a.clip(b)
    assert clipped.volume == math.prod(
        max(0, min(q, s) - max(p, r)) for p, q, r, s in zip(a.start, a.stop, b.start, b.stop, strict=True)
    )
    assert all(_inside(a, v) and _inside(b, v) for v in voxels(clipped))


def _corners_and_middle(box: Box) -> list[Triple]:
    low, high = np.array(box.start), np.array(box.stop) - 1
    return [tuple(v.tolist()) for v in (low, high, (low + high) // 2)]


def _inside(box: Box, voxel: Triple) -> bool:
    return all(a <= v < b for a, v, b in zip(box.start, voxel, box.stop, strict=True))


@given(boxes, st.integers(0, 5), triples(-9, 9))
def test_growing_and_shifting_move_the_faces(box: Box, margin: int, by: Triple) -> None:
    grown, shifted = box.grow(margin), box.shifted(by)
    assert np.subtract(grown.stop, grown.start).tolist() == (np.subtract(box.stop, box.start) + 2 * margin).tolist()
    assert shifted.shape == box.shape
    assert np.subtract(shifted.start, box.start).tolist() == list(by)


@given(boxes)
def test_shape_volume_and_slices_agree(box: Box) -> None:
    assert box.volume == math.prod(box.shape) >= 0
    array = np.zeros((60, 60, 60), np.bool_)
    if box.volume:
        assert array[box.shifted((25, 25, 25)).slices].shape == box.shape
