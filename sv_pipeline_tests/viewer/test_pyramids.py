"""Voxels at any resolution, compared with the voxels of mip 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.grid import Box
from sv_pipeline.viewer.labels import _overlay
from sv_pipeline.viewer.pyramids import Pyramid, PyramidMip, factor_between

Triple = tuple[int, int, int]


def pyramid_of(array: np.ndarray, start: Triple, factors: list[Triple], reads: list[Triple] | None = None) -> Pyramid:
    """A volume that begins at ``start``; each mip holds every n-th voxel. ``reads`` gets the factors of read mips."""

    def mip(factor: Triple) -> PyramidMip:
        stored = array[tuple(slice(None, None, step) for step in factor)]
        first = np.floor_divide(start, factor)

        def read(box: Box) -> np.ndarray:
            if reads is not None:
                reads.append(factor)
            inside = box.shifted(-first)
            assert min(inside.start) >= 0
            assert (np.asarray(inside.stop) <= stored.shape).all()
            return stored[inside.slices]

        return PyramidMip(factor, Box.of(first, first + stored.shape), read)

    return Pyramid(tuple(map(mip, factors)), (8.0, 8.0, 8.0), array.dtype)


triples = st.tuples(*[st.integers(1, 20)] * 3)
steps = st.tuples(*[st.sampled_from([1, 2, 3, 4, 8])] * 3)


@given(triples, st.tuples(*[st.integers(-50, 50)] * 3), st.lists(steps, max_size=3), steps, st.data())
def test_a_view_shows_every_nth_voxel_of_mip_0(
    shape: Triple, start: Triple, factors: list[Triple], factor: Triple, data: Any
) -> None:
    array = np.arange(1, np.prod(shape) + 1, dtype=np.uint64).reshape(shape)
    volume = pyramid_of(array, start, [(1, 1, 1), *factors])
    expected = array[tuple(slice(None, None, step) for step in factor)]
    low = [data.draw(st.integers(0, n - 1)) for n in expected.shape]
    high = [data.draw(st.integers(a + 1, n)) for a, n in zip(low, expected.shape, strict=True)]
    box = Box.of(low, high)
    assert np.array_equal(volume.read(box, factor), expected[box.slices])


def test_a_far_view_reads_the_coarsest_mip_alone() -> None:
    reads: list[Triple] = []
    array = np.ones((64, 64, 32), np.uint64)
    volume = pyramid_of(array, (0, 0, 0), [(1, 1, 1), (2, 2, 1), (4, 4, 2)], reads)
    for factor in [(4, 4, 2), (8, 8, 4), (16, 16, 16)]:
        volume.read(Box.of((0, 0, 0), (2, 2, 2)), factor)
    assert reads == [(4, 4, 2)] * 3
    volume.read(Box.of((0, 0, 0), (2, 2, 2)), (2, 2, 2))
    assert reads[-1] == (2, 2, 1)


def test_voxels_that_a_mip_of_others_lacks_are_background() -> None:
    mip_0 = PyramidMip((1, 1, 1), Box((0, 0, 0), (5, 5, 5)), lambda box: np.ones(box.shape))
    floored = PyramidMip((2, 2, 2), Box((0, 0, 0), (2, 2, 2)), lambda box: np.ones(box.shape))
    volume = Pyramid((mip_0, floored), (8.0, 8.0, 8.0), np.dtype(np.uint64))
    assert volume.read(Box.of((0, 0, 0), (3, 3, 3)), (2, 2, 2)).sum() == 8


@pytest.mark.parametrize(
    ("coarser", "factor"),
    [((16.0, 16.0, 40.0), (2, 2, 1)), ((8.0, 8.0, 40.0), (1, 1, 1)), ((63.9, 64.0, 80.1), (8, 8, 2))],
)
def test_the_factor_follows_from_the_voxel_sizes(coarser: tuple[float, ...], factor: Triple) -> None:
    assert factor_between((8.0, 8.0, 40.0), coarser) == factor


@given(
    triples,
    st.tuples(*[st.integers(-30, 30)] * 3),
    steps,
    st.tuples(*[st.integers(-30, 30)] * 3),
    triples,
    st.integers(0, 1 << 30),
)
def test_a_cut_of_voxels_is_laid_over_any_mip(
    shape: Triple, first: Triple, step: Triple, start: Triple, size: Triple, seed: int
) -> None:
    random = np.random.default_rng(seed)
    sides = random.integers(0, 3, size).astype(np.uint8)
    labels = random.integers(5, 9, shape).astype(np.uint64)
    expected = labels.copy()
    for index in np.ndindex(shape):
        voxel = np.asarray(first) + np.asarray(index) * step - start
        if (voxel >= 0).all() and (voxel < size).all() and sides[tuple(voxel)]:
            expected[index] = sides[tuple(voxel)]
    _overlay(labels, np.asarray(first), np.asarray(step), Box.of(start, np.add(start, size)), sides)
    assert np.array_equal(labels, expected)
