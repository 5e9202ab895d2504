"""What workers of PyChunkedGraph leave when they die, at every point of their order of writes: found, and healed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline import edits
from sv_pipeline.edits import Points
from sv_pipeline.graph import queries
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.operations.writing import own_key
from sv_pipeline.recovery import NotStuckError, RecoveryStoppedError, all_unfinished, claiming, foreign, recover
from sv_pipeline.recovery.assessment import State, assess
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.testing.harness.actors import DONE, OFFSET
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.stage import Stage
from sv_pipeline_tests.reference_data import contacts

KILLED = -9
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]

LOCKING = ["half locked", "locked"]
SHARES = [f"rows:{share}" for share in (0.0, 0.3, 0.7, 1.0)]
ENDING = ["succeeded"]
KINDS = ["merge", "merge by hand", "plain split", "undo of a merge"]


@pytest.fixture(autouse=True)
def plain_split(stages: Callable[[str], Stage]) -> None:
    """A split that takes no supervoxel, as one more request of the stage."""
    requests = stages("sqlite").requests
    if "plain split" not in requests:
        requests["plain split"] = find_plain_split(stages("sqlite"))


def find_plain_split(stage: Stage) -> dict[str, Any]:
    """Two supervoxels of one object between which a cut of edges alone can be made; found by making it on a copy."""
    scene = stage.copy()
    try:
        graph = scene.graph
        voxels = np.asarray(graph.fork.open().read().result(), np.uint64)
        origin = np.asarray(graph.grid.bounds.start)
        pairs = [pair for pair in contacts(voxels) if len(set(queries.roots(graph, pair).tolist())) == 1]
        for a, b in pairs:
            sides = [(np.argwhere(voxels == sv)[0] + origin).tolist() for sv in (a, b)]
            points = [Points.of(coordinates=[side]) for side in sides]
            try:
                request = edits.SplitRequest("tester", *points, OFFSET, disallow_isolating_cut=False)
                edit = edits.split(graph, request, volume=graph.fork.open())
            except edits.EditRefused:
                continue
            elsewhere = [np.asarray(stage.requests["elsewhere"][side][0]) for side in ("source", "sink")]
            at = queries.supervoxels_at(graph, graph.fork.open(), elsewhere)
            free = not np.isin(queries.roots(graph, at), edit.roots).any()
            if not len(edit.supervoxels) and free:
                return {"do": "split", "source": [sides[0]], "sink": [sides[1]]}
            edits.undo(graph, edit.operation_id, "tester")
    finally:
        scene.remove()
    raise AssertionError("no split without supervoxels can be made on the stage")


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are old at once, and nobody watches for long."""
    monkeypatch.setattr(claiming, "observation_seconds", lambda: 0.01)
    for module in (claiming, foreign):
        monkeypatch.setattr(module, "quiet_seconds", lambda _graph: 0.0)
    monkeypatch.setattr("sv_pipeline.operations.other_software.quiet_seconds", lambda _graph: 0.0)


def theirs(play: Theatre, kind: str, **how: Any) -> int:
    """An edit by a worker of theirs; its exit code."""
    request = play.request(kind)
    code, said = play.said(**{**request, "do": "their edit", "edit": request["do"]}, theirs=how)
    assert code in (DONE, KILLED) or "TheirError" in said, said
    return code


def found_theirs(play: Theatre) -> list[Unfinished]:
    return [one for one in all_unfinished(play.scene.graph) if one.foreign]


def test_an_edit_that_they_bring_to_its_end_is_sound_and_leaves_nothing(theatre: Make) -> None:
    for kind in (*KINDS, "supervoxel split"):
        play = theatre("sqlite")
        assert theirs(play, kind, die="never") == DONE
        play.scene.prove()
        assert play.scene.objects() == play.twin(kind)
        assert not found_theirs(play)


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", LOCKING + SHARES)
def test_a_worker_that_died_is_found_in_one_look_and_its_edit_is_made_again(
    theatre: Make, backend: str, kind: str, step: str, old: None
) -> None:
    play = theatre(backend)
    assert theirs(play, kind, die=step, seed=len(step + kind)) == KILLED
    assert play.do(**play.request("elsewhere")) == DONE
    (one,) = found_theirs(play)
    assert one.outlook == "recover"
    judged = assess(play.scene.graph, one)
    assert judged.state is State.HELD
    report = recover(play.scene.graph, one.operation_id)
    assert report.replay.outcome == "replayed", report
    play.scene.prove()
    assert play.scene.objects() == play.twin(kind, "elsewhere")
    assert not found_theirs(play)
    (row,) = read_operations(play.scene.graph, [one.operation_id])
    assert row.status is OperationStatus.SUCCESS


