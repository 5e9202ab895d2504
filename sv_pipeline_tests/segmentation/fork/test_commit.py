"""The commit of an edit's voxels: all or nothing, once, by its owner only."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConflictError, InputError, NotFoundError, UnavailableError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.fork import commit as commit_module
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import (
    pending_key,
)
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline_tests.segmentation.commits import edit, expected, forked, storage_boxes, voxels
from sv_pipeline_tests.segmentation.volumes import BASES, Labels, Watershed

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["single", "by reference"])
def watershed(request: pytest.FixtureRequest, storage_url: str) -> Watershed:
    return forked(storage_url, **BASES[request.param])


# -- one commit -------------------------------------------------------------------------------------------------------


def test_an_edit_is_one_generation_with_voxels_record_and_pending_boxes(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)[3:9:2]
    one = edit(watershed, 7, boxes)
    before = Fork(watershed.url, "g").generation()
    result = Fork(watershed.url, "g").commit(one)
    assert result.generation == before + 1 == Fork(watershed.url, "g").generation()
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one))
    np.testing.assert_array_equal(voxels(watershed, version=before), watershed.labels)
    record = Fork(watershed.url, "g").record(7)
    assert record == result.record
    assert record is not None
    assert (record.boxes, record.generation_before, record.logical_time) == (tuple(boxes), before, 7000)
    pending = json.loads(Fork(watershed.url, "g").store().kv[pending_key(7)])
    assert [Box.of(*box) for box in pending["boxes"]] == boxes
    assert Fork(watershed.url, "g").commit(one) == result
    assert Fork(watershed.url, "g").generation() == before + 1


def test_other_forks_and_the_base_do_not_change(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path))
    Fork(tmp_path, "other").create()
    Fork(tmp_path, "g").commit(edit(watershed, 1, storage_boxes(watershed)[:2]))
    np.testing.assert_array_equal(Fork(tmp_path, "other").open().read().result(), watershed.labels)


def test_bytes_written_are_little_more_than_those_of_the_changed_chunks(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path), size=(160, 160, 64), chunk_size=(32, 32, 16), storage_chunk=(32, 32, 16))
    grid = ChunkGrid(watershed.grid.bounds, (32, 32, 16))
    boxes = [grid.box(2, coordinate) for coordinate in grid.coordinates(2)[10:40]]
    folder = tmp_path / "ocdbt/g"
    before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    one = edit(watershed, 1, boxes)
    Fork(tmp_path, "g").commit(one)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - before
    store = Fork(tmp_path, "g").store().kv
    start = np.array([box.start for box in boxes])
    names = ["_".join(f"{a}-{a + s}" for a, s in zip(c, (32, 32, 16), strict=True)) for c in start.tolist()]
    chunks = sum(len(store[f"8_8_40/{name}"]) for name in names)
    assert written <= 1.2 * chunks


def test_a_part_of_a_storage_chunk_can_be_written_and_leaves_the_rest(watershed: Watershed) -> None:
    box = Box((6, -7, 3), (20, 3, 9))
    one, other = edit(watershed, 1, [box]), edit(watershed, 2, [Box((20, -7, 3), (22, 0, 4))])
    Fork(watershed.url, "g").commit(one)
    Fork(watershed.url, "g").commit(other)
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one, other))


def test_edits_that_cannot_be_right_are_refused_before_anything_is_written(watershed: Watershed) -> None:
    box = storage_boxes(watershed)[0]
    before = Fork(watershed.url, "g").generation()
    with pytest.raises(InputError, match="changes no voxels"):
        Fork(watershed.url, "g").commit(edit(watershed, 1, []))
    block = VoxelBlock(Box((0, 0, 0), (1, 1, 1)), np.ones((1, 1, 1), np.uint64))
    with pytest.raises(InputError, match="not inside the volume"):
        Fork(watershed.url, "g").commit(edit(watershed, 1, [], blocks=[block]))
    for wrong in (np.ones((16, 16, 8), np.int64), np.ones((1, 1, 1), np.uint64)):
        with pytest.raises(InputError, match="uint64"):
            Fork(watershed.url, "g").commit(edit(watershed, 1, [], blocks=[VoxelBlock(box, wrong)]))  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        Fork(watershed.url, "typo").commit(edit(watershed, 1, [box]))
    assert Fork(watershed.url, "g").generation() == before


# -- owners -----------------------------------------------------------------------------------------------------------


def test_who_has_lost_the_fence_cannot_commit(watershed: Watershed) -> None:
    one = edit(watershed, 1, storage_boxes(watershed)[:2])
    assert Fork(watershed.url, "g").take_fence(1, "recovery") is None
    before = Fork(watershed.url, "g").generation()
    with pytest.raises(ConflictError, match=r"taken over by 'recovery'.*Nothing was written"):
        Fork(watershed.url, "g").commit(one)
    assert Fork(watershed.url, "g").generation() == before
    assert Fork(watershed.url, "g").record(1) is None
    again = edit(watershed, 1, storage_boxes(watershed)[:2], owner="recovery")
    assert Fork(watershed.url, "g").commit(again).generation == before + 1
    with pytest.raises(ConflictError):
        Fork(watershed.url, "g").commit(one)


def test_a_fence_that_changes_during_the_commit_stops_it(watershed: Watershed, monkeypatch: pytest.MonkeyPatch) -> None:
    one = edit(watershed, 1, storage_boxes(watershed)[:2])
    checked = commit_module._checked
    stolen: list[str] = []

    def steal(block: VoxelBlock) -> Labels:
        if not stolen:
            stolen.append("x")
            Fork(watershed.url, "g").take_fence(1, "recovery")
        return checked(block)

    monkeypatch.setattr(commit_module, "_checked", steal)
    with pytest.raises(ConflictError, match="taken over"):
        Fork(watershed.url, "g").commit(one)
    np.testing.assert_array_equal(voxels(watershed), watershed.labels)
    assert Fork(watershed.url, "g").records() == []


def test_a_fence_is_taken_once_by_each_owner(watershed: Watershed) -> None:
    assert Fork(watershed.url, "g").take_fence(1, "a") is None
    assert Fork(watershed.url, "g").take_fence(1, "a") == "a"
    before = Fork(watershed.url, "g").generation()
    assert Fork(watershed.url, "g").take_fence(1, "b") == "a"
    assert Fork(watershed.url, "g").take_fence(1, "b") == "b"
    assert Fork(watershed.url, "g").fence(1) == "b"
    assert Fork(watershed.url, "g").fence(2) is None
    assert Fork(watershed.url, "g").generation() == before + 1


# -- answers that get lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_lost_answer_leads_to_one_commit_neither_none_nor_two(gcs_server: GcsControl, phase: str) -> None:
    watershed = forked(gcs_server.new_bucket())
    one = edit(watershed, 1, storage_boxes(watershed)[:3])
    before = Fork(watershed.url, "g").generation()
    for match in ("g/manifest", "g/g_d/"):
        gcs_server.add_fault(method="POST", match=match, phase=phase, status=503, times=2)
    assert Fork(watershed.url, "g").commit(one).generation == before + 1
    assert Fork(watershed.url, "g").generation() == before + 1
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one))


def test_a_fence_taken_with_a_lost_answer_is_taken(gcs_server: GcsControl) -> None:
    watershed = forked(gcs_server.new_bucket())
    Fork(watershed.url, "g").take_fence(1, "a")
    gcs_server.add_fault(method="POST", match="g/manifest", phase="after", status=503, times=1)
    assert Fork(watershed.url, "g").take_fence(1, "b") == "a"
    assert Fork(watershed.url, "g").fence(1) == "b"


def test_storage_that_stays_away_is_said_to_and_the_commit_can_be_repeated(
    gcs_server: GcsControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = {"gcs_request_retries": {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}}
    monkeypatch.setattr("sv_pipeline.storage.context.CONTEXT_OPTIONS", impatient)
    monkeypatch.setattr("sv_pipeline.storage.context._contexts", {})
    monkeypatch.setattr(commit_module, "BACKOFF", Backoff(0.001))
    watershed = forked(gcs_server.new_bucket())
    one = edit(watershed, 1, storage_boxes(watershed)[:3])
    gcs_server.add_fault(method="POST", match="g/manifest", status=503)
    with pytest.raises(UnavailableError, match="recover"):
        Fork(watershed.url, "g").commit(one)
    gcs_server.clear()
    assert Fork(watershed.url, "g").commit(one).generation == one.generation_before + 1
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one))


# -- several processes ------------------------------------------------------------------------------------------------


def commit_all(url: str, edits: list[EditCommit], started: object) -> None:
    started.set()  # type: ignore[attr-defined]
    for one in edits:
        Fork(url, "g").commit(one)


def test_concurrent_commits_of_disjoint_boxes_all_survive_and_each_is_one_generation(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)[:24]
    edits = [edit(watershed, 1 + n, [boxes[2 * n], boxes[2 * n + 1]]) for n in range(12)]
    started = SPAWN.Event()
    workers = [SPAWN.Process(target=commit_all, args=(watershed.url, edits[n::3], started)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, *edits))
    before = edits[0].generation_before
    assert Fork(watershed.url, "g").generation() == before + 12
    generations = [Fork(watershed.url, "g").generation_of(1 + n) for n in range(12)]
    assert sorted(generations) == list(range(before + 1, before + 13))


def test_killed_at_any_moment_a_commit_is_in_or_is_not(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path))
    boxes = storage_boxes(watershed)
    rng = random.Random(3)
    done: list[EditCommit] = []
    outcomes = []
    for number in range(1, 9):
        before = voxels(watershed)
        one = edit(watershed, number, boxes[number::3])
        started = SPAWN.Event()
        worker = SPAWN.Process(target=commit_all, args=(watershed.url, [one], started))
        worker.start()
        assert started.wait(60)
        time.sleep(rng.uniform(0.0, 0.12))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        is_in = Fork(watershed.url, "g").record(number) is not None
        outcomes.append(is_in)
        done += [one] if is_in else []
        np.testing.assert_array_equal(voxels(watershed), expected(watershed, *done) if is_in else before)
    after = edit(watershed, 99, boxes[:2])
    Fork(watershed.url, "g").commit(after)
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, *done, after))


def commit_while_a_thief_comes(url: str, edits: list[EditCommit]) -> None:
    checked = commit_module._checked

    for one in edits:
        stolen: list[int] = []

        def steal(block: VoxelBlock, one: EditCommit = one, stolen: list[int] = stolen) -> Labels:
            if not stolen:
                stolen.append(1)
                Fork(url, "g").take_fence(one.operation_id, "thief")
            return checked(block)

        commit_module._checked = steal
        with pytest.raises(ConflictError):
            Fork(url, "g").commit(one)


def test_a_commit_over_many_nodes_of_the_tree_that_fails_does_not_end_the_process(tmp_path: Path) -> None:
    """TensorStore may crash in a commit that fails: so it must not come to that."""
    watershed = forked(
        str(tmp_path),
        size=(160, 160, 64),
        chunk_size=(64, 64, 64),
        storage_chunk=(16, 16, 8),
        max_decoded_node_bytes=4096,
    )
    boxes = storage_boxes(watershed)
    edits = [edit(watershed, number, boxes[number::3]) for number in range(1, 9)]
    worker = SPAWN.Process(target=commit_while_a_thief_comes, args=(watershed.url, edits))
    worker.start()
    worker.join(120)
    assert worker.exitcode == 0
    np.testing.assert_array_equal(voxels(watershed), watershed.labels)
