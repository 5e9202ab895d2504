"""Operations that a worker of PyChunkedGraph left half done: found in its log, and recovered by what that says."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.writing import own_key
from sv_pipeline.recovery import Unfinished, all_unfinished, claiming, find_unfinished, foreign, recover
from sv_pipeline.segmentation.fork.records import NEWEST, operation_key
from sv_pipeline.table import columns, counters, keys, locks
from sv_pipeline.table.interface import DeleteCells, RowMutation, Table
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]


def made_foreign(play: Theatre, status: OperationStatus) -> int:
    """What our edit left, as PyChunkedGraph leaves it: no row of ours, no record in the fork; its log names a scope."""
    (one,) = find_unfinished(play.scene.graph)
    graph, table, operation = play.scene.graph, play.scene.table, one.operation_id
    scope = one.scope
    assert scope is not None
    assert scope.chunks
    for root in scope.new_roots:  # they are not born locked there
        locks.unlock_indefinitely(table, keys.node_key(root), operation)
    table.mutate([RowMutation(open_key(operation), [DeleteCells()]), RowMutation(own_key(operation), [DeleteCells()])])
    table.mutate([RowMutation(keys.node_key(operation), [columns.OPERATION_STATUS.set(int(status))])])
    kv = graph.fork.store().kv
    for key in (operation_key(operation), NEWEST):
        kv.write(key, None).result()
    return operation


def found_foreign(play: Theatre) -> list[Unfinished]:
    return [one for one in all_unfinished(play.scene.graph) if one.foreign]


@both
@pytest.mark.parametrize("status", [OperationStatus.CREATED, OperationStatus.EXCEPTION, OperationStatus.WRITE_STARTED])
@pytest.mark.parametrize("step", ["new rows written", "voxels written", "half switched", "switch written"])
def test_an_operation_of_other_software_is_found_and_recovered(
    theatre: Make, backend: str, status: OperationStatus, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (list(OperationStatus).index(status) + len(step)) % 2 == (backend == "sqlite") and step != "half switched":
        pytest.skip("its twin in the other backend runs")
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint=f"{step}:kill") == KILLED
    operation = made_foreign(play, status)
    assert play.do(**play.request("elsewhere")) == DONE
    (one,) = found_foreign(play)
    assert one.operation_id == operation
    assert one.owner is None
    assert one.outlook == "recover"
    monkeypatch.setattr(claiming, "observation_seconds", lambda: 0.1)
    monkeypatch.setattr(claiming, "quiet_seconds", lambda _graph: 0.0)
    report = recover(play.scene.graph, operation)
    assert report.replay.outcome == "replayed", report
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "elsewhere")
    assert not found_foreign(play)
    (row,) = read_operations(play.scene.graph, [operation])
    assert row.status is OperationStatus.SUCCESS


def test_what_other_software_has_begun_is_watched_but_left_alone_until_it_holds_something(theatre: Make) -> None:
    play = theatre()
    operation = counters.new_operation_id(play.scene.table)
    play.scene.table.mutate([log_row(operation, OperationStatus.CREATED)])
    assert not all_unfinished(play.scene.graph)
    assert operation in foreign.watched(play.scene.table)
    play.scene.table.mutate([log_row(operation, OperationStatus.WRITE_STARTED, 5)])
    assert [one.operation_id for one in found_foreign(play)] == [operation]
    play.scene.table.mutate([log_row(operation, OperationStatus.SUCCESS)])
    play.scene.table.mutate([RowMutation(keys.node_key(operation), [DeleteCells(columns.CHUNK_LOCK_SCOPE.key)])])
    assert not found_foreign(play)
    assert operation not in foreign.watched(play.scene.table)


def log_row(operation: int, status: OperationStatus, *scope: int) -> RowMutation:
    cells = [columns.USER.set("somebody"), columns.OPERATION_STATUS.set(int(status))]
    if scope:
        cells.append(columns.CHUNK_LOCK_SCOPE.set(np.array(scope, np.uint64)))
    return RowMutation(keys.node_key(operation), cells)


@pytest.fixture
def long_log(table: Table) -> Table:
    """Finished operations, with some unfinished ones among them."""
    table.increment(keys.OPERATION_COUNTER, columns.COUNTER.key, 5_000)
    table.mutate(log_row(i, OperationStatus.SUCCESS) for i in range(1, 5_001) if i not in (17, 2_500, 4_990))
    return table


def test_the_cursor_never_passes_what_is_unfinished(long_log: Table) -> None:
    table = long_log
    table.mutate([log_row(17, OperationStatus.CREATED), log_row(2_500, OperationStatus.EXCEPTION, 5, 6)])
    assert foreign.advance(table, seconds=60.0).ahead == 0
    assert set(foreign.watched(table)) == {17, 2_500}
    table.mutate([log_row(4_990, OperationStatus.CREATED)])  # whoever took this number was slow
    foreign.advance(table)
    assert set(foreign.watched(table)) == {17, 2_500, 4_990}
    counters.new_operation_id(table)
    table.mutate([log_row(5_001, OperationStatus.CREATED)])
    foreign.advance(table)
    assert set(foreign.watched(table)) == {17, 2_500, 4_990, 5_001}


def test_a_tick_does_a_bounded_part_of_a_long_log_and_goes_on_where_it_was(
    long_log: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "ROWS_PER_STEP", 500)
    left = [foreign.advance(long_log, seconds=1e-9).ahead for _ in range(10)]
    assert left == [4_500 - 500 * i for i in range(10)]
    before = long_log.round_trips
    started = time.monotonic()
    foreign.advance(long_log)
    assert long_log.round_trips - before <= 5
    assert time.monotonic() - started < 1.0
