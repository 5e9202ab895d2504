"""Watersheds of real tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.ingest.watershed.helpers import Made, check, dataset

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_supervoxels_of_fly_medulla_with_their_bodies():
    path = DATA / "fib_250.npz"
    need(path.is_file(), f"real data: {path}")
    arrays = np.load(path)
    labels, truth = arrays["supervoxels"], arrays["groundtruth"]
    made = Made(dataset(f"{path}#supervoxels", (64, 64, 64), resolution=None, agglomeration=f"{path}#groundtruth"))
    shape = int(labels.max()) + 1, int(truth.max()) + 1
    flat = np.ravel_multi_index((labels.ravel(), truth.ravel()), shape)
    votes = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    objects = votes.argmax(axis=1)
    objects[objects == 0] = votes.shape[1] + np.flatnonzero(objects == 0)
    check(made, labels, objects[labels])


def test_mouse_cortex_cut_at_chunk_borders():
    path = DATA / "em_256.npz"
    need(path.is_file(), f"real data: {path}")
    labels = np.load(path)["segmentation"]
    check(Made(dataset(path, (64, 64, 64), resolution=None)), labels, labels)
