from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from sv_pipeline.algorithms.supervoxels import label_overlaps, label_pieces
from sv_pipeline_tests.properties import examples

DTYPES = [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64]


@st.composite
def volumes(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    labels = draw(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)))
    # the largest label of the type must survive as well
    names = np.array([0, 1, 7, np.iinfo(dtype).max], dtype)
    volume = names[labels]
    return np.asfortranarray(volume) if draw(st.booleans()) else volume


@examples(100)
@given(volumes())
def test_pieces_are_the_26_connected_parts_of_each_label(labels):
    before = labels.copy()
    pieces = label_pieces(labels)
    np.testing.assert_array_equal(labels, before)
    n_expected = 0
    for label in np.unique(labels[labels != 0]):
        parts, n = ndimage.label(labels == label, np.ones((3, 3, 3)))
        n_expected += n
        for part in range(1, n + 1):
            (segment,) = np.unique(pieces.segments[parts == part])
            assert pieces.labels[segment - 1] == label
            assert pieces.voxel_counts[segment - 1] == np.count_nonzero(parts == part)
            padded = np.pad(parts == part, 1)
            exposed = sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in range(3))
            assert pieces.surfaces[segment - 1] == exposed
    assert len(pieces.labels) == n_expected
    np.testing.assert_array_equal(pieces.segments == 0, labels == 0)


@examples(50)
@given(volumes())
def test_pieces_are_numbered_in_the_order_of_their_first_voxel_x_fastest(labels):
    segments = label_pieces(labels).segments.ravel(order="F")
    present, first = np.unique(segments, return_index=True)
    first = first[present != 0]
    np.testing.assert_array_equal(present[present != 0], np.arange(1, len(first) + 1))
    assert (np.diff(first) > 0).all()


def test_labels_that_differ_only_in_high_bits_stay_apart():
    labels = np.array([[[1, 1 + (1 << 32), 1 + (1 << 63)]]], np.uint64)
    assert label_pieces(labels).labels.tolist() == labels.ravel().tolist()


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 1, 1)])
def test_background_alone_has_no_pieces(shape):
    pieces = label_pieces(np.zeros(shape, np.uint16))
    assert len(pieces.labels) == 0
    assert not pieces.segments.any()


def test_overlaps_count_voxels_of_each_label_and_object():
    labels = np.array([0, 5, 5, 5, 9]).reshape(1, 1, 5)
    objects = np.array([3, 0, 7, 7, 7]).reshape(1, 1, 5)
    found = label_overlaps(labels, objects)
    assert list(zip(*(a.tolist() for a in found), strict=True)) == [(5, 0, 1), (5, 7, 2), (9, 7, 1)]
    assert all(len(a) == 0 for a in label_overlaps(labels * 0, objects))
