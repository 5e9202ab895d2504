"""Coarser mips catch up wherever a fork is, whoever made its mips, and whichever code edits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.config import OcdbtConfig
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ingest.run import ingest
from sv_pipeline.pyramid.downsample import downsample
from sv_pipeline.pyramid.mip_maker import open_pyramid
from sv_pipeline.pyramid.parts import downsample_part
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import pending_key
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.ingest.builds import raw_config, register
from sv_pipeline_tests.pyramid.pyramids import GRAPH, assert_up_to_date, edit, make_fork, random_boxes
from sv_pipeline_tests.pyramid.test_downsample import BUDGET, assert_no_silent_fault

BOX = Box((20, 0, 8), (30, 10, 12))


def test_an_answer_of_the_bucket_that_gets_lost_does_no_harm(gcs_server: GcsControl) -> None:
    url = gcs_server.new_bucket()
    bounds = make_fork(url, size=(40, 36, 20), chunk_size=(64, 64, 32), mips=3)
    edit(url, 1, random_boxes(bounds, np.random.default_rng(0), 3))
    gcs_server.clear()
    gcs_server.add_fault(method="POST", match="g/manifest", phase="after", status=503, times=1)
    assert downsample(Fork(url, GRAPH)).complete
    gcs_server.clear()
    assert_up_to_date(url)


@pytest.mark.parametrize("manifest_kind", ["single", "numbered"])
def test_on_disk_and_in_a_bucket(storage_url: str, manifest_kind: str) -> None:
    bounds = make_fork(storage_url, size=(40, 36, 20), chunk_size=(64, 64, 32), mips=3, manifest_kind=manifest_kind)
    rng = np.random.default_rng(0)
    for operation_id in (1, 2):
        edit(storage_url, operation_id, random_boxes(bounds, rng, 3), seed=operation_id)
    pyramid, landed = open_pyramid(Fork(storage_url, GRAPH)), []

    def lands() -> None:
        if not landed:
            landed.append(True)
            edit(storage_url, 3, [bounds], seed=3)

    whole = Box((0, 0, 0), bounds.shape)
    report = downsample_part(pyramid, whole, [pending_key(1), pending_key(2)], BUDGET, lands)
    assert (report.conflicts, report.commits) == (1, 1)
    assert [entry.operation_id for entry in Fork(storage_url, GRAPH).pending()] == [3]
    assert_no_silent_fault(storage_url)
    assert downsample(Fork(storage_url, GRAPH)).complete
    assert_up_to_date(storage_url)


def test_mips_of_other_software_are_made_again_only_around_what_changed(tmp_path: Path) -> None:
    """A source whose mip 1 takes every second voxel: elsewhere it stays as it was given."""
    url = kv.as_url(tmp_path)
    info = create_volume(
        url, resolution=(8.0, 8.0, 40.0), voxel_offset=(4, -4, 7), size=(61, 64, 19), chunk_size=(8, 8, 8), n_mips=3
    )
    labels = np.random.default_rng(0).integers(1, 5, info.bounds.shape).astype(np.uint64)
    for mip, step in enumerate((1, 2, 4)):
        given = labels[::step, ::step]
        open_volume(url, mip, writable=True)[info.scales[mip].bounds.slices].write(given).result()
    grid = ChunkGrid(info.bounds, (64, 64, 32))
    Base(url).create(OcdbtConfig(populate_layer=2), grid=grid)
    plan = populate_plan(Base(url), grid, OcdbtConfig(populate_layer=2))
    for coordinate in plan.missing:
        populate_task(plan, coordinate)
    finish_populate(plan)
    Fork(url, GRAPH).create()
    edit(url, 1, [Box((30, 20, 10), (36, 26, 12))], value=7)
    assert downsample(Fork(url, GRAPH)).complete
    assert Fork(url, GRAPH).pending() == []
    assert_no_silent_fault(url)
    have, given = Fork(url, GRAPH).open(1).read().result(), labels[::2, ::2]
    assert 0 < np.count_nonzero(have != given) <= 4 * 4 * 2, "the voxels that the edit has a part in"
    rng = np.random.default_rng(1)
    for operation_id in range(2, 8):
        edit(url, operation_id, random_boxes(info.bounds, rng, 2), seed=operation_id)
        assert downsample(Fork(url, GRAPH)).complete
        assert_no_silent_fault(url)


def test_an_edit_that_is_put_back_is_downsampled_again(tmp_path: Path) -> None:
    url = str(tmp_path)
    make_fork(url)
    original = Fork(url, GRAPH).open(1).read().result()
    block = VoxelBlock(BOX, np.full(BOX.shape, 77, np.uint64))
    Fork(url, GRAPH).commit(EditCommit(5, [block], Fork(url, GRAPH).generation(), 1_000_000, "me"))
    assert Fork(url, GRAPH).lag().entries == 1
    assert Fork(url, GRAPH).lag().oldest_seconds is not None
    downsample(Fork(url, GRAPH))
    assert_up_to_date(url)
    assert (Fork(url, GRAPH).open(1).read().result() == 77).any()
    Fork(url, GRAPH).take_fence(5, "recovery")
    assert Fork(url, GRAPH).restore(5, owner="recovery")
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == [5]
    downsample(Fork(url, GRAPH))
    assert_up_to_date(url)
    np.testing.assert_array_equal(Fork(url, GRAPH).open(1).read().result(), original)


def test_a_registered_graph_is_downsampled_by_its_name(tmp_path: Path) -> None:
    dataset = register(raw_config(tmp_path / "data"), tmp_path / "home")
    ingest(dataset, workers=1)
    url, bounds = dataset.watershed_url, dataset.base.info().volume.bounds
    block = Box.of(bounds.start, np.add(bounds.start, 20)).clip(bounds)
    voxels = Fork(url, dataset.graph_id).open()[block.slices].read(order="F").result()
    change = VoxelBlock(block, np.where(voxels > 0, voxels + np.uint64(1 << 20), voxels))
    generation = Fork(url, dataset.graph_id).generation()
    Fork(url, dataset.graph_id).commit(EditCommit(1, [change], generation, 1_000_000, "me"))
    report = downsample(dataset.fork, table=dataset.existing_table)
    assert report.complete
    assert report.graph_id == dataset.graph_id
    assert report.operations == (1,)
    assert report.work.chunks_written > 0
    assert Fork(url, dataset.graph_id).pending() == []