SUPERVOXELS = [f"supervoxels:{share}" for share in (0.0, 0.4, 1.0)]


@both
@pytest.mark.parametrize(
    "step",
    ["scope", "chunks locked", "half locked", "locked", "voxels", *SUPERVOXELS, "rows:0.0", "rows:0.5", "rows:1.0"],
)
def test_a_split_of_a_supervoxel_whose_worker_died_is_rolled_back_and_made_again(
    theatre: Make, backend: str, step: str, old: None
) -> None:
    play = theatre(backend)
    assert theirs(play, "supervoxel split", die=step, seed=len(step)) == KILLED
    assert play.do(**play.request("elsewhere")) == DONE
    (one,) = found_theirs(play)
    assert one.outlook == "recover"
    report = recover(play.scene.graph, one.operation_id)
    assert report.replay.outcome == "replayed", report
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "elsewhere")
    assert not found_theirs(play)


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_what_a_failed_write_left_without_locks_is_taken_out(
    theatre: Make, backend: str, kind: str, says: bool, share: float, old: None
) -> None:
    """Their user was told that the edit failed, so it is not made again."""
    play = theatre(backend)
    before = play.scene.objects()
    theirs(play, kind, fail=f"rows:{share}", says=says, seed=int(10 * share) + len(kind))
    (one,) = found_theirs(play)
    assert one.outlook == "roll back"
    report = recover(play.scene.graph, one.operation_id)
    assert report.replay.outcome == "rolled back"
    play.scene.prove()
    assert play.scene.objects() == before
    assert not found_theirs(play)
    assert play.do(**play.request(kind)) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin(kind)


@both
def test_locks_that_a_finished_operation_left_are_given_back(theatre: Make, backend: str, old: None) -> None:
    for step in ("succeeded", "half released"):
        play = theatre(backend)
        assert theirs(play, "merge", die=step) == KILLED
        (one,) = found_theirs(play)
        assert one.outlook == "release"
        assert recover(play.scene.graph, one.operation_id).replay.outcome == "released"
        play.scene.prove()
        assert play.scene.objects() == play.twin("merge")
        assert not found_theirs(play)


@both
def test_an_undo_of_their_merge_gives_what_an_undo_of_ours_gives(theatre: Make, backend: str) -> None:
    """Their log names the user's edge only, although the merge made all edges between both objects active."""
    play = theatre(backend)
    before = play.scene.objects()
    code, said = play.said(**{**play.request("merge"), "do": "their edit", "edit": "merge"}, theirs={})
    assert code == DONE, said
    merge = json.loads(said)["operation"]
    assert play.do(do="undo", operation=merge) == DONE
    play.scene.prove()
    assert play.scene.objects() == before
    merged_by_us = play.stage.requests["undo of a merge"]["operation"]
    play.scene.table.mutate([RowMutation(own_key(merged_by_us), [DeleteCells()])])
    assert play.do(do="undo", operation=merged_by_us) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("undo of a merge")


def test_a_worker_that_has_only_begun_leaves_nothing(theatre: Make) -> None:
    play = theatre()
    before = play.scene.objects()
    assert theirs(play, "merge", die="created") == KILLED
    assert not found_theirs(play)
    play.scene.prove()
    assert play.scene.objects() == before


def test_a_living_worker_is_left_alone_while_its_locks_are_young(
    theatre: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "observation_seconds", lambda: 0.01)
    play = theatre()
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    (one,) = found_theirs(play)
    with pytest.raises(NotStuckError, match="left alone until"):
        recover(play.scene.graph, one.operation_id)
    patience = claiming.quiet_seconds(play.scene.graph)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + patience + 1)
    assert recover(play.scene.graph, one.operation_id).replay.outcome == "replayed"


