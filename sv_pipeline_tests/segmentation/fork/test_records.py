"""What operations leave in a fork: put back, found again, and the generations that they made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.errors import ConflictError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import (
    pending_key,
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
    Fork(watershed.url, "g").commit(emptied)
    one, other = edit(watershed, 2, boxes[4:7]), edit(watershed, 3, boxes[10:12])
    Fork(watershed.url, "g").commit(one)
    Fork(watershed.url, "g").commit(other)
    Fork(watershed.url, "g").take_fence(2, "recovery")
    before = Fork(watershed.url, "g").generation()
    keys_before = set(keys_of(watershed, one.generation_before))
    assert Fork(watershed.url, "g").restore(2, owner="recovery")
    assert Fork(watershed.url, "g").generation() == before + 1
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, emptied, other))
    # The emptied chunk has no key, as before.
    assert set(keys_of(watershed, before + 1)) == keys_before
    assert Fork(watershed.url, "g").record(2) is None
    assert not Fork(watershed.url, "g").restore(2, owner="recovery")
    replayed = edit(watershed, 2, boxes[4:6], owner="recovery")
    assert Fork(watershed.url, "g").commit(replayed).generation == before + 2


def test_a_replay_elsewhere_leaves_what_was_put_back_listed(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)
    Fork(watershed.url, "g").commit(edit(watershed, 2, boxes[4:6]))
    Fork(watershed.url, "g").take_fence(2, "recovery")
    # Coarser mips have been made meanwhile: they show what is about to be put back.
    store = Fork(watershed.url, "g").store()
    store.kv.write(pending_key(2), None).result()
    assert Fork(watershed.url, "g").restore(2, owner="recovery")
    Fork(watershed.url, "g").commit(edit(watershed, 2, boxes[10:12], owner="recovery"))
    (entry,) = Fork(watershed.url, "g").pending()
    behind = np.zeros(voxels(watershed).shape, bool)
    origin = np.asarray(Fork(watershed.url, "g").open().domain.inclusive_min)
    for box in entry.boxes:
        behind[box.shifted(-origin).slices] = True
    assert all(behind[box.shifted(-origin).slices].all() for box in [*boxes[4:6], *boxes[10:12]])


def keys_of(watershed: Watershed, generation: int) -> list[bytes]:
    spec = {**Fork(watershed.url, "g").store().spec, "version": generation}
    store = ocdbt.OcdbtStore(spec).kv
    return store.list(ts.KvStore.KeyRange("8_8_40/", "8_8_400")).result()  # type: ignore[no-any-return]


def test_only_who_holds_the_fence_can_put_back(watershed: Watershed) -> None:
    one = edit(watershed, 2, storage_boxes(watershed)[:2])
    Fork(watershed.url, "g").commit(one)
    with pytest.raises(ConflictError, match="take_fence"):
        Fork(watershed.url, "g").restore(2, owner="recovery")
    Fork(watershed.url, "g").take_fence(2, "another")
    with pytest.raises(ConflictError, match="another"):
        Fork(watershed.url, "g").restore(2, owner="recovery")
    np.testing.assert_array_equal(voxels(watershed), expected(watershed, one))


def test_an_operation_without_record_is_put_back_by_its_boxes_and_generation(watershed: Watershed) -> None:
    box = storage_boxes(watershed)[2]
    before = Fork(watershed.url, "g").generation()
    Fork(watershed.url, "g").open()[box.slices].write(np.uint64(5)).result()
    Fork(watershed.url, "g").take_fence(4, "recovery")
    assert Fork(watershed.url, "g").restore(4, owner="recovery", boxes=[box], generation=before)
    np.testing.assert_array_equal(voxels(watershed), watershed.labels)
    with pytest.raises(NotFoundError, match="no generation 999"):
        Fork(watershed.url, "g").restore(4, owner="recovery", boxes=[box], generation=999)


# -- time travel ------------------------------------------------------------------------------------------------------


def test_logical_times_map_to_generations(watershed: Watershed) -> None:
    boxes = storage_boxes(watershed)
    start = Fork(watershed.url, "g").generation()
    # 30 before 20, in other chunks; something else in between.
    edits = {10: edit(watershed, 1, boxes[:1], logical_time=10)}
    Fork(watershed.url, "g").commit(edits[10])
    edits[30] = edit(watershed, 2, boxes[1:2], logical_time=30)
    edits[20] = edit(watershed, 3, boxes[2:3], logical_time=20)
    Fork(watershed.url, "g").commit(edits[30])
    Fork(watershed.url, "g").take_fence(9, "x")
    Fork(watershed.url, "g").commit(edits[20])
    assert [Fork(watershed.url, "g").generation_of(n) for n in (1, 2, 3)] == [start + 1, start + 2, start + 4]
    assert [r.operation_id for r in Fork(watershed.url, "g").records()] == [1, 2, 3]

    def at(when: int, within: Box | None = None) -> int:
        return Fork(watershed.url, "g").generation_at(when, within=within)

    assert [at(9), at(10), at(29), at(30), at(99)] == [start, start + 1, start + 1, start + 4, start + 4]
    assert [at(19, boxes[2]), at(20, boxes[2]), at(30, boxes[2])] == [start + 3, start + 4, start + 4]
    assert at(0, boxes[7]) == start + 4
    for when, shown in ((9, []), (10, [10])):
        labels = voxels(watershed, version=at(when))
        np.testing.assert_array_equal(labels, expected(watershed, *[edits[t] for t in shown]))
    with pytest.raises(NotFoundError, match="has not changed voxels"):
        Fork(watershed.url, "g").generation_of(55)


def test_the_generation_of_an_operation_is_found_far_from_where_it_was_planned(tmp_path: Path) -> None:
    watershed = forked(str(tmp_path))
    box = storage_boxes(watershed)[0]
    planned_on = Fork(tmp_path, "g").generation()
    for number in range(40):
        Fork(tmp_path, "g").take_fence(1000, str(number))
    result = Fork(tmp_path, "g").commit(edit(watershed, 1, [box], generation_before=planned_on))
    for number in range(25):
        Fork(tmp_path, "g").take_fence(1000, str(number))
    assert Fork(tmp_path, "g").generation_of(1) == result.generation == planned_on + 41
    assert kv.list_keys(ocdbt.fork_folder(tmp_path, "g"), "manifest")
