"""The surface that seeds claim: it is what the formula says, and many seeds cost little."""

from __future__ import annotations

from typing import Any

import edt
import numpy as np
from hypothesis import given

from sv_pipeline.algorithms.voxel_cut import cut_mask, race
from sv_pipeline.algorithms.voxel_cut.surface import near_surface
from sv_pipeline.algorithms.voxel_cut.voxels import FACES, Voxels
from sv_pipeline_tests.algorithms.test_voxel_cut import ISOTROPIC, ball, requests
from sv_pipeline_tests.properties import examples


@examples(100)
@given(requests(most=8))
def test_seeds_claim_the_outermost_voxels_and_a_ball_each(request_: Any) -> None:
    mask, side, _, resolution = request_
    depth = edt.edt(mask, anisotropy=resolution, black_border=True)[mask]
    voxels = Voxels(mask, resolution)
    seeds = voxels.numbers_of(side)
    outermost = np.logical_or.reduce([voxels.neighbours(shift) == voxels.number for shift in FACES])
    places = voxels.coordinates * voxels.spacing
    away = ((places[:, None] - places[seeds]) ** 2).sum(axis=2)
    assert np.array_equal(near_surface(voxels, depth, seeds), outermost | (away <= depth[seeds] ** 2).any(axis=1))


def test_the_surface_is_claimed_a_few_times_whatever_the_number_of_seeds(monkeypatch: Any) -> None:
    mask = ball((40, 40, 40), (19.5, 19.5, 19.5), 19)
    inside = np.argwhere(mask)
    by_radius = inside[np.argsort(((inside - 19.5) ** 2).sum(axis=1), kind="stable")]
    calls = []
    monkeypatch.setattr(race, "near_surface", lambda *args: calls.append(args) or near_surface(*args))
    labels = cut_mask(mask, by_radius[:20], by_radius[-2000::100], ISOTROPIC)
    assert (labels[tuple(by_radius[:20].T)] == 1).all()
    assert (labels[tuple(by_radius[-2000::100].T)] == 2).all()
    assert 1 <= len(calls) <= 3
