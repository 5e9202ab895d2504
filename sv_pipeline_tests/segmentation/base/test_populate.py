"""Populate: the base becomes the source, voxel for voxel, however it is done."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline import failpoints
from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.backoff import Backoff
from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.errors import ConfigError, CorruptionError, InputError, NotReadyError, UnavailableError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base import populate
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.base.transfer import WORKING_BYTES, task_pieces
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE
from sv_pipeline.storage.generations import current_version, read_manifest
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info
from sv_pipeline.storage.retry import MAX_DELAY
from sv_pipeline.testing.populating import populate_missing
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.segmentation.volumes import Watershed, assert_base_holds, blobs, make_watershed

Triple = tuple[int, int, int]
LOCAL_METHODS = [PopulateMethod.PARTS, PopulateMethod.DIRECT, PopulateMethod.REFERENCE]


@pytest.mark.parametrize("method", list(PopulateMethod))
@pytest.mark.parametrize("kind", ["single", "numbered"])
def test_the_base_becomes_the_source_at_every_mip(storage_url: str, method: PopulateMethod, kind: str) -> None:
    watershed = make_watershed(storage_url, manifest_kind=kind)
    plan = watershed.plan(populate_method=method)
    assert len(plan.missing) == plan.n_tasks == 18
    assert len(populate_missing(plan)) == 18
    finish_populate(plan)
    assert plan.base.n_mips >= 4
    assert_base_holds(watershed, plan)


@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(*[st.integers(1, 40)] * 3),
    offset=st.tuples(*[st.integers(-9, 9)] * 3),
    chunk=st.tuples(*[st.sampled_from([8, 12, 16])] * 3),
    storage=st.tuples(*[st.sampled_from([4, 6, 8, 16])] * 3),
    resolution=st.sampled_from([(8, 8, 40), (10, 10, 10)]),
    slab=st.sampled_from([1, 500, 1 << 25]),
)
def test_a_pyramid_made_in_tasks_equals_that_of_the_whole_volume(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    size: Triple,
    offset: Triple,
    chunk: Triple,
    storage: Triple,
    resolution: Triple,
    slab: int,
) -> None:
    # 32 bytes of the budget for each voxel of a piece; with the smallest, every storage chunk is a commit of its own.
    monkeypatch.setattr(populate, "memory_budget", lambda: 32 * slab)
    watershed = make_watershed(
        str(tmp_path_factory.mktemp("ws")),
        size=size,
        voxel_offset=offset,
        chunk_size=chunk,
        storage_chunk=storage,
        resolution=resolution,
        populate_method=PopulateMethod.DIRECT,
    )
    assert_base_holds(watershed, watershed.populate())


@pytest.mark.parametrize("method", LOCAL_METHODS)
def test_a_task_that_does_not_fit_the_memory_is_committed_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: PopulateMethod
) -> None:
    once = make_watershed(str(tmp_path / "once"), populate_method=method, populate_layer=4)
    pieces = make_watershed(str(tmp_path / "pieces"), populate_method=method, populate_layer=4)
    assert_base_holds(once, once.populate())
    monkeypatch.setattr(populate, "memory_budget", lambda: 1 << 18)
    plan = pieces.plan(populate_method=method)
    limit = (1 << 18) // 2
    for task in plan.missing:
        found = list(task_pieces(plan.base, plan.grid, plan.layer, task, budget=plan.memory))
        assert len(found) > 1
        assert max(WORKING_BYTES * piece.n_voxels for piece in found) < 3 * limit
    assert_base_holds(pieces, pieces.populate())
    one, other = (current_version(ocdbt.base_folder(w.url)).generation for w in (once, pieces))
    assert other > one if method is PopulateMethod.DIRECT else other == one


def test_killed_between_two_commits_of_a_task_the_populate_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watershed = make_watershed(str(tmp_path), populate_method=PopulateMethod.DIRECT, populate_layer=4)
    monkeypatch.setattr(populate, "memory_budget", lambda: 1 << 18)
    plan = watershed.plan(populate_method=PopulateMethod.DIRECT)
    monkeypatch.setenv(failpoints.VARIABLE, "populate commit:raise")
    with pytest.raises(failpoints.FailpointError):
        populate_task(plan, plan.missing[0])
    assert watershed.plan(populate_method=PopulateMethod.DIRECT).missing == plan.missing
    assert_base_holds(watershed, watershed.populate())


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
@pytest.mark.parametrize("data_type", ["uint32", "uint64"])
def test_mips_of_the_source_are_copied_as_they_are(tmp_path: Path, encoding: str, data_type: str) -> None:
    url = kv.as_url(tmp_path)
    create_volume(
        url,
        resolution=(8, 8, 40),
        voxel_offset=(4, 8, -5),
        size=(50, 41, 30),
        chunk_size=(16, 16, 16),
        data_type=data_type,
        encoding=encoding,
        n_mips=3,
    )
    # Not the pyramid that we would make, so that a recomputed mip would show.
    labels = blobs((50, 41, 30)) & np.uint64(0xFFFF)
    mips = [labels, labels[::2, ::2], labels[::4, ::4]]
    for mip, labels in enumerate(mips):
        open_volume(url, mip, writable=True).write(labels.astype(data_type)).result()
    grid = ChunkGrid(read_info(url).bounds, (16, 16, 16))
    watershed = Watershed(url, mips[0], grid, OcdbtConfig(populate_layer=2, mips=5))
    base = watershed.populate().base
    for mip in (3, 4):
        mips.append(downsample(mips[-1], step_factor(base.volume, mip)))
    store = ocdbt.OcdbtStore(Base(url).info().spec())
    for mip, labels in enumerate(mips):
        assert store.array(mip).dtype == ts.uint64
        np.testing.assert_array_equal(store.array(mip).read().result(), labels)


def test_a_sharded_source_is_copied_into_unsharded_storage(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path / "plain"))
    plain = ts.open({"driver": "neuroglancer_precomputed", "kvstore": kv.as_url(tmp_path / "plain")}).result()
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 2,
        "minishard_bits": 1,
        "shard_bits": 1,
        "hash": "identity",
    }
    scale = plain.spec().to_json()["scale_metadata"]
    sharded = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": kv.as_url(tmp_path / "sharded"),
            "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
            "scale_metadata": {**scale, "sharding": sharding},
        },
        create=True,
    ).result()
    sharded.write(plain).result()
    assert read_info(tmp_path / "sharded").scales[0].sharded
    same = Watershed(kv.as_url(tmp_path / "sharded"), watershed.labels, watershed.grid, watershed.config)
    plan = same.populate()
    assert not plan.base.volume.scales[0].sharded
    assert_base_holds(same, plan)


def test_an_atomic_task_is_one_generation_with_all_its_mips(storage_url: str) -> None:
    watershed = make_watershed(storage_url, populate_method=PopulateMethod.DIRECT)
    plan = watershed.plan()
    folder = ocdbt.base_folder(storage_url)
    for task in plan.missing[:4]:
        before = current_version(folder).generation
        populate_task(plan, task)
        assert current_version(folder).generation == before + 1


def test_parts_are_merged_in_one_generation_by_reference(storage_url: str) -> None:
    watershed = make_watershed(storage_url, max_inline_value_bytes=0)
    plan = watershed.plan()
    populate_missing(plan)
    folder = ocdbt.base_folder(storage_url)
    before = current_version(folder).generation
    in_parts = {key for key in kv.list_keys(folder, "parts/") if "/d/" in key}
    report = finish_populate(plan)
    assert (report.merged_parts, report.generation) == (18, before + 1)
    assert set(kv.list_keys(folder, "parts/")) == in_parts, "manifests of parts are gone, data stays"
    assert_base_holds(watershed, plan)


def test_parts_may_be_merged_in_increments_and_a_finish_repeated(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    populate_missing(plan)
    before = current_version(ocdbt.base_folder(storage_url)).generation
    report = finish_populate(plan, parts_per_commit=7)
    assert (report.merged_parts, report.generation) == (18, before + 3)
    again = finish_populate(plan)
    assert (again.merged_parts, again.generation) == (0, report.generation)
    assert_base_holds(watershed, plan)


def test_a_part_that_has_vanished_is_not_taken_for_empty_space(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    populate_missing(plan)
    folder = ocdbt.base_folder(storage_url)
    lost = next(key for key in kv.list_keys(folder, "parts/1_0_1/") if key.endswith(ocdbt.SINGLE_MANIFEST))
    kv.delete_key(folder, lost)
    with pytest.raises(CorruptionError, match=r"1_0_1 .* gone"):
        finish_populate(plan)
    kv.delete_prefix(kv.join_url(storage_url, "ocdbt", ".populated", "tasks"), "1_0_1")
    watershed.populate()
    assert_base_holds(watershed, plan)


def test_finishers_at_once_leave_one_right_base(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    populate_missing(plan)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: finish_populate(plan), range(4)))
    assert {report.n_tasks for report in reports} == {18}
    assert_base_holds(watershed, plan)


def test_a_worker_can_look_at_its_own_tasks_alone(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    populate_task(plan, plan.missing[0])
    mine = populate_plan(Base(storage_url), watershed.grid, watershed.config, only=plan.missing[:3])
    assert mine.missing == plan.missing[1:3]
    assert mine.n_tasks == plan.n_tasks


def test_a_task_that_is_done_is_not_done_again(storage_url: str) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    first = populate_task(plan, plan.missing[0])
    before = kv.list_keys(storage_url)
    second = populate_task(plan, plan.missing[0])
    assert (first.already_done, second.already_done) == (False, True)
    assert first.shapes == second.shapes
    assert kv.list_keys(storage_url) == before
    assert len(watershed.plan().missing) == 17


@pytest.mark.parametrize("method", LOCAL_METHODS)
def test_workers_that_do_the_same_task_at_once_end_in_the_right_state(storage_url: str, method: PopulateMethod) -> None:
    watershed = make_watershed(storage_url, populate_method=method)
    plan = watershed.plan()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda task: populate_task(plan, task), sorted(plan.missing * 3)))
    finish_populate(plan)
    attempts = {tuple(key.split("/")[:3]) for key in kv.list_keys(ocdbt.base_folder(storage_url), "parts/")}
    assert len(attempts) == (0 if method is PopulateMethod.DIRECT else 18)
    assert_base_holds(watershed, plan)


@pytest.mark.parametrize("method", [*LOCAL_METHODS, PopulateMethod.COORDINATOR])
def test_several_processes_populate_together(tmp_path: Path, method: PopulateMethod) -> None:
    watershed = make_watershed(str(tmp_path), populate_method=method)
    plan = watershed.plan()
    populate_missing(plan, workers=3)
    finish_populate(plan)
    assert_base_holds(watershed, plan)


def test_a_finish_names_the_tasks_that_are_missing(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    plan = watershed.plan()
    for task in plan.missing[1:]:
        populate_task(plan, task)
    with pytest.raises(NotReadyError, match=r"1 of 18 populate tasks .*0_0_0"):
        finish_populate(plan)


def test_a_base_keeps_the_populate_layer_that_was_chosen_when_it_was_created(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), size=(120, 60, 40), populate_layer=None)
    base = Base(watershed.url)
    base.create(watershed.config, watershed.grid, memory=500_000)
    assert base.settings()["populate_layer"] == 3
    base.create(watershed.config, watershed.grid, memory=1 << 30)
    assert populate_plan(base, watershed.grid, watershed.config, memory=1 << 30).layer == 3


def test_the_populate_layer_of_the_first_plan_counts(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    first = watershed.plan()
    second = watershed.plan(populate_layer=4)
    assert (second.layer, second.missing) == (3, first.missing)
    kv.delete_key(f"{tmp_path}/ocdbt/.populated", "meta.json")  # the division into tasks says it as well
    assert watershed.plan(populate_layer=4).layer == 3
    watershed.populate()
    assert watershed.plan(populate_layer=4).missing == ()


def test_another_grid_may_use_a_complete_base_but_not_help_to_populate_it(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    watershed.plan()
    other = ChunkGrid(watershed.grid.bounds, (32, 32, 16))
    with pytest.raises(ConfigError, match=r"\(16, 16, 8\).*\(32, 32, 16\)"):
        populate_plan(Base(watershed.url), other, watershed.config)
    watershed.populate()
    assert populate_plan(Base(watershed.url), other, watershed.config).missing == ()


def test_a_grid_that_is_not_the_volumes_is_refused(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    Base(watershed.url).create(watershed.config, watershed.grid)
    with pytest.raises(InputError, match="chunk grid covers"):
        populate_plan(Base(watershed.url), ChunkGrid(Box((0, 0, 0), (70, 45, 37)), (16, 16, 8)), watershed.config)


def test_without_a_coordinator_address_a_task_that_needs_one_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    watershed = make_watershed(str(tmp_path), populate_method=PopulateMethod.COORDINATOR)
    plan = watershed.plan()
    with pytest.raises(ConfigError, match=ADDRESS_VARIABLE):
        populate_task(plan, plan.missing[0])
    assert Base(watershed.url).done_tasks() == set()


def test_the_pauses_of_a_task_outlast_a_lease_of_the_coordinator() -> None:
    backoff = Backoff(populate.COORDINATOR_PAUSE, MAX_DELAY)
    shortest = [backoff.after(failures) / 2 for failures in range(1, populate.ATTEMPTS)]
    assert sum(shortest) > 10.0


def test_a_dead_coordinator_is_reported_after_retries_and_leaves_no_marker(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), populate_method=PopulateMethod.COORDINATOR)
    plan = watershed.plan()
    with pytest.raises(UnavailableError, match="coordinator"):
        populate_task(plan, plan.missing[0], coordinator_address="127.0.0.1:1", attempts=2)
    assert Base(watershed.url).done_tasks() == set()


@pytest.mark.parametrize("method", LOCAL_METHODS)
@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_bucket_that_fails_at_times_does_not_spoil_the_base(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch, method: PopulateMethod, phase: str
) -> None:
    quick = {"gcs_request_retries": {"max_retries": 2, "initial_delay": "1ms", "max_delay": "2ms"}}
    monkeypatch.setattr("sv_pipeline.storage.context.CONTEXT_OPTIONS", quick)
    monkeypatch.setattr("sv_pipeline.storage.context._contexts", {})
    monkeypatch.setattr("sv_pipeline.storage.retry.MAX_DELAY", 0.01)
    watershed = make_watershed(gcs_server.new_bucket(), populate_method=method)
    plan = watershed.plan()
    gcs_server.add_fault(method="POST", match="ocdbt", phase=phase, status=503, probability=0.15)
    for task in plan.missing:
        populate_task(plan, task, attempts=10)
    finish_populate(plan)
    gcs_server.clear()
    assert_base_holds(watershed, plan)


def test_a_failed_task_leaves_a_report_where_error_dump_says(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watershed = make_watershed(storage_url)
    plan = watershed.plan()
    folder = kv.join_url(storage_url, "dumps")
    monkeypatch.setenv("ERROR_DUMP", folder)
    kv.write_bytes(storage_url, "info", b"broken")
    with pytest.raises(InputError):
        populate_task(plan, plan.missing[0])
    (key,) = kv.list_keys(folder)
    assert key.startswith("populate_0_0_0_")
    dump = json.loads(kv.read_bytes(folder, key) or b"")
    assert dump["coordinate"] == [0, 0, 0]
    assert dump["error"]["kind"] == "input"
    assert dump["versions"]["tensorstore"]
    assert dump["where"]["host"]
    assert any("populate_task" in line for line in dump["traceback"])
    assert [tuple(mip["shape"]) for mip in dump["mips"]][:2] == [(32, 32, 16), (16, 16, 16)]
    assert dump["mips"][1]["spec"]["scale_index"] == 1
    assert Base(storage_url).done_tasks() == set()


def test_an_error_dump_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watershed = make_watershed(str(tmp_path))
    plan = watershed.plan()
    monkeypatch.setenv("ERROR_DUMP", "nonsense://x")
    (tmp_path / "info").write_bytes(b"broken")
    with pytest.raises(InputError):
        populate_task(plan, plan.missing[0])


def test_voxels_that_are_background_are_not_stored(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path))
    open_volume(watershed.url, writable=True).write(np.uint64(0)).result()
    watershed.labels[:] = 0
    plan = watershed.populate()
    assert_base_holds(watershed, plan)
    store = ocdbt.OcdbtStore(Base(watershed.url).info().spec())
    assert [key for key in store.kv.list().result() if not key.startswith(b"_sv_pipeline/")] == [b"info"]
    assert read_manifest(store.base)["versions"]
