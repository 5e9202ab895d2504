"""Rolling a user back: newest first, not below the edits of others, made once however often it dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline import edits
from sv_pipeline.edits import EditRefused
from sv_pipeline.edits.rollback import RollbackStep, plan_rollback, roll_back
from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import VARIABLE
from sv_pipeline.recovery import all_unfinished, recover
from sv_pipeline.reports.change_log import change_log
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects, two_parts_of_an_object
from sv_pipeline_tests.edits.conftest import EVERYWHERE, Edited, state
from sv_pipeline_tests.edits.test_killed_edits import expire_locks


def merge(edited: Edited, user: str, one: int, other: int) -> int:
    sides = edits.Points.of([one]), edits.Points.of([other])
    return edits.merge(edited.graph, edits.MergeRequest(user, *sides, EVERYWHERE)).operation_id


def split(edited: Edited, user: str, one: int, other: int) -> int:
    sides = edits.Points.of([one]), edits.Points.of([other])
    request = edits.SplitRequest(user, *sides, EVERYWHERE, disallow_isolating_cut=False)
    return edits.split(edited.graph, request).operation_id


def apart(edited: Edited, count: int) -> list[tuple[int, int]]:
    """Pairs of supervoxels of two objects each, no object in two pairs."""
    used: set[int] = set()
    number = {sv: i for i, piece in enumerate(edited.model.components) for sv in piece}
    found = []
    for one, other in edited.pairs(same=False):
        if not {number[one], number[other]} & used:
            used |= {number[one], number[other]}
            found.append((one, other))
    return found[:count]


def told(steps: list[RollbackStep]) -> list[tuple[int, str]]:
    return [(step.operation_id, str(step.verdict)) for step in steps]


def test_a_user_s_edits_are_taken_back_newest_first_and_others_stay(edited: Edited) -> None:
    pairs = apart(edited, 3)
    theirs = merge(edited, "bob", *pairs[0])
    before = state(edited)
    one = merge(edited, "eve", *pairs[1])
    two = merge(edited, "eve", *pairs[2])
    plan = plan_rollback(edited.graph, "eve", 1)
    assert told(plan) == [(two, "undo"), (one, "undo")]
    assert state(edited) != before, "a plan writes nothing"
    done = roll_back(edited.graph, plan, "lead")
    assert told(done) == [(two, "undone"), (one, "undone")]
    assert state(edited) == before
    assert [told(roll_back(edited.graph, plan_rollback(edited.graph, "eve", 1), "lead"))] == [
        [(two, "nothing to do"), (one, "nothing to do")]
    ]
    log = change_log(edited.graph)
    assert log["user"].tolist() == ["bob", "eve", "eve", "lead", "lead"]
    assert theirs in log.index


def test_since_is_a_time_or_a_number(edited: Edited) -> None:
    pairs = apart(edited, 2)
    merge(edited, "eve", *pairs[0])
    two = merge(edited, "eve", *pairs[1])
    when = change_log(edited.graph, user="eve")["time"].iloc[-1]
    assert told(plan_rollback(edited.graph, "eve", two)) == [(two, "undo")]
    assert told(plan_rollback(edited.graph, "eve", when)) == [(two, "undo")]
    assert plan_rollback(edited.graph, "eve", two + 1) == []
    for wrong in ("yesterday", -1, None):
        with pytest.raises(EditRefused):
            plan_rollback(edited.graph, "eve", wrong)  # type: ignore[arg-type]


def test_what_edits_of_others_stand_on_is_named_and_left_until_they_are_gone(edited: Edited) -> None:
    (one, other), (third, _) = apart(edited, 2)
    before = state(edited)
    mine = merge(edited, "eve", one, other)
    standing = merge(edited, "bob", one, third)
    [step] = plan_rollback(edited.graph, "eve", 1)
    assert (str(step.verdict), step.stands_on_it) == ("skipped", (standing,))
    assert str(standing) in step.why
    assert told(roll_back(edited.graph, [step], "lead")) == [(mine, "skipped")]
    edits.undo(edited.graph, standing, "bob")
    assert told(roll_back(edited.graph, plan_rollback(edited.graph, "eve", 1), "lead")) == [(mine, "undone")]
    assert state(edited) == before


def test_what_somebody_builds_on_while_it_is_taken_back_is_left(edited: Edited) -> None:
    (one, other), (third, _) = apart(edited, 2)
    mine = merge(edited, "eve", one, other)
    plan = plan_rollback(edited.graph, "eve", 1)
    standing = merge(edited, "bob", one, third)
    [step] = roll_back(edited.graph, plan, "lead")
    assert (step.operation_id, str(step.verdict), step.stands_on_it) == (mine, "skipped", (standing,))


def test_a_split_of_supervoxels_is_taken_back_and_the_graph_is_sound(tmp_path: Path) -> None:
    graph = editable_graph(tmp_path / "graph", tmp_path / "home")
    one, other = two_parts_of_an_object(graph, of_a_supervoxel=True)
    split = graph.split([one], [other], user="eve")
    graph.merge([one], [other], user="eve")
    done = graph.rollback("eve", split.id, apply=True, by="lead")
    assert done["verdict"].tolist() == ["undone", "undone"]
    assert len(set(graph.supervoxels([one, other]).tolist())) == 1
    assert verify_dataset(graph.dataset).ok


def test_over_others_keeps_what_they_changed(edited: Edited) -> None:
    (one, other), (third, _) = apart(edited, 2)
    merge(edited, "eve", one, other)
    merge(edited, "bob", one, third)
    done = roll_back(edited.graph, plan_rollback(edited.graph, "eve", 1, over_others=True), "lead")
    assert str(done[0].verdict) == "undone"
    pieces = {sv: i for i, piece in enumerate(state(edited)) for sv in piece}
    assert pieces[one] != pieces[other]
    assert pieces[third] in (pieces[one], pieces[other]), "what bob joined stays joined"


def test_what_the_user_or_somebody_else_has_taken_back_is_left(edited: Edited) -> None:
    pairs = apart(edited, 3)
    own = merge(edited, "eve", *pairs[0])
    undo = edits.undo(edited.graph, own, "eve").operation_id
    theirs = merge(edited, "eve", *pairs[1])
    edits.undo(edited.graph, theirs, "bob")
    again = merge(edited, "bob", *pairs[2])
    taken = edits.undo(edited.graph, again, "eve").operation_id
    before = state(edited)
    plan = plan_rollback(edited.graph, "eve", 1)
    assert told(plan) == [(taken, "undo"), (theirs, "nothing to do"), (undo, "nothing to do")]
    assert "by bob has changed it since" in plan[1].why
    roll_back(edited.graph, plan, "lead")
    merged = [piece for piece in state(edited) if piece not in before]
    assert merged == [piece for piece in merged if set(pairs[2]) <= piece], "the merge that eve undid is there again"
    assert len(merged) == 1


@pytest.mark.parametrize("number", range(4))
def test_random_edits_undos_and_redos_are_taken_back_to_where_it_was(edited: Edited, number: int) -> None:
    """Edits of bob, then of eve alone."""
    rng = np.random.default_rng(number)
    pairs = apart(edited, 3)
    for pair in pairs[:2]:
        merge(edited, "bob", *pair)
    before = state(edited)
    made = [merge(edited, "eve", *pairs[2])]
    for seed in range(12):
        with contextlib.suppress(EditRefused, IndexError):
            match rng.integers(4):
                case 0:
                    made.append(merge(edited, "eve", *edited.pairs(same=False, seed=seed + 12 * number)[0]))
                case 1:
                    made.append(split(edited, "eve", *edited.pairs(same=True, seed=seed + 12 * number)[0]))
                case 2:
                    made.append(edits.undo(edited.graph, int(rng.choice(made)), "eve").operation_id)
                case _:
                    made.append(edits.redo(edited.graph, int(rng.choice(made)), "eve").operation_id)
    first = made[0]
    done = roll_back(edited.graph, plan_rollback(edited.graph, "eve", first), "lead")
    assert [step for step in done if str(step.verdict) == "refused"] == []
    assert state(edited) == before


@pytest.mark.parametrize("step", ["created", "write started", "half switched", "succeeded", "cleared"])
def test_a_rollback_that_is_killed_goes_on_where_it_was(tmp_path: Path, step: str) -> None:
    graph = editable_graph(tmp_path / "graph", tmp_path / "home")
    one, other = neighbours_of_two_objects(graph)
    roots = graph.roots([one, other]).tolist()
    assert len(set(roots)) == 2
    made = graph.merge([one], [other], user="eve").id
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(tmp_path / "home")]
    command += ["rollback", "small", "--user", "eve", "--since", str(made), "--apply", "--by", "lead"]
    died = subprocess.run(command, env={**os.environ, VARIABLE: f"{step}:kill"}, check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL
    unfinished = [found.operation_id for found in all_unfinished(graph.graph)]
    if step in ("write started", "half switched"):
        with pytest.raises(ConflictError, match="has begun to write"):
            graph.rollback("eve", made, apply=True, by="lead")
    for operation in unfinished:
        recover(graph.graph, operation, watch_seconds=0)
    expire_locks(graph.graph.table)  # what only begins when its process dies may hold temporal locks
    done = graph.rollback("eve", made, apply=True, by="lead")
    assert done["verdict"].tolist()[0] in ("undone", "nothing to do")
    assert len(set(graph.roots([one, other]).tolist())) == 2
    log = graph.change_log()
    assert log["kind"].tolist() == ["merge", "undo"], "the undo was made once"
