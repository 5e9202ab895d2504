"""The downsampling kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sv_pipeline.algorithms.pyramid import downsample, halvings, pyramid
from sv_pipeline.errors import ConfigError
from sv_pipeline_tests.properties import examples

factors = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)
few_labels = hnp.arrays(
    np.uint64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=11), elements=st.sampled_from([0, 1, 7, 2**64 - 1])
)


@given(few_labels, factors)
def test_each_voxel_depends_on_its_own_block_only(labels: np.ndarray, factor: tuple[int, int, int]) -> None:
    whole = downsample(labels, factor)
    assert whole.shape == tuple(-(-s // f) for s, f in zip(labels.shape, factor, strict=True))
    for index in np.ndindex(whole.shape):
        block = labels[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))]
        assert downsample(block, factor)[0, 0, 0] == whole[index]
        assert whole[index] in block


@given(few_labels, st.lists(factors, max_size=3))
def test_a_pyramid_is_each_mip_made_of_the_one_before(labels: np.ndarray, steps: list[tuple[int, int, int]]) -> None:
    for step, mip in zip(steps, pyramid(labels, steps), strict=True):
        labels = downsample(labels, step)
        np.testing.assert_array_equal(mip, labels)


@examples(40)
@given(few_labels, factors, st.sampled_from("CF"))
def test_memory_order_does_not_matter(labels: np.ndarray, factor: tuple[int, int, int], order: str) -> None:
    expected = downsample(np.asfortranarray(labels), factor)
    strided = np.zeros([2 * s for s in labels.shape], np.uint64, order=order)[::2, ::2, ::2]
    strided[:] = labels
    np.testing.assert_array_equal(downsample(strided, factor), expected)
    assert downsample(strided, factor).flags.f_contiguous


@given(hnp.arrays(np.uint64, (2, 2, 2), elements=st.integers(0, 3)), st.sampled_from([(2, 2, 2), (2, 2, 1), (1, 2, 2)]))
def test_no_label_is_more_frequent_in_the_block_than_the_chosen_one(
    labels: np.ndarray, factor: tuple[int, int, int]
) -> None:
    block = labels[: factor[0], : factor[1], : factor[2]]
    chosen = downsample(block, factor)[0, 0, 0]
    assert (block == chosen).sum() == max((block == label).sum() for label in np.unique(block))


def test_uniform_labels_stay_and_ids_of_64_bits_survive() -> None:
    labels = np.full((9, 8, 7), 2**64 - 1, np.uint64)
    assert (downsample(labels, (4, 2, 2)) == 2**64 - 1).all()


def test_factors_are_products_of_halvings() -> None:
    assert halvings((4, 2, 1)) == [(2, 2, 1), (2, 1, 1)]
    assert halvings((1, 1, 1)) == []


@pytest.mark.parametrize("factor", [(3, 1, 1), (2, 0, 1), (2, 2, -2)])
def test_other_factors_are_refused(factor: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="powers of two"):
        downsample(np.zeros((4, 4, 4), np.uint64), factor)
