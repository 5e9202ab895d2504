"""One operation that cannot be healed keeps nobody from seeing the others, and none of them from being healed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest

from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.ownership import FIXED_TIME, OWNER, open_key
from sv_pipeline.operations.writing import RECOVERY, REQUEST, SCOPE, WRITES
from sv_pipeline.recovery import RecoveryReport, abandon, list_stuck, recover_all
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.interface import ColumnKey, RowMutation, SetCell
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.test_crash_matrix import KILLED, newest

LATE = 1 << 42
UNREADABLE = {
    "scope": (SCOPE.key, b"{"),
    "scope of another shape": (SCOPE.key, b"[1]"),
    "owner": (OWNER, b"nobody"),
    "notes": (RECOVERY.key, b"7"),
    "write set": (WRITES, b"{}"),
    "status": (columns.OPERATION_STATUS.key, b"zz"),
}
"""Nothing is known of what such an operation holds, or whether it is complete."""
IMPOSSIBLE = {"request": (REQUEST.key, b"{"), "request of another shape": (REQUEST.key, b'{"offset": [1]}')}
"""It can only be abandoned."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)


def spoil(play: Theatre, operation_id: int, column: ColumnKey, value: bytes) -> None:
    logged = column == columns.OPERATION_STATUS.key
    key = keys.node_key(operation_id) if logged else open_key(operation_id)
    play.scene.table.mutate([RowMutation(key, [SetCell(column, value, LATE if logged else FIXED_TIME)])])


@pytest.mark.parametrize("what", [*UNREADABLE, *IMPOSSIBLE])
def test_the_others_are_listed_and_recovered(theatre: Callable[[str], Theatre], what: str) -> None:
    play = theatre("sqlite")
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    spoiled = newest(play)
    assert play.do(**play.request("elsewhere"), failpoint="half switched:kill") == KILLED
    other = newest(play)
    spoil(play, spoiled, *(UNREADABLE | IMPOSSIBLE)[what])
    graph, held = play.scene.graph, play.scene.indefinite_locks()
    assert [one.operation_id for one in list_stuck(graph)] == [spoiled, other]
    assert "cannot be read" in " ".join(map(str, dry_run(graph, spoiled).to_dict().values()))
    done = dict(recover_all(graph, [spoiled, other]))
    assert isinstance(done[other], RecoveryReport)
    assert str(spoiled) in str(done[spoiled])
    assert "cannot be read" in str(done[spoiled])
    assert [one.operation_id for one in list_stuck(graph)] == [spoiled]
    left = play.scene.indefinite_locks()
    assert left
    assert set(left) < set(held)
    if what in IMPOSSIBLE:
        abandon(graph, spoiled, user="emma", reason="its request is lost")
        play.scene.prove()
        assert play.scene.objects() == play.twin("elsewhere")


def test_one_that_needs_what_another_one_holds_is_recovered_after_it(theatre: Callable[[str], Theatre]) -> None:
    play = theatre("sqlite")
    known = play.scene.graph.meta
    config = known.graph_config._replace(ROOT_LOCK_EXPIRY=timedelta(seconds=0.5))
    meta.write_meta(play.scene.table, dataclasses.replace(known, graph_config=config), overwrite=True)
    first = newest(play) + 1
    assert play.do(**play.request("supervoxel split"), failpoint="write started:kill") == KILLED
    # Its locks expire, so somebody else gets the same object, and dies as well.
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    done = dict(recover_all(play.scene.graph, [first, first + 1]))
    assert [type(one) for one in done.values()] == [RecoveryReport] * 2, done
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
    ended = {one.operation_id: one.status for one in read_operations(play.scene.graph, [first, first + 1])}
    assert ended == {first: OperationStatus.EXCEPTION, first + 1: OperationStatus.SUCCESS}
