"""Each fault planted in voxels, mips and bookkeeping is named by the one check that owns it, with its place."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline.errors import ConfigError
from sv_pipeline.segmentation.base import markers
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.interface import DeleteCells
from sv_pipeline_tests.verify.conftest import Planted

AssertNames = Callable[..., None]


def place_of(voxel: np.ndarray) -> str:
    return ",".join(str(int(v)) for v in voxel)


def big_supervoxel(planted: Planted) -> int:
    ids, counts = np.unique(planted.data.voxels[planted.data.voxels > 0], return_counts=True)
    return int(ids[np.argmax(counts)])


# -- voxels and leaves --------------------------------------------------------------------------------------------


def corner_of(planted: Planted, supervoxel: int) -> np.ndarray:
    """A voxel whose loss leaves the supervoxel in one piece: the first."""
    return planted.voxels_of(supervoxel)[0]


def test_a_voxel_with_a_retired_id_is_named(planted: Planted, assert_names: AssertNames) -> None:
    """A split replaced the supervoxel in the rows, but not in the voxels."""
    old = big_supervoxel(planted)
    new = int(planted.data.layout.chunks(np.uint64(old))) | 400
    replace_supervoxel(planted, old, [new])
    report = planted.verify(["ids", "hierarchy", "voxels"])
    assert_names(report, "voxels", f"voxel {place_of(planted.voxels_of(old)[0])} (id {old})", f"supervoxel {new}")
    assert any("was split" in finding.message for finding in report["voxels"].errors)


def replace_supervoxel(planted: Planted, old: int, new: list[int]) -> None:
    """The rows of a supervoxel split: fragments instead of the old one."""
    hierarchy, layout = planted.data.hierarchy, planted.data.layout
    parent = hierarchy.parents[old]
    chunk = int(layout.chunks(np.uint64(old)))
    time = planted.row(old)[columns.PARENT.key][0].timestamp
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(max(new) - chunk))
    planted.change(keys.node_key(old), columns.NEW_IDS.set(np.array(new, np.uint64)))
    for fragment in new:
        planted.change(
            keys.node_key(fragment),
            columns.FORMER_IDS.set(np.array([old], np.uint64)),
            columns.PARENT.set(parent, time),
        )
    children = [*(c for c in hierarchy.children[parent] if c != old), *new]
    planted.rewrite(parent, columns.CHILDREN, np.array(children, np.uint64))


def test_an_unknown_id_in_the_voxels_is_named(planted: Planted, assert_names: AssertNames) -> None:
    supervoxel = big_supervoxel(planted)
    voxel = corner_of(planted, supervoxel)
    planted.write_voxels(voxel, supervoxel + 1000)
    report = planted.verify(["voxels"])
    assert_names(report, "voxels", f"voxel {place_of(voxel)} (id {supervoxel + 1000})")


def test_an_id_of_another_chunk_is_named(planted: Planted, assert_names: AssertNames) -> None:
    supervoxel = big_supervoxel(planted)
    layout = planted.data.layout
    other = next(
        sv
        for sv in planted.data.hierarchy.parents
        if sv >> 56 == 1 and layout.chunks(np.uint64(sv)) != layout.chunks(np.uint64(supervoxel))
    )
    voxel = corner_of(planted, supervoxel)
    planted.write_voxels(voxel, other)
    report = planted.verify(["voxels"])
    assert_names(report, "voxels", f"voxel {place_of(voxel)} (id {other})")
    assert any("not of its chunk" in finding.message for finding in report["voxels"].errors)


def test_a_leaf_without_voxels_is_named(planted: Planted, assert_names: AssertNames) -> None:
    supervoxel = big_supervoxel(planted)
    planted.erase(planted.voxels_of(supervoxel))
    assert_names(planted.verify(["voxels"]), "voxels", f"supervoxel {supervoxel}")


def test_a_supervoxel_in_two_pieces_is_named(planted: Planted, assert_names: AssertNames) -> None:
    """Its middle section is gone."""
    supervoxel = big_supervoxel(planted)
    voxels = planted.voxels_of(supervoxel)
    low, high = voxels[:, 0].min(), voxels[:, 0].max()
    assert high - low >= 2
    planted.erase(voxels[voxels[:, 0] == (low + high) // 2])
    report = planted.verify(["voxels"])
    assert_names(report, "voxels", f"(id {supervoxel})")
    assert "pieces" in report["voxels"].errors[0].message


def test_pieces_that_touch_by_a_corner_are_one(planted: Planted) -> None:
    """26-connected, not 6-connected: two diagonal voxels are one piece."""
    supervoxel = big_supervoxel(planted)
    voxels = planted.voxels_of(supervoxel)
    there = {tuple(v) for v in voxels.tolist()}
    pair = next((v, tuple(np.add(v, 1))) for v in sorted(there) if tuple(np.add(v, 1)) in there)
    planted.erase(np.array(sorted(there - set(pair))))
    assert planted.verify(["voxels"]).ok


@pytest.mark.parametrize("workers", [1, 3])
def test_a_sample_looks_at_so_many_chunks_only(planted: Planted, workers: int) -> None:
    report = planted.verify(["voxels"], sample=5, workers=workers)
    assert report["voxels"].checked == 5
    assert report.ok


def test_progress_ends_with_all_steps_done(planted: Planted) -> None:
    seen: list[tuple[int, int]] = []
    planted.verify(progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


# -- base, fork, mips ---------------------------------------------------------------------------------------------


def test_a_base_that_differs_from_the_watershed_is_named(planted: Planted, assert_names: AssertNames) -> None:
    supervoxel = big_supervoxel(planted)
    voxel = corner_of(planted, supervoxel)
    open_volume(planted.data.watershed_url, writable=True)[tuple(voxel)].write(np.uint64(5)).result()
    assert_names(planted.verify(), "base", f"mip 0 voxel {place_of(voxel)}")


def test_a_missing_populate_marker_is_named(planted: Planted, assert_names: AssertNames) -> None:
    folder = kv.join_url(ocdbt.ocdbt_folder(planted.data.watershed_url), markers.POPULATED_FOLDER)
    kv.delete_key(folder, "tasks/1_0_2")
    assert_names(planted.verify(), "base", "task 1_0_2")


def test_a_populate_marker_that_cannot_be_read_is_named(planted: Planted, assert_names: AssertNames) -> None:
    folder = kv.join_url(ocdbt.ocdbt_folder(planted.data.watershed_url), markers.POPULATED_FOLDER)
    kv.write_bytes(folder, "tasks/1_0_2", b"{half")
    assert_names(planted.verify(), "base")


def test_pending_boxes_that_cannot_be_read_are_named(planted: Planted, assert_names: AssertNames) -> None:
    planted.own_key("pending/17", b"{}")
    report = planted.verify()
    assert_names(report, "pyramid")
    assert "pending/17" in report["pyramid"].errors[0].message


def test_a_populate_marker_outside_the_grid_is_named(planted: Planted, assert_names: AssertNames) -> None:
    markers.write_marker(planted.data.watershed_url, (77, 0, 0), {})
    assert_names(planted.verify(), "base", "task 77_0_0")


def test_a_leaked_part_is_a_warning(planted: Planted) -> None:
    parts = kv.join_url(ocdbt.base_folder(planted.data.watershed_url), "parts")
    kv.write_bytes(parts, "0_0_0/deadbeef/manifest.ocdbt", b"left over")
    report = planted.verify()
    assert report.ok, report.summary()
    assert [finding.place.endswith("deadbeef/manifest.ocdbt") for finding in report.findings] == [True]


def test_a_fork_whose_voxels_cannot_be_read_is_named_not_a_crash(planted: Planted) -> None:
    """The data of the base were removed under the fork."""
    folder = ocdbt.base_folder(planted.data.watershed_url)
    kv.delete_keys(folder, [key for key in kv.list_keys(folder) if "d/" in key])
    report = planted.verify()
    assert {"voxels", "base", "fork", "pair"} <= set(report.failed), report.summary()
    assert {"voxels", "base", "fork", "pair", "pyramid"} == {
        result.name for result in report.results if not result.passed
    }


def test_a_stale_voxel_of_a_mip_is_named(planted: Planted, assert_names: AssertNames) -> None:
    voxel = np.array(planted.data.grid.bounds.start) // (2, 2, 1) + (9, 7, 11)
    planted.write_voxels(voxel, 12345, mip=1)
    assert_names(planted.verify(), "pyramid", f"mip 1 voxel {place_of(voxel)} (is 12345")


def test_a_stale_voxel_in_a_pending_box_is_no_fault(planted: Planted) -> None:
    start = np.array(planted.data.grid.bounds.start)
    voxel = start // (2, 2, 1) + (9, 7, 11)
    planted.write_voxels(voxel, 12345, mip=1)
    finest = start + np.array([9, 7, 11]) * (2, 2, 1)
    box = [finest.tolist(), (finest + 1).tolist()]
    planted.own_key("pending/17", json.dumps({"boxes": [box]}).encode())
    assert planted.verify(["pyramid"]).ok


# -- bookkeeping --------------------------------------------------------------------------------------------------


def test_a_removed_done_marker_is_named(planted: Planted, assert_names: AssertNames) -> None:
    chunk = int(planted.data.layout.chunk_ids(3, [1, 0, 1]))
    planted.change(keys.ingest_key(3, chunk), DeleteCells())
    assert_names(planted.verify(), "progress", "layer 3 chunk 1,0,1")


def test_a_reservation_without_marker_is_named(planted: Planted, assert_names: AssertNames) -> None:
    chunk = int(planted.data.layout.chunk_ids(2, [1, 0, 1]))
    planted.change(keys.ingest_key(2, chunk), DeleteCells(columns.INGEST_DONE.key))
    report = planted.verify()
    assert_names(report, "progress", "layer 2 chunk 1,0,1")
    assert "interrupted" in report["progress"].errors[0].message


def test_an_ingest_row_outside_the_grid_is_named(planted: Planted, assert_names: AssertNames) -> None:
    chunk = int(planted.data.layout.chunk_ids(2, [99, 0, 0]))
    planted.change(keys.ingest_key(2, chunk), columns.INGEST_DONE.set({}))
    assert_names(planted.verify(), "progress", "layer 2 chunk 99,0,0")


def test_a_table_of_other_software_has_no_progress_to_check(planted: Planted) -> None:
    for key, _ in list(planted.table.scan([keys.ingest_range()])):
        planted.change(key, DeleteCells())
    report = planted.verify()
    assert report.ok, report.summary()
    assert report["progress"].skipped


@pytest.mark.parametrize("status", [0, 2, None])
def test_an_indefinite_lock_left_behind_is_named(
    planted: Planted, assert_names: AssertNames, status: int | None
) -> None:
    root = planted.nodes(planted.data.layout.n_layers)[0]
    planted.change(keys.OPERATION_COUNTER, columns.COUNTER.set(17))
    if status is not None:
        planted.change(
            keys.node_key(17),
            columns.OPERATION_STATUS.set(status),
            columns.ROOTS.set(np.array([root], np.uint64)),
        )
    planted.change(keys.node_key(root), columns.INDEFINITE_LOCK.set(17))
    assert_names(planted.verify(), "operations", f"row {root:020d}")


def test_a_lock_of_a_running_operation_is_no_fault(planted: Planted) -> None:
    root = planted.nodes(planted.data.layout.n_layers)[0]
    planted.change(keys.OPERATION_COUNTER, columns.COUNTER.set(17))
    planted.change(keys.node_key(17), columns.OPERATION_STATUS.set(3))
    planted.change(keys.node_key(root), columns.INDEFINITE_LOCK.set(17), columns.LOCK.set(17))
    report = planted.verify()
    assert report.ok, report.summary()
    assert not report.findings


def test_a_lock_of_a_hashed_row_is_seen(planted: Planted, assert_names: AssertNames) -> None:
    planted.change(b"\x9a\x01" + bytes(7) + b"\x05", columns.INDEFINITE_LOCK.set(3))
    assert_names(planted.verify(), "operations", "row b'\\x9a")


def test_a_successful_operation_without_roots_is_named(planted: Planted, assert_names: AssertNames) -> None:
    planted.change(keys.OPERATION_COUNTER, columns.COUNTER.set(17))
    planted.change(keys.node_key(17), columns.OPERATION_STATUS.set(0))
    assert_names(planted.verify(), "operations", "operation 17")


def test_an_operation_row_that_asks_for_code_is_named_not_run(planted: Planted, assert_names: AssertNames) -> None:
    planted.change(keys.OPERATION_COUNTER, columns.COUNTER.set(17))
    cell = columns.OPERATION_STATUS.set(0)
    planted.change(keys.node_key(17), type(cell)(cell.column, pickle.dumps(print)))
    assert_names(planted.verify(), "operations", "operation 17")


def test_another_major_version_is_named(planted: Planted, assert_names: AssertNames) -> None:
    meta.write_version(planted.table, "2.9.1")
    assert_names(planted.verify(), "meta", "version")


def test_a_table_without_meta_is_one_finding(planted: Planted, assert_names: AssertNames) -> None:
    planted.change(keys.META, DeleteCells())
    report = planted.verify()
    assert_names(report, "meta")
    assert sum(len(result.errors) for result in report.results) == 1


def test_an_unknown_check_is_refused_with_the_names(planted: Planted) -> None:
    with pytest.raises(ConfigError, match="cross_edges"):
        planted.verify(["crossedges"])
