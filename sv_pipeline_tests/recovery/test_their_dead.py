"""What workers of PyChunkedGraph leave when they die, at every point of their order of writes: found, and healed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.recovery import all_unfinished, claiming, foreign, recover
from sv_pipeline.recovery.assessment import State, assess
from sv_pipeline_tests.recovery.actors import DONE
from sv_pipeline_tests.recovery.conftest import Theatre

KILLED = -9
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
Make = Callable[..., Theatre]

LOCKING = ["half locked", "locked"]
SHARES = [f"rows:{share}" for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
ENDING = ["succeeded"]
KINDS = ["merge", "merge by hand", "split", "undo of a merge"]


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are old at once, and nobody watches for long."""
    monkeypatch.setattr(claiming, "observation_seconds", lambda: 0.01)
    for module in (claiming, foreign):
        monkeypatch.setattr(module, "quiet_seconds", lambda _graph: 0.0)
    monkeypatch.setattr("sv_pipeline.operations.other_software.quiet_seconds", lambda _graph: 0.0)


def theirs(play: Theatre, kind: str, **how: Any) -> int:
    """An edit by a worker of theirs; its exit code."""
    code, said = play.said(**play.request(kind), theirs=how)
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
