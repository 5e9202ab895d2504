from __future__ import annotations

import cc3d
import numpy as np
import pytest

from sv_pipeline.demo.synthetic import synthetic_neuropil


@pytest.fixture(scope="module")
def neuropil():
    return synthetic_neuropil((128, 120, 56), seed=3)


def overlaps(volume):
    """Bodies that each supervoxel lies in."""
    pairs = np.unique(np.stack([volume.segmentation.ravel(), volume.bodies.ravel()], axis=1), axis=0)
    return np.bincount(pairs[:, 0].astype(int))[1:]


def is_connected(labels):
    pieces = cc3d.connected_components(labels.astype(np.uint32), connectivity=26)
    return pieces.max() == len(np.unique(labels))


def test_every_voxel_belongs_to_a_supervoxel_and_a_body(neuropil):
    assert neuropil.segmentation.shape == neuropil.bodies.shape == (128, 120, 56)
    assert neuropil.segmentation.dtype == neuropil.bodies.dtype == np.uint64
    assert neuropil.segmentation.min() == neuropil.bodies.min() == 1


def test_every_supervoxel_and_every_body_is_one_connected_piece(neuropil):
    assert is_connected(neuropil.segmentation)
    assert is_connected(neuropil.bodies)


def test_it_is_oversegmented_with_some_supervoxels_across_two_bodies(neuropil):
    assert len(neuropil.labels) > 5 * neuropil.bodies.max()
    n_bodies = overlaps(neuropil)
    np.testing.assert_array_equal(np.flatnonzero(n_bodies > 1) + 1, neuropil.straddling)
    assert n_bodies.max() == 2
    assert len(neuropil.straddling) > 0


def test_the_agglomeration_knows_all_supervoxels_and_is_mostly_right(neuropil):
    np.testing.assert_array_equal(neuropil.labels, np.unique(neuropil.segmentation))
    objects = neuropil.objects[neuropil.segmentation.astype(int) - 1]
    pairs, counts = np.unique(np.stack([objects.ravel(), neuropil.bodies.ravel()]), axis=1, return_counts=True)
    purity = sum(counts[pairs[1] == body].max() for body in np.unique(neuropil.bodies)) / objects.size
    assert 0.85 < purity < 1


def test_bodies_have_thick_and_thin_processes(neuropil):
    sizes = np.bincount(neuropil.bodies.ravel())[1:]
    assert np.percentile(sizes, 98) > 10 * np.median(sizes)


def test_the_same_seed_gives_the_same_volume():
    one, same, other = (synthetic_neuropil((48, 48, 20), seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.segmentation, same.segmentation)
    np.testing.assert_array_equal(one.bodies, same.bodies)
    np.testing.assert_array_equal(one.objects, same.objects)
    assert (one.bodies != other.bodies).any()
