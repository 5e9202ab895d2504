"""Pruning and collecting the files of a fork: nothing that is kept is lost, and nothing else is left."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import ConfigError, DamagedError, NotFoundError
from sv_pipeline.retention import Bound, Retention
from sv_pipeline.segmentation.fork.commit import restore_operation
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.garbage import UNUSED, Needs, Usage, collect, prune, usage
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.history import read_history
from sv_pipeline.storage.reachable import reachable
from sv_pipeline.storage.timed_files import list_files, storage_time
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.segmentation.commits import edit, expected, forked, storage_boxes, voxels
from sv_pipeline_tests.segmentation.fork.test_fork import at_point, paint
from sv_pipeline_tests.segmentation.volumes import BASES, make_watershed

NONE, DAY = timedelta(0), timedelta(days=1)


def nothing() -> Needs:
    return Needs()


def last(generations: int) -> Retention:
    return Retention(generations=generations)


def of(fork: Fork, policy: Retention, needs: Needs | None = None) -> Usage:
    return usage(fork, policy, lambda: needs or Needs(), grace=NONE)


def own_files(fork: Fork) -> set[str]:
    return set(kv.list_keys(fork.folder, ocdbt.data_prefix(fork.graph_id)))


def test_after_a_collection_only_what_the_policy_keeps_is_stored(storage_url: str) -> None:
    watershed = make_watershed(storage_url, mips=2, version_tree_arity_log2=2)
    watershed.populate()
    base_files = kv.list_keys(ocdbt.base_folder(watershed.url))
    fork, other = Fork(watershed.url, "g"), Fork(watershed.url, "g2")
    for one in (fork, other):
        one.create()
        for value in range(100, 120):
            paint(watershed.url, one.graph_id, value)
    orphan = ocdbt.data_prefix("g") + "of-a-killed-writer"
    kv.write_bytes(fork.folder, orphan, b"unused")
    latest = fork.generation()
    before = of(fork, last(5))
    assert (before.orphan_files, before.orphan_bytes) == (1, len(b"unused"))
    assert before.latest_bytes < before.policy_bytes < before.reachable_bytes <= before.stored_bytes
    assert before.horizon.generation == latest - 4
    assert own_files(fork) == own_files(fork), "a report removes nothing"

    assert prune(fork, last(5), nothing, grace=NONE).removed == before.generations - 5
    assert prune(fork, last(5), nothing, grace=NONE).removed == 0
    done = collect(fork, last(5), nothing, grace=NONE)
    after = of(fork, last(5))
    assert before.stored_bytes - done.bytes == pytest.approx(after.stored_bytes, abs=2000), "plus the new nodes"
    assert after.orphan_files == 0
    assert own_files(fork) == {
        file for file in reachable(fork.store().base, all_versions=True).files if file.startswith("g_d/")
    }
    for back in range(5):
        assert at_point(watershed.url, "g", latest - back) == 119 - back
    with pytest.raises(NotFoundError, match=rf"its history begins with generation {latest - 4}, of 20\d\d-"):
        at_point(watershed.url, "g", latest - 5)
    with pytest.raises(NotFoundError, match=rf"latest generation is {latest}"):
        at_point(watershed.url, "g", latest + 1)
    paint(watershed.url, "g", 7)
    assert at_point(watershed.url, "g") == 7
    assert at_point(watershed.url, "g2", latest - 19) == 100, "another fork keeps its history"
    assert kv.list_keys(ocdbt.base_folder(watershed.url)) == base_files


steps = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.sets(st.integers(0, 11), min_size=1, max_size=3)),
        st.tuples(st.just("undo"), st.integers(0, 5)),
        st.tuples(st.just("prune"), st.integers(1, 6)),
        st.tuples(st.just("collect"), st.none()),
    ),
    min_size=4,
    max_size=14,
)


@examples(12)
@given(steps=steps, arity=st.integers(1, 3))
def test_random_histories_keep_what_they_can_read_and_store_nothing_else(steps: list[tuple], arity: int) -> None:  # type: ignore[type-arg]
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        watershed = forked(folder, size=(32, 32, 16), voxel_offset=(0, 0, 0), version_tree_arity_log2=arity)
        fork, boxes = Fork(watershed.url, "g"), storage_boxes(watershed)
        volume, number, done = fork.base_info().volume, 0, []
        seen = {fork.generation(): voxels(watershed)}
        first = fork.generation()
        for what, value in steps:
            if what == "edit":
                number += 1
                fork.commit(edit(watershed, number, [boxes[i % len(boxes)] for i in sorted(value)]))
                done.append(number)
            elif what == "undo" and done:
                undone = done.pop(value % len(done))
                fork.take_fence(undone, "undoer")
                seen[fork.generation()] = voxels(watershed)
                try:
                    restore_operation(fork.store(), volume, undone, "undoer")
                except NotFoundError as error:
                    assert "history begins" in str(error)  # noqa: PT017 - it may reach back or not
                    continue
            elif what == "prune":
                prune(fork, last(value), nothing, grace=NONE)
            else:
                collect(fork, last(1), nothing, grace=NONE)
                assert own_files(fork) == {
                    f for f in reachable(fork.store().base, all_versions=True).files if f.startswith("g_d/")
                }
            seen[fork.generation()] = voxels(watershed)
            kept = [one.number for one in read_history(fork.store().base)]
            assert kept == list(range(kept[0], fork.generation() + 1))
            for generation in kept:
                if generation >= first:
                    np.testing.assert_array_equal(voxels(watershed, version=generation), seen[generation])


def test_what_work_in_progress_needs_stays(storage_url: str) -> None:
    watershed = forked(storage_url, version_tree_arity_log2=1)
    fork, boxes = Fork(watershed.url, "g"), storage_boxes(watershed)
    edits = [edit(watershed, 1, boxes[:2])]
    record = fork.commit(edits[0]).record
    for number in range(2, 8):
        edits.append(edit(watershed, number, boxes[number : number + 2]))
        fork.commit(edits[-1])
    pinned = Needs(bounds=(Bound("operation 1 is unfinished", generation=record.generation_before),))
    found = prune(fork, last(1), lambda: pinned, grace=NONE)
    assert found.horizon.held_by == ("operation 1 is unfinished",)
    began = storage_time(fork.folder, "g_d/")
    kv.write_bytes(fork.folder, "g_d/uploaded-for-a-commit", b"...")
    assert collect(fork, last(1), lambda: Needs(files_since=began), grace=NONE).files == 0
    fork.take_fence(1, "recovery")
    fork.restore(1, owner="recovery")
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, *edits[1:]))
    unclear = Needs(unclear=("operation 9 cannot be read",))
    assert prune(fork, last(1), lambda: unclear, grace=NONE).why_not == "operation 9 cannot be read"
    assert collect(fork, last(1), lambda: unclear, grace=NONE).why_not == "operation 9 cannot be read"
    assert prune(fork, last(1), nothing, grace=DAY).removed == 0, "all of it is younger than the grace period"
    assert collect(fork, last(1), nothing, grace=DAY).files == 0
    assert prune(fork, Retention(), nothing, grace=NONE).removed == 0, "forever"
    assert prune(fork, last(1), nothing, grace=NONE).removed > 0
    assert collect(fork, last(1), nothing, grace=NONE).files > 0
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, *edits[1:]))


def test_a_file_is_deleted_once_it_is_known_to_be_unused_for_the_grace_period(storage_url: str) -> None:
    watershed = forked(storage_url)
    fork, boxes = Fork(watershed.url, "g"), storage_boxes(watershed)
    for number in range(1, 4):
        fork.commit(edit(watershed, number, boxes[:1]))
    grace = timedelta(seconds=1)
    time.sleep(1.1)  # all files are old, but were in use until now
    assert prune(fork, last(1), nothing, grace=grace).removed > 0
    first = collect(fork, last(1), nothing, grace=grace)
    assert (first.files, first.waiting) == (0, 2)
    assert of(fork, last(1)).orphan_files == 2
    time.sleep(1.1)
    assert usage(fork, last(1), nothing, grace=grace).collectable_bytes > 0
    assert collect(fork, last(1), nothing, grace=grace).files == 2
    kv.write_bytes(fork.folder, UNUSED, b"[]")
    with pytest.raises(DamagedError, match=r"unused\.json is damaged"):
        collect(fork, last(1), nothing, grace=grace)


def test_views_before_the_horizon_are_refused_with_its_time(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path))
    fork, boxes = Fork(watershed.url, "g"), storage_boxes(watershed)
    for number in range(1, 9):
        fork.commit(edit(watershed, number, boxes[number : number + 1]))
    generations = {number: fork.generation_of(number) for number in range(1, 9)}
    prune(fork, last(4), nothing, grace=NONE)
    kept = {one.number for one in read_history(fork.store().base)}
    for number, generation in generations.items():
        if generation - 1 in kept:
            assert fork.generation_of(number) == generation
            assert fork.generation_at(1000 * number - 1) == generation - 1
        elif generation not in kept:
            with pytest.raises(NotFoundError, match="history begins with generation"):
                fork.generation_of(number)
            with pytest.raises(NotFoundError, match="history begins with generation"):
                fork.open(version=fork.generation_at(1000 * number - 1))
    assert fork.generation_at(10_000_000) == fork.generation()


def test_two_at_once_beside_commits(storage_url: str) -> None:
    watershed = make_watershed(storage_url, mips=2, version_tree_arity_log2=1)
    watershed.populate()
    fork = Fork(watershed.url, "g")
    fork.create()
    stop = time.monotonic() + 4

    def commits() -> int:
        made = 0
        while time.monotonic() < stop:
            made += 1
            paint(watershed.url, "g", made)
        return made

    def clean() -> int:
        removed = 0
        while time.monotonic() < stop:
            removed += prune(fork, last(3), nothing, grace=timedelta(seconds=1)).removed
            removed += collect(fork, last(3), nothing, grace=timedelta(seconds=1)).files
        return removed

    with ThreadPoolExecutor(3) as pool:
        cleaning = [pool.submit(clean) for _ in range(2)]
        made = pool.submit(commits).result()
        assert all(one.result() >= 0 for one in cleaning)
    assert sum(one.result() for one in cleaning) > 0
    assert at_point(watershed.url, "g") == made
    latest = fork.generation()
    for back in range(3):
        assert at_point(watershed.url, "g", latest - back) == made - back
    prune(fork, last(1), nothing, grace=NONE)
    collect(fork, last(1), nothing, grace=NONE)
    assert of(fork, last(1)).orphan_files == 0


def test_a_fork_with_numbered_manifests_keeps_its_history(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), mips=2, **BASES["numbered"])
    watershed.populate()
    fork = Fork(watershed.url, "g")
    fork.create()
    for value in range(5):
        paint(watershed.url, "g", value)
    kv.write_bytes(fork.folder, "g_d/orphan", b"x")
    assert "numbered" in prune(fork, last(1), nothing, grace=NONE).why_not
    assert collect(fork, last(1), nothing, grace=NONE).files == 1
    assert at_point(watershed.url, "g", fork.generation() - 3) == 1


def test_stores_that_are_not_cleaned_are_refused(tmp_path: Path) -> None:
    watershed = make_watershed(str(tmp_path), mips=2)
    watershed.populate()
    with pytest.raises(NotFoundError, match="has no fork"):
        of(Fork(watershed.url, "nobody"), last(1))
    with pytest.raises(ConfigError, match="age of files"):
        list_files("memory://somewhere/")
