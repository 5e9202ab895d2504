"""Recovery takes over what is dead, proven, and nobody else's; it touches nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from sv_pipeline.operations import ownership
from sv_pipeline.operations.errors import NotStuckError
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.writing import made_rows, read_supervoxels
from sv_pipeline.recovery import claiming, find_unfinished, list_stuck, release_orphans
from sv_pipeline.recovery.claiming import claim
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.testing.harness.actors import DONE, LOST, NOTHING, STOPPED
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]


def chunk_locks(play: Theatre) -> list[bytes]:
    return [key for key in play.scene.indefinite_locks() if len(key) == 10]


@both
def test_a_missing_chunk_lock_stops_it_with_nothing_changed(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    key = chunk_locks(play)[0]
    play.scene.table.mutate([RowMutation(key, [DeleteCells(columns.INDEFINITE_LOCK.key)])])
    before, opened = play.scene.rows(), play.scene.table.read_rows([open_key(one.operation_id)])
    code, said = play.said(do="recover", operation=one.operation_id)
    assert code == STOPPED
    assert "is held by nobody" in said
    assert play.scene.rows() == before
    assert play.scene.table.read_rows([open_key(one.operation_id)]) == opened


@both
def test_a_foreign_chunk_lock_stops_it_and_is_named(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint="voxels written:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    key = chunk_locks(play)[-1]
    foreign = [DeleteCells(columns.INDEFINITE_LOCK.key), columns.INDEFINITE_LOCK.set(4711)]
    play.scene.table.mutate([RowMutation(key, foreign)])
    before = play.scene.rows()
    code, said = play.said(do="recover", operation=one.operation_id)
    assert code == STOPPED
    assert "is held by operation 4711" in said
    assert play.scene.rows() == before


@pytest.mark.parametrize(("step", "code"), [("lock indefinitely", DONE), ("switch", STOPPED)])
def test_cells_of_another_edit_in_the_same_millisecond_stop_it_only_if_they_could_be_its_own(
    theatre: Make, step: str, code: int
) -> None:
    """Its locks have expired, and another process with a clock that is behind has edited the same objects."""
    play = theatre()
    assert play.do(**play.request("merge"), failpoint=f"{step}:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    timestamp, cells = one.write_set
    key = next(key for key in cells[columns.PARENT.key] if key not in made_rows(cells))
    parent = columns.PARENT.newest(play.scene.table.read_rows([key])[key])
    assert parent is not None
    play.scene.table.mutate([RowMutation(key, [columns.PARENT.set(parent, timestamp)])])
    assert one.scope is not None
    unlock = [DeleteCells(columns.LOCK.key), DeleteCells(columns.INDEFINITE_LOCK.key)]
    play.scene.table.mutate([RowMutation(keys.node_key(one.scope.roots[0]), unlock)])
    assert play.do(do="recover", operation=one.operation_id) == code
    if code == DONE:
        play.scene.prove()
        assert play.scene.objects() == play.twin("merge")


@both
def test_what_an_earlier_attempt_noted_for_its_undo_goes_with_it(theatre: Make, backend: str) -> None:
    """The next attempt may replace other supervoxels, or none: an undo must not meet those that are no more."""
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    earlier = read_supervoxels(play.scene.table, one.operation_id)
    assert len(earlier)
    assert play.do(do="recover", operation=one.operation_id, failpoint="cleaned:kill") == KILLED
    assert not len(read_supervoxels(play.scene.table, one.operation_id))
    assert play.do(do="recover", operation=one.operation_id) == DONE
    made = read_supervoxels(play.scene.table, one.operation_id)
    assert len(made) == len(earlier)
    assert not set(made[:, 1].tolist()) & set(earlier[:, 1].tolist())


@both
def test_a_slow_owner_is_never_recovered(theatre: Make, backend: str) -> None:
    """It waits for much longer than it takes to call it dead, but shows that it lives."""
    play = theatre(backend)
    seconds = 3 * 3 * 0.2
    pid = play.start(**play.request("supervoxel split"), failpoint=f"voxels written:pause:{seconds}", beat=0.2)
    deadline = time.monotonic() + seconds + 20
    tries = 0
    while play.fork_server.poll(pid) is None and time.monotonic() < deadline:
        for one in find_unfinished(play.scene.graph):
            assert play.do(do="recover", operation=one.operation_id, beat=0.2) == NOTHING
            tries += 1
    assert tries
    assert play.fork_server.wait(pid) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


@both
def test_of_two_recoveries_one_does_the_work_and_the_other_ends_quietly(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    both = [play.start(do="recover", operation=one.operation_id, token=f"r{i}") for i in range(2)]
    assert sorted(play.fork_server.wait(pid) for pid in both) == [DONE, NOTHING]
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def test_an_owner_that_wakes_up_in_the_middle_of_the_recovery_commits_nothing(theatre: Make) -> None:
    play = theatre()
    pid = play.stop(**play.request("supervoxel split"), failpoint="voxels:stop")
    (one,) = find_unfinished(play.scene.graph)
    recoverer = play.stop(do="recover", operation=one.operation_id, failpoint="replay:stop", beat=0.3)
    result = play.wake(pid)
    assert result == LOST
    assert play.wake(recoverer) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


@both
def test_what_holds_nothing_is_swept(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    assert play.do(**play.request("merge"), failpoint="planned:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    assert one.outlook == "sweep"
    assert play.do(do="recover", operation=one.operation_id) == DONE
    (row,) = read_operations(play.scene.graph, [one.operation_id])
    assert row.status is OperationStatus.EXCEPTION
    assert (row.exception or "").startswith("failed:abandoned")
    assert not find_unfinished(play.scene.graph)


def test_a_live_operation_is_listed_only_when_it_is_old_enough(theatre: Make) -> None:
    play = theatre()
    pid = play.start(**play.request("merge"), failpoint="locked:pause:1.5")
    deadline = time.monotonic() + 20
    while not (found := list_stuck(play.scene.graph)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) == 1
    assert not list_stuck(play.scene.graph, min_age=600.0)
    assert play.fork_server.wait(pid) == DONE


def test_an_expired_temporal_lock_is_no_alarm(theatre: Make) -> None:
    play = theatre()
    long_ago = int(time.time() * 1000) - 3_600_000
    play.scene.table.mutate([RowMutation(keys.node_key(1 << 60), [columns.LOCK.set(4711, long_ago)])])
    assert not list_stuck(play.scene.graph, deep=True)


@both
def test_a_lock_whose_operation_is_finished_is_found_and_given_back(theatre: Make, backend: str) -> None:
    play = theatre(backend)
    key = keys.chunk_lock_key(int(play.scene.graph.layout.chunk_ids(2, [1, 1, 0])))
    play.scene.table.mutate([RowMutation(key, [columns.INDEFINITE_LOCK.set(1)])])
    assert not list_stuck(play.scene.graph)
    assert [one.operation_id for one in list_stuck(play.scene.graph, deep=True)] == [1]
    assert release_orphans(play.scene.graph, 1) == 1
    assert locks.holders(play.scene.table, key) == (None, None)


@both
@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_clocks_an_hour_apart_do_not_matter(theatre: Make, backend: str, ahead: float) -> None:
    """Of the writer against the recoverer; and of the one who edits next."""
    play = theatre(backend)
    code, said = play.said(**play.request("supervoxel split"), failpoint="switch written:kill", clock=ahead)
    assert code == KILLED, said
    assert play.do(**play.request("elsewhere")) == DONE
    assert play.do(do="heal") == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "elsewhere")
    assert play.do(**play.request("merge"), failpoint="switch written:kill") == KILLED
    assert play.do(do="heal", clock=ahead) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "elsewhere", "merge")


def test_a_dry_run_names_chunks_generation_voxels_and_request_and_changes_nothing(theatre: Make) -> None:
    play = theatre()
    assert play.do(**play.request("supervoxel split"), failpoint="voxels written:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    before = play.scene.rows(), play.scene.open_rows()
    plan = dry_run(play.scene.graph, one.operation_id).to_dict()
    assert len(plan["chunks"]) == 6
    assert plan["locked"] == "7 of 7 roots and chunks"
    assert plan["voxels_are_in"] is True
    assert plan["voxels_to_put_back"] > 0
    assert plan["generation"] == find_unfinished(play.scene.graph)[0].scope.generation  # type: ignore[union-attr]
    assert "split by 'tester'" in plan["request"]
    assert (play.scene.rows(), play.scene.open_rows()) == before


def test_a_second_supervoxel_split_elsewhere_during_the_outage_is_kept(theatre: Make) -> None:
    play = theatre()
    assert play.do(**play.request("supervoxel split"), failpoint="switch:kill") == KILLED
    assert play.do(**play.request("supervoxel split elsewhere")) == DONE
    assert play.do(do="heal") == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "supervoxel split elsewhere")


def test_claiming_needs_that_the_owner_has_not_moved_at_all(theatre: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beat of an owner and a claim at the same moment: whichever comes first, the other one knows."""
    play = theatre()
    pid = play.stop(**play.request("merge"), failpoint="half switched:stop", beat=0.1)
    (one,) = find_unfinished(play.scene.graph)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    exchange = claiming._exchange

    def late(*args: object) -> None:
        os.kill(pid, signal.SIGCONT)
        play.fork_server.wait(pid)
        exchange(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(claiming, "_exchange", late)
    with pytest.raises(NotStuckError):
        claim(play.scene.graph, one.operation_id, "late")
    play.scene.prove()
    assert play.scene.objects() == play.twin("merge")
