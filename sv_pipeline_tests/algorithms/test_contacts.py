from __future__ import annotations

import itertools

import cc3d
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sv_pipeline.algorithms.contacts import DIAGONALS, affinity_of_contact, diagonal_pairs, face_contacts
from sv_pipeline_tests.properties import examples

LABELS = arrays(np.int32, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 4))


@examples(100)
@given(LABELS)
def test_areas_are_those_that_cc3d_counts(labels):
    contacts = face_contacts(labels)
    expected = cc3d.contacts(labels.astype(np.uint32), connectivity=6, surface_area=False)
    assert {tuple(p): a for p, a in zip(contacts.pairs.tolist(), contacts.areas.tolist(), strict=True)} == expected
    assert contacts.affinities is None


@examples(100)
@given(LABELS, st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_diagonal_pairs_are_those_of_a_loop_over_voxels(labels, groups):
    groups = np.array([0, *groups[1:]])
    expected = set()
    for voxel in np.ndindex(labels.shape):
        for shift in itertools.product((-1, 0, 1), repeat=3):
            other = tuple(np.add(voxel, shift))
            if sum(map(abs, shift)) < 2 or not all(0 <= o < n for o, n in zip(other, labels.shape, strict=True)):
                continue
            a, b = sorted((int(labels[voxel]), int(labels[other])))
            if a != b and groups[a] == groups[b] != 0:
                expected.add((a, b))
    assert set(map(tuple, diagonal_pairs(labels, groups).tolist())) == expected


def test_the_diagonal_shifts_are_ten_with_no_opposites():
    assert len(DIAGONALS) == 10
    assert not {tuple(-v for v in shift) for shift in DIAGONALS} & set(DIAGONALS)


def test_affinity_is_the_mean_over_the_faces_of_a_pair():
    labels = np.ones((2, 3, 1), np.int32)
    labels[1] = 2
    affinities = np.zeros((2, 3, 1, 3))
    affinities[1, :, 0, 0] = 0.2, 0.4, 0.9  # channel x of the upper voxel is the face below it
    affinities[0] = 77
    contacts = face_contacts(labels, affinities)
    assert contacts.pairs.tolist() == [[1, 2]]
    assert contacts.areas.tolist() == [3]
    np.testing.assert_allclose(contacts.affinities, [0.5])


def test_background_touches_nothing():
    labels = np.array([[[1, 0, 2]]])
    assert len(face_contacts(labels).pairs) == 0
    assert len(diagonal_pairs(labels, np.array([0, 1, 1]))) == 0


def test_affinity_grows_with_area_and_stays_below_one():
    areas = np.arange(1, 100_001)
    affinity = affinity_of_contact(areas, 100_000, 200_000)
    assert affinity.dtype == np.float32
    assert (np.diff(affinity) > 0).all()
    assert 0 < affinity[0] < affinity[-1] < 1
    assert affinity_of_contact(1 << 40, 1 << 40, 1 << 40) < 1


def test_affinity_is_the_part_of_the_smaller_surface_and_symmetric():
    assert affinity_of_contact([5], [9], [99]) == affinity_of_contact([5], [99], [9]) == [0.5]
