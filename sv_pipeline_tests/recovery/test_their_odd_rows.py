"""Operations of other software with odd rows: unreadable, incomplete, unlocked by hand, or ended by somebody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from sv_pipeline.errors import ConflictError, CorruptionError, NotFoundError
from sv_pipeline.operations.errors import FinishedError
from sv_pipeline.operations.log import OperationStatus, asked_for, known_chain, read_operation
from sv_pipeline.operations.watch_list import Notes, added, noted, read_notes
from sv_pipeline.recovery import (
    NotStuckError,
    RecoveryStoppedError,
    abandon,
    all_unfinished,
    claiming,
    list_stuck,
    mend,
    recover,
    release_orphans,
)
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import Change, DeleteCells, RowMutation, SetCell
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.test_their_dead import DONE, KILLED, found_theirs, old, theirs

__all__ = ["old"]

both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]

DAMAGES: dict[str, list[Change]] = {
    "status": [SetCell(columns.OPERATION_STATUS.key, b"garbage", None)],
    "unknown status": [columns.OPERATION_STATUS.set(17)],
    "time": [SetCell(columns.OPERATION_TIMESTAMP.key, b"garbage", None)],
    "no time": [DeleteCells(columns.OPERATION_TIMESTAMP.key)],
    "ids": [SetCell(columns.SOURCE_IDS.key, b"abc", None)],
    "scope": [SetCell(columns.CHUNK_LOCK_SCOPE.key, b"abc", None)],
}


def change_log(play: Theatre, operation: int, *changes: Change) -> None:
    play.scene.table.mutate([RowMutation(keys.node_key(operation), list(changes))])


def unlock_roots(play: Theatre) -> None:
    """What a tool of the other software does, which deletes the locks of all roots."""
    cells = [DeleteCells(columns.INDEFINITE_LOCK.key), DeleteCells(columns.LOCK.key)]
    held = [key for key in play.scene.indefinite_locks() if key.isdigit()]
    assert held
    play.scene.table.mutate([RowMutation(key, cells) for key in held])


@both
@pytest.mark.parametrize("name", DAMAGES)
def test_an_unreadable_row_hides_no_other_and_keeps_its_locks(
    theatre: Make, backend: str, name: str, old: None
) -> None:
    play = theatre(backend)
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    damaged = max(int(key) for key, _ in play.scene.table.scan([keys.operation_range()]))
    change_log(play, damaged, *DAMAGES[name])
    locked = {*play.scene.indefinite_locks()}
    assert theirs(play, "elsewhere", die="rows:0.5") == KILLED
    graph = play.scene.graph
    for deep in (False, True, False):
        one, other = list_stuck(graph, deep=deep)
        assert one.operation_id == damaged
        assert one.damage
        assert one.outlook == "nothing"
        assert other.outlook == "recover"
    for take_locks in (False, True):
        with pytest.raises(RecoveryStoppedError, match="cannot be read"):
            recover(graph, damaged, take_locks=take_locks)
    assert recover(graph, other.operation_id).replay.outcome == "replayed"
    assert release_orphans(graph, damaged) == 0
    assert {*play.scene.indefinite_locks()} == locked
    assert [one.operation_id for one in found_theirs(play)] == [damaged]


@both
def test_words_of_theirs_that_look_like_ours_are_theirs(theatre: Make, backend: str, old: None) -> None:
    play = theatre(backend)
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    operation = found_theirs(play)[0].operation_id
    said = columns.OPERATION_EXCEPTION.set("failed: 504 while writing")
    change_log(play, operation, said, columns.OPERATION_STATUS.set(int(OperationStatus.EXCEPTION)))
    assert [one.outlook for one in found_theirs(play)] == ["recover"]
    assert recover(play.scene.graph, operation).replay.outcome == "replayed"
    play.scene.prove()
    assert play.scene.objects() == play.twin("merge")


@both
def test_locks_of_an_operation_that_the_log_does_not_have_are_kept(theatre: Make, backend: str) -> None:
    """Nobody knows what it has written, so its locks are not those of an operation that has ended."""
    play = theatre(backend)
    graph = play.scene.graph
    key = keys.chunk_lock_key(int(graph.layout.chunk_ids(2, [1, 1, 0])))
    play.scene.table.mutate([RowMutation(key, [columns.INDEFINITE_LOCK.set(4711)])])
    (one,) = list_stuck(graph, deep=True)
    assert (one.operation_id, one.outlook) == (4711, "nothing")
    assert "no row" in one.damage
    assert mend(graph, apply=True).locks == ()
    assert release_orphans(graph, 4711) == 0
    assert play.scene.indefinite_locks() == [key]


def test_a_mend_beside_an_edit_that_is_half_written_says_so(theatre: Make) -> None:
    play = theatre()
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    before = play.scene.rows()
    with pytest.raises(ConflictError, match="cannot be mended now"):
        mend(play.scene.graph, apply=True)
    assert play.scene.rows() == before


def test_root_locks_that_a_tool_has_removed_are_put_back_only_when_told(theatre: Make, old: None) -> None:
    """The locks of its chunks alone do not keep others from its roots."""
    play = theatre()
    assert theirs(play, "supervoxel split", die="rows:0.5") == KILLED
    unlock_roots(play)
    before = play.scene.rows()
    (one,) = found_theirs(play)
    with pytest.raises(RecoveryStoppedError, match="take-locks"):
        recover(play.scene.graph, one.operation_id)
    assert play.scene.rows() == before
    assert recover(play.scene.graph, one.operation_id, take_locks=True).replay.outcome == "replayed"
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def test_a_dry_run_of_an_edit_without_locks_says_what_recovery_does(theatre: Make, old: None) -> None:
    play = theatre()
    theirs(play, "merge", fail="rows:0.5")
    (one,) = found_theirs(play)
    assert "take back what it wrote" in dry_run(play.scene.graph, one.operation_id).to_dict()["would"]
    assert recover(play.scene.graph, one.operation_id).replay.outcome == "rolled back"


@both
def test_an_edit_that_another_recovery_has_ended_meanwhile_is_not_made_again(
    theatre: Make, backend: str, old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has judged the operation before the first one abandons it, and claims it afterwards."""
    play = theatre(backend)
    before = play.scene.objects()
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    graph, operation = play.scene.graph, found_theirs(play)[0].operation_id
    real = claiming.assess

    def overtaken(*judged: Any) -> Any:
        monkeypatch.setattr(claiming, "assess", real)
        assessment = real(*judged)
        assert abandon(graph, operation, user="somebody", reason="not wanted").replay.outcome == "abandoned"
        return assessment

    monkeypatch.setattr(claiming, "assess", overtaken)
    with pytest.raises(NotStuckError, match="since it was watched"):
        recover(graph, operation)
    play.scene.prove()
    assert play.scene.objects() == before
    assert not all_unfinished(graph)


