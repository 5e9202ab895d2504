"""What operations leave in a fork: put back, found again, and the generations that they made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.errors import ConflictError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.commit import commit_edit, restore_operation
from sv_pipeline.segmentation.fork.pending import pending_boxes
from sv_pipeline.segmentation.fork.reader import current_generation, open_fork, open_fork_store
from sv_pipeline.segmentation.fork.records import (
    generation_at,
    generation_of,
    operations,
    pending_key,
    read_operation,
    set_fence,
    take_fence,
)
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline_tests.segmentation.commits import edit, expected, forked, storage_boxes, voxels
from sv_pipeline_tests.segmentation.volumes import Watershed


@pytest.fixture
def watershed(storage_url: str) -> Watershed:
    return forked(storage_url)


# -- putting back -----------------------------------------------------------------------------------------------------


def test_an_operation_is_put_back_bit_for_bit_and_what_others_did_stays(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)
    hole = VoxelBlock(boxes[5], np.zeros((16, 16, 8), np.uint64))
    emptied = edit(watershed, 1, [], blocks=[hole])
    commit_edit(watershed.url, "g", emptied)
    one, other = edit(watershed, 2, boxes[4:7]), edit(watershed, 3, boxes[10:12])
    commit_edit(watershed.url, "g", one)
    commit_edit(watershed.url, "g", other)
    take_fence(watershed.url, "g", 2, "recovery")
    before = current_generation(watershed.url, "g")
    keys_before = set(keys_of(watershed, one.generation_before))
    assert restore_operation(watershed.url, "g", 2, owner="recovery")
    assert current_generation(watershed.url, "g") == before + 1
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, emptied, other))
    # The emptied chunk has no key, as before.
    assert set(keys_of(watershed, before + 1)) == keys_before
    assert read_operation(watershed.url, "g", 2) is None
    assert not restore_operation(watershed.url, "g", 2, owner="recovery")
    replayed = edit(watershed, 2, boxes[4:6], owner="recovery")
    assert commit_edit(watershed.url, "g", replayed).generation == before + 2


def test_a_replay_elsewhere_leaves_what_was_put_back_listed(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)
    commit_edit(watershed.url, "g", edit(watershed, 2, boxes[4:6]))
    take_fence(watershed.url, "g", 2, "recovery")
    # Coarser mips have been made meanwhile: they show what is about to be put back.
    store = open_fork_store(watershed.url, "g")
    store.kv.write(pending_key(2), None).result()
    assert restore_operation(watershed.url, "g", 2, owner="recovery")
    commit_edit(watershed.url, "g", edit(watershed, 2, boxes[10:12], owner="recovery"))
    (entry,) = pending_boxes(watershed.url, "g")
    behind = np.zeros(voxels(watershed).shape, bool)
    origin = np.asarray(open_fork(watershed.url, "g").domain.inclusive_min)
    for box in entry.boxes:
        behind[box.shifted(-origin).slices] = True
    assert all(behind[box.shifted(-origin).slices].all() for box in [*boxes[4:6], *boxes[10:12]])


def keys_of(watershed: Watershed, generation: int) -> list[bytes]:
    spec = {**open_fork_store(watershed.url, "g").spec, "version": generation}
    store = ocdbt.OcdbtStore(spec).kv
    return store.list(ts.KvStore.KeyRange("8_8_40/", "8_8_400")).result()  # type: ignore[no-any-return]


def test_only_who_holds_the_fence_can_put_back(watershed: Watershed) -> None:
    one = edit(watershed, 2, storage_boxes(watershed)[:2])
    commit_edit(watershed.url, "g", one)
    with pytest.raises(ConflictError, match="take_fence"):
        restore_operation(watershed.url, "g", 2, owner="recovery")
    take_fence(watershed.url, "g", 2, "another")
    with pytest.raises(ConflictError, match="another"):
        restore_operation(watershed.url, "g", 2, owner="recovery")
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one))


def test_an_operation_without_record_is_put_back_by_its_boxes_and_generation(watershed: Watershed) -> None:
    box = storage_boxes(watershed)[2]
    before = current_generation(watershed.url, "g")
    open_fork(watershed.url, "g")[box.slices].write(np.uint64(5)).result()
    take_fence(watershed.url, "g", 4, "recovery")
    assert restore_operation(watershed.url, "g", 4, owner="recovery", boxes=[box], generation=before)
    np.testing.assert_array_equal(voxels(watershed), watershed.labels)
    with pytest.raises(NotFoundError, match="no generation 999"):
        restore_operation(watershed.url, "g", 4, owner="recovery", boxes=[box], generation=999)


# -- time travel ------------------------------------------------------------------------------------------------------


def test_logical_times_map_to_generations(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)
    start = current_generation(watershed.url, "g")
    # 30 before 20, in other chunks; something else in between.
    edits = {10: edit(watershed, 1, boxes[:1], logical_time=10)}
    commit_edit(watershed.url, "g", edits[10])
    edits[30] = edit(watershed, 2, boxes[1:2], logical_time=30)
    edits[20] = edit(watershed, 3, boxes[2:3], logical_time=20)
    commit_edit(watershed.url, "g", edits[30])
    set_fence(watershed.url, "g", 9, "x")
    commit_edit(watershed.url, "g", edits[20])
    assert [generation_of(watershed.url, "g", n) for n in (1, 2, 3)] == [start + 1, start + 2, start + 4]
    assert [r.operation_id for r in operations(watershed.url, "g")] == [1, 2, 3]

    def at(when: int, within: Box | None = None) -> int:
        return generation_at(watershed.url, "g", when, within=within)

    assert [at(9), at(10), at(29), at(30), at(99)] == [start, start + 1, start + 1, start + 4, start + 4]
    assert [at(19, boxes[2]), at(20, boxes[2]), at(30, boxes[2])] == [start + 3, start + 4, start + 4]
    assert at(0, boxes[7]) == start + 4
    for when, shown in ((9, []), (10, [10])):
        labels = voxels(watershed, version=at(when))
        np.testing.assert_array_equal(labels, expected(watershed, *[edits[t] for t in shown]))
    with pytest.raises(NotFoundError, match="has not changed voxels"):
        generation_of(watershed.url, "g", 55)


def test_the_generation_of_an_operation_is_found_far_from_where_it_was_planned(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path))
    box = storage_boxes(watershed)[0]
    planned_on = current_generation(tmp_path, "g")
    for number in range(40):
        take_fence(tmp_path, "g", 1000, str(number))
    result = commit_edit(tmp_path, "g", edit(watershed, 1, [box], generation_before=planned_on))
    for number in range(25):
        take_fence(tmp_path, "g", 1000, str(number))
    assert generation_of(tmp_path, "g", 1) == result.generation == planned_on + 41
    assert kv.list_keys(ocdbt.fork_folder(tmp_path, "g"), "manifest")
