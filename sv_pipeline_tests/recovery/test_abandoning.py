"""An operation that is given up is taken back to the last cell and voxel, whatever dies; and locks are put back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline.errors import ConflictError, InputError
from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.recovery import (
    FinishedError,
    RecoveryReport,
    RecoveryStoppedError,
    abandon,
    find_unfinished,
    recover,
    recover_all,
)
from sv_pipeline.recovery.at_once import watch_all
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK, NEW_PARENTS
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.table.keys import node_key
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9
STEPS = (
    "claimed", "fenced", "abandoned", "restore", "restored", "half switched back", "switched back", "rows removed",
    "clean", "cleaned", "give up", "refuse", "refused", "release", "half released", "all released", "prove",
)  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)


def newest(play: Theatre) -> int:
    return max(one.operation_id for one in read_operations(play.scene.graph))


def prove_given_up(play: Theatre, operation_id: int) -> None:
    """All is as if the operation had not been asked for, but for its row in the log, which says why."""
    play.scene.prove()
    (found,) = read_operations(play.scene.graph, [operation_id])
    assert found.status is OperationStatus.EXCEPTION
    assert "abandoned" in (found.exception or "")
    assert "it fails for ever" in (found.exception or "")
    assert "emma" in (found.exception or "")
    assert not find_unfinished(play.scene.graph)
    assert play.scene.objects() == play.twin()


@pytest.mark.parametrize(
    ("backend", "kind", "step"),
    [(("sqlite", "bigtable")[at % 2], "supervoxel split", step) for at, step in enumerate(STEPS)]
    + [("bigtable", "merge", "half switched back"), ("sqlite", "undo of a supervoxel split", "restored")],
)
def test_an_abandonment_that_is_killed_anywhere_is_finished_as_one_by_the_next_recovery(
    theatre: Callable[[str], Theatre], quick: None, backend: str, kind: str, step: str
) -> None:
    play = theatre(backend)
    assert play.do(**play.request(kind), failpoint="half switched:kill") == KILLED
    operation = newest(play)
    assert play.do(do="abandon", operation=operation, user="emma", failpoint=f"{step}:kill") == KILLED
    if step in ("claimed", "fenced"):  # nothing says yet that it is to be abandoned
        assert play.do(do="abandon", operation=operation, user="emma") == DONE
    else:
        assert play.do(do="heal") == DONE
    prove_given_up(play, operation)


@pytest.mark.parametrize("step", ["write started", "new rows written", "voxels written", "switch written"])
def test_what_died_at_any_step_can_be_abandoned(theatre: Callable[[str], Theatre], quick: None, step: str) -> None:
    play = theatre("sqlite")
    assert play.do(**play.request("supervoxel split"), failpoint=f"{step}:kill") == KILLED
    report = abandon(play.scene.graph, newest(play), user="emma", reason="it fails for ever")
    assert report.replay.outcome == "abandoned"
    prove_given_up(play, newest(play))
    with pytest.raises(FinishedError, match="abandoned"):
        abandon(play.scene.graph, newest(play), user="emma", reason="once more")
    prove_given_up(play, newest(play))
    assert play.do(**play.request("supervoxel split")) == DONE  # it can be asked for again


def test_a_complete_operation_is_not_abandoned(theatre: Callable[[str], Theatre], quick: None) -> None:
    play = theatre("sqlite")
    assert play.do(**play.request("merge"), failpoint="succeeded:kill") == KILLED
    with pytest.raises(ConflictError, match="complete"):
        abandon(play.scene.graph, newest(play), user="emma", reason="no")
    assert recover(play.scene.graph, newest(play)).replay.outcome == "released"
    assert play.scene.objects() == play.twin("merge")
    with pytest.raises(ConflictError, match="undo"):
        abandon(play.scene.graph, newest(play), user="emma", reason="no")


def test_an_abandonment_says_who_and_why(theatre: Callable[[str], Theatre], quick: None) -> None:
    play = theatre("sqlite")
    with pytest.raises(InputError, match="reason"):
        abandon(play.scene.graph, 1, user="emma", reason=" ")


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
@pytest.mark.parametrize("lost", [0, -1], ids=["of a root", "of a chunk"])
def test_a_lock_that_somebody_removed_is_put_back(
    theatre: Callable[[str], Theatre], quick: None, backend: str, lost: int
) -> None:
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (found,) = find_unfinished(play.scene.graph)
    assert found.scope is not None
    key = found.scope.lock_keys[lost]
    play.scene.table.mutate([RowMutation(key, [DeleteCells(INDEFINITE_LOCK.key)])])
    with pytest.raises(RecoveryStoppedError, match="take-locks"):
        recover(play.scene.graph, found.operation_id)
    assert recover(play.scene.graph, found.operation_id, take_locks=True).replay.outcome == "replayed"
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def without_locks(play: Theatre, step: str) -> Unfinished:
    """A supervoxel split that was killed at a step, and whose locks somebody has removed by hand."""
    assert play.do(**play.request("supervoxel split"), failpoint=f"{step}:kill") == KILLED
    (found,) = find_unfinished(play.scene.graph)
    held = play.scene.indefinite_locks()
    play.scene.table.mutate(
        [RowMutation(key, [DeleteCells(INDEFINITE_LOCK.key), DeleteCells(LOCK.key)]) for key in held]
    )
    return found


def test_a_lock_is_not_put_back_where_somebody_has_edited_since(theatre: Callable[[str], Theatre], quick: None) -> None:
    play = theatre("sqlite")
    found = without_locks(play, "voxels written")
    assert found.scope is not None
    later = NEW_PARENTS.set(np.array([1], np.uint64), found.scope.timestamp + 1)
    play.scene.table.mutate([RowMutation(node_key(found.scope.roots[0]), [later])])
    with pytest.raises(RecoveryStoppedError, match="was replaced by another edit since"):
        recover(play.scene.graph, found.operation_id, take_locks=True)
    assert not play.scene.indefinite_locks()


def test_new_rows_need_no_locks_to_be_removed(theatre: Callable[[str], Theatre], quick: None) -> None:
    """Nothing points to them, whatever others have done to the object since."""
    play = theatre("sqlite")
    found = without_locks(play, "new rows written")
    assert play.do(**play.request("supervoxel split")) == DONE
    report = recover(play.scene.graph, found.operation_id)
    assert (report.state, report.replay.outcome) == ("unwritten", "refused")
    assert report.cleanup.cells
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def test_owners_are_watched_at_the_same_time(theatre: Callable[[str], Theatre], quick: None) -> None:
    play = theatre("sqlite")
    for kind in ("supervoxel split", "elsewhere", "merge"):
        assert play.do(**play.request(kind), failpoint="half switched:kill") == KILLED
    ids = [one.operation_id for one in find_unfinished(play.scene.graph)]
    assert len(ids) == 3
    looks: list[float] = []
    done = dict(recover_all(play.scene.graph, ids, progress=looks.append))
    assert {i: one.replay.outcome for i, one in done.items() if isinstance(one, RecoveryReport)} == dict.fromkeys(
        ids, "replayed"
    )
    assert looks == sorted(looks, reverse=True)  # one wait for all of them
    # Had each claim watched its owner by itself, none would be shorter than that watch; a busy machine delays some.
    assert min(one.seconds["claim"] for one in done.values() if isinstance(one, RecoveryReport)) < 3 * 0.05
    play.scene.prove()


def test_an_owner_that_lives_is_not_taken_for_dead_among_others(theatre: Callable[[str], Theatre], quick: None) -> None:
    play = theatre("sqlite")
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (dead,) = find_unfinished(play.scene.graph)
    own = ownership.Ownership(play.scene.table, 999)
    play.scene.table.mutate([RowMutation(own.key, [own.cell])])
    with own.beating():
        seen = watch_all(play.scene.graph, [dead.operation_id, 999])
        done = dict(recover_all(play.scene.graph, [dead.operation_id, 999]))
    assert seen[dead.operation_id].seconds >= 3 * 0.05 > seen[999].seconds
    assert isinstance(done[dead.operation_id], RecoveryReport)
    assert "at work" in str(done[999])
    own.end()
