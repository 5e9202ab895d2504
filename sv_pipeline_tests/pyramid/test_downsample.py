"""Coarser mips catch up with edits, exactly, whatever else goes on; what is behind is listed until then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline.errors import ConfigError, CorruptionError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.block_locks import lock_blocks, new_owner
from sv_pipeline.pyramid.downsample import downsample, rebuild
from sv_pipeline.pyramid.mip_maker import ForkPyramid, open_pyramid
from sv_pipeline.pyramid.parts import downsample_part, plan_entries
from sv_pipeline.pyramid.rebuild import rebuild_mip
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import OperationRecord, operation_key, pending_key, pending_value
from sv_pipeline.storage.precomputed import create_volume, read_info
from sv_pipeline.table.interface import RowKeyRange
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.verify.pyramid_checks import check_pyramid
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.volumes import fork_volume, watershed_volume
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.pyramid.pyramids import GRAPH, assert_up_to_date, edit, make_fork, random_boxes

BUDGET = 1 << 30
VOLUMES = {
    "odd size, offset, mixed factors": {},
    "chunks that do not nest": {"size": (53, 41, 29), "storage_chunk": (11, 16, 7), "mips": 4},
    "smaller than a chunk": {"size": (9, 7, 5), "storage_chunk": (64, 64, 64), "voxel_offset": (3, 1, -5), "mips": 3},
    "isotropic": {"size": (67, 33, 50), "resolution": (10, 10, 10), "voxel_offset": (0, 0, 1), "mips": 4},
}


@pytest.fixture
def table(tmp_path: Path) -> Iterator[SqliteTable]:
    made = SqliteTable("t", tmp_path / "tables")
    made.create()
    yield made
    made.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    made = str(tmp_path / "ws")
    make_fork(made)
    return made


@pytest.fixture(scope="module", params=VOLUMES)
def shared_volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Box]:
    folder = str(tmp_path_factory.mktemp("volume"))
    settings_of_it = dict(VOLUMES[request.param])
    if len(settings_of_it) and "chunk_size" not in settings_of_it:
        settings_of_it["chunk_size"] = (128, 128, 64)  # one populate task: storage chunks stay as they are
    return folder, make_fork(folder, **settings_of_it)


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), n=st.integers(1, 5), budget=st.sampled_from([1 << 20, 1 << 21, BUDGET]))
def test_random_boxes_are_downsampled_as_from_scratch(
    shared_volume: tuple[str, Box], seed: int, n: int, budget: int
) -> None:
    folder, bounds = shared_volume
    boxes = random_boxes(bounds, np.random.default_rng(seed), n)
    edit(folder, 1, boxes[: n // 2 + 1], seed)
    if boxes[n // 2 + 1 :]:
        edit(folder, 2, boxes[n // 2 + 1 :], seed + 1)
    report = downsample(Fork(folder, GRAPH), memory_budget=budget)
    assert report.complete
    assert_up_to_date(folder)


def test_an_edit_is_one_commit_that_writes_only_chunks_that_change(url: str, table: SqliteTable) -> None:
    box = Box((20, 0, 8), (23, 2, 9))
    edit(url, 7, [box])
    before = Fork(url, GRAPH).store(version=Fork(url, GRAPH).generation())
    report = downsample(Fork(url, GRAPH), table=table)
    assert report.work.commits == 1
    assert Fork(url, GRAPH).generation() == before_generation(before) + 1
    after = Fork(url, GRAPH).store()
    changed = [key for key in stored(after) | stored(before) if value(after, key) != value(before, key)]
    touched = [key for key in stored(after) if stamp(after, key) != stamp(before, key)]
    assert sorted(changed) == sorted(touched)
    assert report.work.chunks_written == len(changed) <= Base(url).info().n_mips - 1
    assert_up_to_date(url)


def before_generation(store: object) -> int:
    return int(store.spec["version"])  # type: ignore[attr-defined]


def stored(store: object) -> set[str]:
    return {key.decode() for key in store.kv.list().result() if not key.startswith(b"_sv_pipeline/")}  # type: ignore[attr-defined]


def value(store: object, key: str) -> bytes:
    return bytes(store.kv.read(key).result().value)  # type: ignore[attr-defined]


def stamp(store: object, key: str) -> bytes:
    return bytes(store.kv.read(key).result().stamp.generation)  # type: ignore[attr-defined]


def test_an_edit_that_no_coarser_mip_shows_writes_no_chunk(url: str) -> None:
    edit(url, 1, [Box((20, 0, 8), (40, 20, 20))], value=3)
    downsample(Fork(url, GRAPH))
    edit(url, 2, [Box((25, 5, 10), (26, 6, 11))], value=9)
    report = downsample(Fork(url, GRAPH))
    assert report.work.chunks_made > 0
    assert report.work.chunks_written == 0
    assert_up_to_date(url)


def test_background_that_an_edit_makes_removes_chunks(url: str) -> None:
    bounds = Base(url).info().volume.bounds
    edit(url, 1, [bounds], value=0)
    downsample(Fork(url, GRAPH))
    assert_up_to_date(url)
    assert stored(Fork(url, GRAPH).store()) == {"info"}


def test_a_block_that_is_more_than_the_budget_is_done_in_parts(tmp_path: Path) -> None:
    url = str(tmp_path / "large")
    bounds = make_fork(url, size=(190, 150, 70), chunk_size=(256, 256, 128), storage_chunk=(32, 32, 32), mips=5)
    edit(url, 1, [bounds], seed=4)
    pyramid = open_pyramid(Fork(url, GRAPH))
    (block,) = plan_entries(pyramid, Fork(url, GRAPH).pending(), 1 << 20)
    assert pyramid.geometry.bytes_by_mip(block.affected) > 1 << 20
    report = downsample(Fork(url, GRAPH), memory_budget=1 << 20)
    assert report.work.commits > 1
    assert_up_to_date(url)


def test_killed_between_two_parts_the_rest_stays_listed(tmp_path: Path) -> None:
    url = str(tmp_path / "large")
    bounds = make_fork(url, size=(190, 150, 70), chunk_size=(256, 256, 128), storage_chunk=(32, 32, 32), mips=5)
    edit(url, 1, [bounds], seed=4)
    pyramid = open_pyramid(Fork(url, GRAPH))
    entries = Fork(url, GRAPH).pending()
    half = Box((0, 0, 0), (64, 64, 32))
    downsample_part(pyramid, half, [entries[0].key], 1 << 20)
    (entry,) = Fork(url, GRAPH).pending()
    assert sum(box.volume for box in entry.boxes) == bounds.volume - half.volume
    assert_no_silent_fault(url)
    downsample(Fork(url, GRAPH), memory_budget=1 << 21)
    assert_up_to_date(url)


def assert_no_silent_fault(url: str) -> None:
    """What is wrong in coarser mips is listed as pending: the check of the pyramid has nothing to say."""
    outcome = Outcome("pyramid")
    volume = fork_volume(Fork(url, GRAPH))
    assert volume is not None
    check_pyramid(outcome, volume, watershed_volume(url))
    assert not outcome.has_errors, outcome.findings


@pytest.mark.parametrize("same_bytes", [False, True])
def test_an_edit_that_lands_meanwhile_is_not_overwritten(url: str, same_bytes: bool) -> None:
    """Before the commit another operation (or the same one again) changes the voxels that the mips were made of."""
    box = Box((20, 0, 8), (30, 10, 12))
    edit(url, 1, [box], value=5)
    pyramid, landed = open_pyramid(Fork(url, GRAPH)), []

    def lands() -> None:
        if not landed:
            landed.append(True)
            edit(url, 1 if same_bytes else 2, [box], value=6)

    whole = Box((0, 0, 0), pyramid.geometry.levels[0].size)
    report = downsample_part(pyramid, whole, [pending_key(1)], BUDGET, lands)
    assert report.conflicts == 1
    assert report.commits == 1
    assert_up_to_date(url, pending=[] if same_bytes else [2])
    assert int(Fork(url, GRAPH).store().array(1)[12, 0, 10].read().result()) == 6


def test_what_is_being_changed_all_the_time_is_left_for_later(url: str) -> None:
    box = Box((20, 0, 8), (30, 10, 12))
    edit(url, 1, [box], value=5)
    pyramid, number = open_pyramid(Fork(url, GRAPH)), iter(range(100, 200))
    whole = Box((0, 0, 0), pyramid.geometry.levels[0].size)
    report = downsample_part(pyramid, whole, [pending_key(1)], BUDGET, lambda: edit(url, 2, [box], value=next(number)))
    assert (report.left, report.commits) == (1, 0)
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == [1, 2]
    assert_no_silent_fault(url)
    downsample(Fork(url, GRAPH))
    assert_up_to_date(url)


def test_a_chunk_that_appears_where_there_was_none_is_noticed(url: str) -> None:
    box = Box((21, -7, 11), (37, 9, 19))
    edit(url, 1, [box], value=0)
    pyramid, landed = open_pyramid(Fork(url, GRAPH)), []

    def lands() -> None:
        if not landed:
            landed.append(True)
            edit(url, 2, [box], value=6)

    whole = Box((0, 0, 0), pyramid.geometry.levels[0].size)
    assert downsample_part(pyramid, whole, [pending_key(1)], BUDGET, lands).conflicts == 1
    assert_up_to_date(url, pending=[2])


def test_jobs_at_once_share_the_work(url: str, table: SqliteTable) -> None:
    rng = np.random.default_rng(0)
    bounds = Base(url).info().volume.bounds
    boxes = {operation_id: random_boxes(bounds, rng, 3) for operation_id in range(1, 13)}
    for operation_id in boxes:
        edit(url, operation_id, boxes[operation_id], seed=operation_id)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: downsample(Fork(url, GRAPH), table=table, memory_budget=1 << 20), range(3)))
    assert all(report.complete for report in reports)
    volume = sum(box.volume for some in boxes.values() for box in some)
    assert sum(report.work.voxels for report in reports) == volume, "nothing was done twice"
    assert_up_to_date(url)
    assert not list(table.scan([every_row()]))


def test_jobs_at_once_on_one_large_entry_do_not_disturb_each_other(tmp_path: Path, table: SqliteTable) -> None:
    """Each takes its own parts out of the same entry; nobody has to make a part again for that."""
    url = str(tmp_path / "large")
    bounds = make_fork(url, size=(190, 150, 70), chunk_size=(256, 256, 128), storage_chunk=(16, 16, 16), mips=2)
    edit(url, 1, [bounds], seed=4)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: downsample(Fork(url, GRAPH), table=table, memory_budget=1 << 20), range(3)))
    assert reports[0].blocks > 3
    assert all(report.complete for report in reports)
    assert sum(report.work.conflicts for report in reports) == 0
    assert sum(report.work.voxels for report in reports) == bounds.volume, "nothing was done twice"
    assert_up_to_date(url)


def every_row() -> RowKeyRange:
    return RowKeyRange(b"\x00", b"\xff" * 30)


def test_a_block_that_another_job_holds_is_left_to_it(url: str, table: SqliteTable) -> None:
    edit(url, 1, [Box((20, 0, 8), (30, 10, 12))])
    (block,) = plan_entries(open_pyramid(Fork(url, GRAPH)), Fork(url, GRAPH).pending(), BUDGET)
    other = lock_blocks(table, block.cells, new_owner(), timedelta(minutes=1))
    assert other is not None
    report = downsample(Fork(url, GRAPH), table=table, patience=0.2)
    assert (report.locked, report.complete) == (1, False)
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == [1]
    threading.Timer(0.3, other.release).start()
    assert downsample(Fork(url, GRAPH), table=table, patience=30).complete
    assert_up_to_date(url)


def test_locks_of_a_dead_job_expire(url: str, table: SqliteTable) -> None:
    edit(url, 1, [Box((20, 0, 8), (30, 10, 12))])
    (block,) = plan_entries(open_pyramid(Fork(url, GRAPH)), Fork(url, GRAPH).pending(), BUDGET)
    assert lock_blocks(table, block.cells, new_owner(), timedelta(minutes=1)) is not None
    assert downsample(Fork(url, GRAPH), table=table, lock_expiry=timedelta(seconds=0.5)).complete
    assert_up_to_date(url)


def test_only_the_operations_asked_for_are_done(url: str) -> None:
    edit(url, 1, [Box((20, 0, 8), (30, 10, 12))])
    edit(url, 2, [Box((60, 0, 8), (65, 10, 12))])
    assert downsample(Fork(url, GRAPH), [2]).operations == (2,)
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == [1]
    assert_no_silent_fault(url)
    assert downsample(Fork(url, GRAPH), [99]).operations == ()


def test_the_lag_says_how_much_and_since_when(url: str) -> None:
    assert str(Fork(url, GRAPH).lag()) == "up to date"
    edit(url, 3, [Box((20, 0, 8), (30, 10, 12)), Box((5, 0, 8), (6, 1, 9))])
    assert (Fork(url, GRAPH).lag().entries, Fork(url, GRAPH).lag().boxes, Fork(url, GRAPH).lag().oldest_seconds) == (
        1,
        2,
        None,
    )
    record = OperationRecord(3, (Box((20, 0, 8), (30, 10, 12)),), (0,), 1, 1_000_000, "me")
    store = Fork(url, GRAPH).store()
    with store.transaction() as transaction:
        store.kv.with_transaction(transaction).write(operation_key(3), record.encode()).result()
    assert Fork(url, GRAPH).pending()[0].since == 1_000_000
    assert "behind, the oldest" in str(Fork(url, GRAPH).lag())


def test_entries_without_a_voxel_in_the_volume_are_dropped(url: str) -> None:
    bounds = Base(url).info().volume.bounds
    write_entry(url, pending_key(1), pending_value([bounds.shifted((10_000, 0, 0))]))
    write_entry(url, pending_key(2), pending_value([]))
    write_entry(url, pending_key(3), pending_value([bounds.grow(10)]))
    assert downsample(Fork(url, GRAPH)).complete
    assert_up_to_date(url)


def write_entry(url: str, key: str, content: bytes) -> None:
    store = Fork(url, GRAPH).store()
    with store.transaction() as transaction:
        store.kv.with_transaction(transaction).write(key, content).result()


@pytest.mark.parametrize("content", [b"no json", b"{}", b'{"boxes": [[1, 2]]}', b'{"boxes": 3}', b'{"boxes": [["a"]]}'])
def test_an_entry_that_cannot_be_read_is_named(url: str, content: bytes) -> None:
    write_entry(url, pending_key(17), content)
    with pytest.raises(CorruptionError, match=r"pending/0+17 .* does not list boxes"):
        downsample(Fork(url, GRAPH))


def test_other_fields_of_an_entry_survive_and_short_keys_are_understood(url: str) -> None:
    boxes = [[[20, 0, 8], [30, 10, 12]], [[60, 0, 8], [65, 10, 12]]]
    write_entry(url, "_sv_pipeline/pending/5", json.dumps({"boxes": boxes, "note": "x"}).encode())
    pyramid = open_pyramid(Fork(url, GRAPH))
    downsample_part(pyramid, Box((0, 0, 0), (30, 40, 40)), ["_sv_pipeline/pending/5"], BUDGET)
    left = json.loads(Fork(url, GRAPH).store().kv["_sv_pipeline/pending/5"])
    assert left == {"boxes": boxes[1:], "note": "x"}
    assert downsample(Fork(url, GRAPH), [5]).complete
    assert_up_to_date(url)


def test_a_fork_without_coarser_mips_has_its_ledger_emptied(tmp_path: Path) -> None:
    url = str(tmp_path)
    make_fork(url, mips=1)
    edit(url, 1, [Box((20, 0, 8), (30, 10, 12))])
    assert downsample(Fork(url, GRAPH)).work.chunks_made == 0
    assert_up_to_date(url)


def test_mistakes_are_told_as_such(url: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no fork"):
        downsample(Fork(url, "typo"))
    with pytest.raises(ConfigError, match="memory budget"):
        downsample(Fork(url, GRAPH), memory_budget=1000)
    with pytest.raises(NotFoundError, match="mips 1 to"):
        rebuild_mip(open_pyramid(Fork(url, GRAPH)), 9)


def test_a_mip_of_a_foreign_factor_is_refused_by_name(url: str) -> None:
    base = Base(url).info().volume
    create_volume(url + "/odd", resolution=(8, 8, 40), voxel_offset=(0, 0, 0), size=(60, 60, 60),
                  chunk_size=(16, 16, 16), n_mips=2, factors=(3, 3, 1))  # fmt: skip
    pyramid = open_pyramid(Fork(url, GRAPH))
    odd = ForkPyramid(pyramid.store, type(base)("uint64", (base.scales[0], read_info(url + "/odd").scales[1])))
    with pytest.raises(ConfigError, match=r"mip 1 .* \(3, 3, 1\).*ocdbt_config.mips = 1"):
        _ = odd.geometry


def test_a_rebuild_makes_all_mips_right_and_leaves_nothing_behind(url: str) -> None:
    damage(url, 1, 5)
    damage(url, 2, 6)
    report = rebuild(Fork(url, GRAPH))
    assert report.complete
    assert 0 < report.work.chunks_written < report.work.chunks_made
    assert_up_to_date(url)


def damage(url: str, mip: int, label: int) -> None:
    store = Fork(url, GRAPH).store()
    with store.transaction() as transaction:
        array = store.array(mip)
        start = np.asarray(array.domain.inclusive_min) + 3
        array.with_transaction(transaction)[tuple(slice(a, a + 2) for a in start)].write(np.uint64(label)).result()


def test_mips_may_be_rebuilt_one_by_one_and_what_that_changes_is_listed(url: str) -> None:
    damage(url, 1, 5)
    pyramid = open_pyramid(Fork(url, GRAPH))
    assert rebuild_mip(pyramid, 1, memory_budget=1 << 20).chunks_written == 1
    assert [entry.operation_id for entry in Fork(url, GRAPH).pending()] == [0]
    assert_no_silent_fault(url)
    for mip in range(2, Base(url).info().n_mips):
        rebuild_mip(pyramid, mip)
    assert_no_silent_fault(url)
    downsample(Fork(url, GRAPH))
    assert_up_to_date(url)
