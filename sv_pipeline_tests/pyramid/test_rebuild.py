"""The rebuild of one mip: many workers at once, edits beside it, killed at any moment; it ends right."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import NotFoundError, NotReadyError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid import mip_maker
from sv_pipeline.pyramid.downsample import downsample, rebuild
from sv_pipeline.pyramid.mip_maker import boxes_within, open_pyramid
from sv_pipeline.pyramid.rebuild import begin_rebuild, rebuild_mip, unfinished
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline_tests.pyramid.pyramids import GRAPH, assert_up_to_date, edit, make_fork, random_boxes

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = str(tmp_path / "ws")
    make_fork(url, size=(190, 150, 70), chunk_size=(256, 256, 128), storage_chunk=(16, 16, 16), mips=4)
    return url


def spoil(url: str, mip: int) -> None:
    store = Fork(url, GRAPH).store()
    with store.transaction() as transaction:
        store.array(mip).with_transaction(transaction).write(np.uint64(3)).result()


def rebuild_all(url: str) -> None:
    """What the partitions of a backfill do, one after the other."""
    for mip in range(1, Base(url).info().n_mips):
        pyramid = open_pyramid(Fork(url, GRAPH))
        for box in begin_rebuild(pyramid, mip):
            rebuild_mip(pyramid, mip, box, memory_budget=1 << 20)


def rebuild_until_killed(url: str, started: Event) -> None:
    started.set()
    while True:
        rebuild_all(url)


def test_mips_that_are_all_wrong_are_all_right_afterwards(url: str) -> None:
    for mip in range(1, 4):
        spoil(url, mip)
    rebuild_all(url)
    assert downsample(Fork(url, GRAPH)).complete
    assert_up_to_date(url)


def test_chunks_are_stored_as_tensorstore_writes_voxels_and_only_if_the_voxels_differ(url: str) -> None:
    """Also at the ends of the volume, and where nothing but background is left."""
    with Fork(url, GRAPH).store().transaction() as transaction:
        Fork(url, GRAPH).store().array(0).with_transaction(transaction)[5:101, -7:89, 3:67].write(np.uint64(0)).result()
    for mip in range(1, 4):
        spoil(url, mip)
    rebuild_all(url)
    store = Fork(url, GRAPH).store()
    scales = [f"{scale.key}/".encode() for scale in Base(url).info().volume.scales[1:]]

    def stored() -> dict[bytes, bytes]:
        keys = [key for key in store.kv.list().result() if key.startswith(tuple(scales))]
        return {key: bytes(store.kv.read(key).result().value) for key in keys}

    made, voxels = stored(), [store.array(mip).read().result() for mip in range(1, 4)]
    assert any((labels[:8, :8, :8] == 0).all() for labels in voxels)
    for mip, labels in enumerate(voxels, start=1):
        spoil(url, mip)
        with store.transaction() as transaction:
            store.array(mip).with_transaction(transaction).write(labels).result()
    assert stored() == made

    key = min(made)
    with store.transaction() as transaction:  # other bytes for the same voxels, as other software may write
        store.kv.with_transaction(transaction).write(key, made[key] + bytes(4)).result()
    rebuild_all(url)
    assert stored() == {**made, key: made[key] + bytes(4)}
    assert downsample(Fork(url, GRAPH)).complete
    assert_up_to_date(url)


def test_all_mips_in_one_transaction_are_made_from_the_new_chunks_below(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only some chunks are whole, so that some are written as bytes and others as voxels."""
    monkeypatch.setattr(mip_maker, "AT_ONCE_BYTES", 0)
    for mip in range(1, 4):
        spoil(url, mip)
    work = rebuild(Fork(url, GRAPH)).work
    assert work.commits == 1
    assert work.chunks_written == work.chunks_made > 0
    assert_up_to_date(url)
    assert rebuild(Fork(url, GRAPH)).work.chunks_written == 0
    bounds = Base(url).info().volume.bounds
    boxes = [Box.of(np.add(bounds.start, 7), np.add(bounds.start, (131, 100, 70))).clip(bounds)]
    edit(url, 1, boxes + random_boxes(bounds, np.random.default_rng(0), 5))
    assert downsample(Fork(url, GRAPH)).work.commits == 1
    assert_up_to_date(url)


def test_workers_at_once_do_not_disturb_each_other(url: str) -> None:
    """All of them take what they did out of the same key; nobody has to do a piece again for that."""
    spoil(url, 1)
    pyramid = open_pyramid(Fork(url, GRAPH))
    (whole,) = begin_rebuild(pyramid, 1)
    inside = Box.of((0, 0, 0), whole.shape)
    boxes = [box.shifted(whole.start) for box in boxes_within(inside, pyramid.geometry.levels[1].chunk_size, 32**3)]
    assert len(boxes) > 8
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda box: rebuild_mip(pyramid, 1, box), boxes))
    assert sum(report.left for report in reports) == 0
    assert sum(report.conflicts for report in reports) == 0
    assert unfinished(pyramid, 1) == []


def test_what_is_left_is_what_no_commit_has_made(url: str) -> None:
    spoil(url, 1)
    pyramid = open_pyramid(Fork(url, GRAPH))
    (whole,) = begin_rebuild(pyramid, 1)
    part = Box.of(whole.start, np.add(whole.start, (32, 32, 16)))
    rebuild_mip(pyramid, 1, part)
    assert sum(box.volume for box in unfinished(pyramid, 1)) == whole.volume - part.volume
    assert begin_rebuild(pyramid, 1) == unfinished(pyramid, 1), "it goes on where it was"


def test_a_mip_waits_for_the_one_below_and_there_are_no_others(url: str) -> None:
    pyramid = open_pyramid(Fork(url, GRAPH))
    begin_rebuild(pyramid, 1)
    with pytest.raises(NotReadyError, match="mip 2 cannot be rebuilt yet"):
        begin_rebuild(pyramid, 2)
    for absent in (0, 4):
        with pytest.raises(NotFoundError, match="mips 1 to 3"):
            begin_rebuild(pyramid, absent)


def test_edits_beside_a_rebuild_are_kept(url: str) -> None:
    spoil(url, 1)
    stop, number, rng = threading.Event(), 0, np.random.default_rng(2)
    bounds = Base(url).info().volume.bounds

    def edits() -> None:
        nonlocal number
        while not stop.is_set():
            number += 1
            edit(url, number, random_boxes(bounds, rng, 1), seed=number)
            time.sleep(0.02)

    editor = threading.Thread(target=edits)
    editor.start()
    try:
        rebuild_all(url)
    finally:
        stop.set()
        editor.join()
    rebuild_all(url)  # a piece that edits kept changing was left
    assert number > 3
    assert downsample(Fork(url, GRAPH)).complete
    assert Fork(url, GRAPH).pending() == []
    assert_up_to_date(url)


def test_killed_at_random_it_goes_on_where_it_was(url: str) -> None:
    for mip in range(1, 4):
        spoil(url, mip)
    random.seed(1)
    left = []
    for _ in range(6):
        started = SPAWN.Event()
        process = SPAWN.Process(target=rebuild_until_killed, args=(url, started))
        process.start()
        assert started.wait(60)
        time.sleep(random.uniform(0.02, 0.3))
        assert process.is_alive()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left += [mip for mip in range(1, 4) if unfinished(open_pyramid(Fork(url, GRAPH)), mip)]
    rebuild_all(url)
    assert left, "some were killed in the middle"
    assert downsample(Fork(url, GRAPH)).complete
    assert_up_to_date(url)