@both
def test_a_complete_edit_of_a_log_without_statuses_is_left_as_it_is(theatre: Make, backend: str, old: None) -> None:
    """The oldest logs have no status; the roots that an operation has made are in its row once it has ended."""
    play = theatre(backend)
    assert theirs(play, "merge", die="never") == DONE
    operation = max(int(key) for key, _ in play.scene.table.scan([keys.operation_range()]))
    change_log(play, operation, DeleteCells(columns.OPERATION_STATUS.key))
    before = play.scene.rows()
    for act in (recover, dry_run):
        with pytest.raises(FinishedError) as raised:
            act(play.scene.graph, operation)
        assert raised.value.complete
    assert play.scene.rows() == before


@both
def test_roots_of_a_finished_operation_that_are_unreadable_hide_no_other(
    theatre: Make, backend: str, old: None
) -> None:
    play = theatre(backend)
    assert theirs(play, "merge", die="never") == DONE
    damaged = max(int(key) for key, _ in play.scene.table.scan([keys.operation_range()]))
    change_log(play, damaged, SetCell(columns.ROOTS.key, b"abc", None))
    assert theirs(play, "elsewhere", die="rows:0.5") == KILLED
    assert [one.outlook for one in found_theirs(play)] == ["nothing", "recover"]


@both
def test_an_edit_that_had_written_nothing_when_it_was_listed_is_not_swept(
    theatre: Make, backend: str, old: None
) -> None:
    """A worker that plans for longer than its locks are valid looks dead; then it writes half of its rows."""
    play = theatre(backend)
    before = play.scene.objects()
    theirs(play, "merge", fail="rows:0.5")
    (one,) = found_theirs(play)
    play.scene.table.mutate([noted(one.operation_id, Notes(one.objects, 0))])
    assert recover(play.scene.graph, one.operation_id).replay.outcome == "rolled back"
    play.scene.prove()
    assert play.scene.objects() == before


@both
@pytest.mark.parametrize("says", [False, True])
def test_an_edit_that_writes_after_it_was_judged_to_have_written_nothing_is_listed(
    theatre: Make, backend: str, says: bool, old: None
) -> None:
    """The list, which the sensor reads, searches again once the row of the operation has changed."""
    play = theatre(backend)
    theirs(play, "merge", fail="rows:0.5", says=says)
    table = play.scene.table
    (one,) = found_theirs(play)
    now = read_notes(table, [one.operation_id])[one.operation_id]
    assert now.written
    table.mutate([noted(one.operation_id, Notes(now.roots, 0, now.judged_by))])
    assert not found_theirs(play), "nothing has changed since it was judged, so that is not searched for again"
    table.mutate([added(one.operation_id, time.time()), noted(one.operation_id, Notes(now.roots, 0, "an earlier row"))])
    assert [other.outlook for other in found_theirs(play)] == ["roll back"]
    assert read_notes(table, [one.operation_id])[one.operation_id] == now


def test_a_chain_of_undos_is_known_as_far_as_the_log_has_it_and_has_an_end(theatre: Make) -> None:
    play = theatre()
    graph = play.scene.graph
    missing, undo, redo = (counters.new_operation_id(play.scene.table) for _ in range(3))
    change_log(play, undo, columns.UNDO_OPERATION_ID.set(missing))
    change_log(play, redo, columns.REDO_OPERATION_ID.set(undo))
    last = read_operation(graph, redo)
    assert [one.operation_id for one in known_chain(graph, last)] == [redo, undo]
    with pytest.raises(NotFoundError):
        asked_for(graph, redo)
    change_log(play, undo, columns.UNDO_OPERATION_ID.set(redo))
    with pytest.raises(CorruptionError, match="not an earlier one"):
        known_chain(graph, last)
