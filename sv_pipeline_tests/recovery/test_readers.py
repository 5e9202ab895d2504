"""Readers beside an edit see the state before it or after it, wherever it stands still; they never wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sv_pipeline.graph.queries import roots
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline.verify import dataset as verification
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.seen import opened, seen

Make = Callable[..., Theatre]
both = pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
STEPS = {
    "supervoxel split": ("new rows written", "voxels written", "half switched", "half switched 1", "succeed"),
    "undo of a supervoxel split": ("voxels written", "half switched", "half switched 2"),
    "merge": ("half switched", "half switched 3"),
    "split": ("half switched", "half switched 2"),
}
EDITS = [(kind, step) for kind, steps in STEPS.items() for step in steps]
COMPLETE = ("succeeded", "released")
SECONDS = 5.0
"""For all that is read, on a busy machine; a stopped edit stays stopped for ever."""


def known_roots(play: Theatre) -> list[int]:
    graph, voxels = play.scene.graph, play.scene.world.voxels()
    return roots(graph, voxels[voxels > 0][:200], missing_ok=True).tolist()[:5]


@both
@pytest.mark.parametrize(("kind", "step"), [*EDITS, *(("supervoxel split", step) for step in COMPLETE)])
def test_a_stopped_edit_is_seen_as_a_whole_or_not_at_all(theatre: Make, backend: str, kind: str, step: str) -> None:
    play = theatre(backend)
    graph, task, ids = opened(play), play.request(kind), known_roots(play)
    before = seen(graph, task, ids)
    pid = play.stop(**task, failpoint=f"{step}:stop")
    assert play.fork_server.poll(pid) is None
    began = time.monotonic()
    beside = [seen(graph, task, ids), seen(opened(play), task, ids)]
    assert time.monotonic() - began < 2 * SECONDS
    assert play.wake(pid) == DONE
    after = seen(graph, task, ids)
    assert after != before
    assert after == seen(opened(play), task, ids)
    for looked in beside:
        assert looked == (after if step in COMPLETE else before)


@both
@pytest.mark.parametrize("step", ["restored", "half switched back", "switched back", "cleaned"])
def test_a_stopped_recovery_is_not_seen_either(theatre: Make, backend: str, step: str) -> None:
    play = theatre(backend)
    graph, task, ids = opened(play), play.request("supervoxel split"), known_roots(play)
    before = seen(graph, task, ids)
    assert play.do(**task, failpoint="half switched:kill") == -9
    assert seen(graph, task, ids) == before
    (one,) = find_unfinished(play.scene.graph)
    pid = play.stop(do="recover", operation=one.operation_id, failpoint=f"{step}:stop")
    assert play.fork_server.poll(pid) is None
    assert seen(graph, task, ids) == before
    assert play.wake(pid) == DONE
    assert seen(graph, task, ids) != before


def test_verify_tells_a_half_written_edit_from_a_fault(theatre: Make) -> None:
    play = theatre()
    pid = play.stop(**play.request("supervoxel split"), failpoint="half switched:stop")
    report = verification.verify_dataset(opened(play).dataset)
    assert not report.ok
    (one,) = find_unfinished(play.scene.graph)
    for result in report.results:
        noted = [str(warning) for warning in result.warnings if "half written" in str(warning)]
        assert len(noted) == (not result.passed)
        assert all(f"operation {one.operation_id} is half written" in note for note in noted)
    assert play.wake(pid) == DONE
    assert verification.verify_dataset(opened(play).dataset).ok


def test_verify_looks_again_when_the_graph_was_edited_meanwhile(theatre: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    play = theatre()
    dataset = opened(play).dataset
    pid = play.stop(**play.request("supervoxel split"), failpoint="half switched:stop")
    real, rounds = verification.verify, []

    def verify_and_let_go(*args: object, **options: object) -> object:
        report = real(*args, **options)  # type: ignore[arg-type]
        rounds.append(report.failed)
        if len(rounds) == 1:
            assert play.wake(pid) == DONE
        return report

    monkeypatch.setattr(verification, "verify", verify_and_let_go)
    report = verification.verify_dataset(dataset)
    assert report.ok, report.summary()
    assert rounds[0]
    assert len(rounds) == 2
    assert {result.name for result in report.results} > set(rounds[0])