def test_an_edit_that_somebody_has_built_upon_is_not_taken_back(theatre: Make, old: None) -> None:
    """A root that they made is not locked, so it can be edited while half of its rows are missing."""
    play = theatre()
    graph = play.scene.graph
    assert theirs(play, "merge", die="rows:1.0") == KILLED
    (one,) = found_theirs(play)
    supervoxel = one.operation.row[columns.SOURCE_IDS.key][0].value
    root = int(queries.roots(graph, [int.from_bytes(supervoxel[:8], "little")])[0])
    play.scene.table.mutate(
        [RowMutation(keys.node_key(root), [columns.NEW_PARENTS.set(np.array([root + 1], np.uint64))])]
    )
    with pytest.raises(RecoveryStoppedError, match="was edited"):
        recover(graph, one.operation_id)


def test_a_dry_run_says_how_much_is_written_and_changes_nothing(theatre: Make, old: None) -> None:
    play = theatre()
    assert theirs(play, "merge", die="rows:0.5") == KILLED
    before = play.scene.rows()
    (one,) = found_theirs(play)
    said = dry_run(play.scene.graph, one.operation_id).to_dict()
    assert said["new_rows_written"] > 0
    assert "take back" in said["would"]
    assert play.scene.rows() == before


def test_a_recovery_of_theirs_may_be_killed_anywhere(theatre: Make) -> None:
    """Each step of a roll-back leaves what the next recovery finds and ends."""
    for kind, step in [
        *(("merge", s) for s in ("claimed", "switch back", "half switched back", "switched back", "nodes removed")),
        *(("plain split", s) for s in ("half switched back", "rows removed", "clean", "cleaned", "replay")),
        ("plain split", "half switched"),
        *(("supervoxel split", s) for s in ("claimed", "restored", "switched back", "nodes removed", "rows removed")),
        ("supervoxel split", "voxels written"),
    ]:
        play = theatre("sqlite")
        assert theirs(play, kind, die="rows:0.6", seed=len(step)) == KILLED
        (one,) = found_theirs(play)
        assert play.do(do="recover old", operation=one.operation_id, failpoint=f"{step}:kill") == KILLED, step
        code, said = play.said(do="recover old", operation=one.operation_id)
        assert code == DONE, said
        play.scene.prove()
        assert play.scene.objects() == play.twin(kind), (kind, step)


@examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_part_of_its_rows_is_there_it_is_one_edit_or_none(theatre: Make, data: st.DataObject) -> None:
    play = theatre("sqlite")
    kind = data.draw(st.sampled_from([*KINDS, "supervoxel split"]))
    names = ("rows", "supervoxels") if kind == "supervoxel split" else ("rows",)
    step = f"{data.draw(st.sampled_from(names))}:{data.draw(st.floats(0, 1)):.3f}"
    assert theirs(play, kind, die=step, seed=data.draw(st.integers(0, 10_000))) == KILLED
    (one,) = found_theirs(play)
    code, said = play.said(do="recover old", operation=one.operation_id)
    assert code == DONE, said
    play.scene.prove()
    assert play.scene.objects() == play.twin(kind)
    assert play.do(**play.request("elsewhere")) == DONE


def test_an_edit_elsewhere_in_the_same_millisecond_is_left_as_it_is(theatre: Make) -> None:
    """The rows of both are in the root chunk, with cells of one time."""
    for share in (0.0, 0.4, 0.8):
        play = theatre("sqlite")
        at = time.time_ns() // 1_000_000
        assert theirs(play, "elsewhere", at=at) == DONE
        assert theirs(play, "merge", at=at, die=f"rows:{share}", seed=int(share * 10)) == KILLED
        (one,) = found_theirs(play)
        code, said = play.said(do="recover old", operation=one.operation_id)
        assert code == DONE, said
        play.scene.prove()
        assert play.scene.objects() == play.twin("elsewhere", "merge")
