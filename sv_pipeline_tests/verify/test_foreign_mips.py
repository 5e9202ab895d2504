"""Mips that other software made are right as they were given, until the voxels below them change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.config import OcdbtConfig
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.verify.pyramid_checks import check_base, check_pyramid
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.volumes import StoredVolume, base_volume, fork_volume, watershed_volume

OFFSET = (4, -6, 7)


@pytest.fixture
def fork(tmp_path: Path) -> StoredVolume:
    """A watershed with a mip that takes every second voxel, populated and forked."""
    url = kv.as_url(tmp_path)
    info = create_volume(
        url, resolution=(8.0, 8.0, 40.0), voxel_offset=OFFSET, size=(31, 32, 9), chunk_size=(8, 8, 8), n_mips=2
    )
    labels = np.random.default_rng(0).integers(1, 1000, info.bounds.shape).astype(np.uint64)
    open_volume(url, 0, writable=True)[info.bounds.slices].write(labels).result()
    open_volume(url, 1, writable=True)[info.scales[1].bounds.slices].write(labels[::2, ::2]).result()
    config = OcdbtConfig(populate_layer=3)
    grid = ChunkGrid(info.bounds, (16, 16, 16))
    Base(url).create(config, grid=grid)
    plan = populate_plan(Base(url), grid, config)
    for coordinate in plan.missing:
        populate_task(plan, coordinate)
    finish_populate(plan)
    Fork(url, "g").create()
    found = fork_volume(Fork(url, "g"))
    assert found is not None
    return found


def stale_voxels(fork: StoredVolume) -> list[str]:
    outcome = Outcome("pyramid")
    check_pyramid(outcome, fork, watershed_volume(fork.watershed_url))
    return [finding.place for finding in outcome.findings if finding.severity == "error"]


def test_mips_of_the_source_are_right_as_given(fork: StoredVolume) -> None:
    assert not stale_voxels(fork)
    outcome = Outcome("base")
    base = base_volume(Base(fork.watershed_url))
    assert base is not None
    check_base(outcome, base, watershed_volume(fork.watershed_url))
    assert not outcome.findings
    assert outcome.checked >= 2


def test_a_mip_of_the_source_is_stale_where_its_voxels_changed(fork: StoredVolume) -> None:
    block = np.add(OFFSET, (4, 6, 2))
    fork.open(0)[tuple(slice(a, a + n) for a, n in zip(block, (2, 2, 1), strict=True))].write(
        np.full((2, 2, 1), 77, np.uint64)
    ).result()
    (place,) = stale_voxels(fork)
    # Mip 1 begins at half the volume's offset: (2, -3, 7).
    assert place.startswith("mip 1 voxel 4,0,9 (is ")
    assert "should be 77" in place


def test_a_recomputed_voxel_of_a_mip_of_the_source_is_right(fork: StoredVolume) -> None:
    block = np.add(OFFSET, (4, 6, 2))
    fork.open(0)[tuple(slice(a, a + n) for a, n in zip(block, (2, 2, 1), strict=True))].write(
        np.full((2, 2, 1), 77, np.uint64)
    ).result()
    fork.open(1)[4, 0, 9].write(np.uint64(77)).result()
    assert not [place for place in stale_voxels(fork) if place.startswith("mip 1")]


def test_a_changed_voxel_of_a_mip_of_the_source_is_stale(fork: StoredVolume) -> None:
    fork.open(1)[10, 5, 9].write(np.uint64(12345)).result()
    (place,) = stale_voxels(fork)
    assert place.startswith("mip 1 voxel 10,5,9 (is 12345")
