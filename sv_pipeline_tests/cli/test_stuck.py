"""The commands an operator types when an edit got stuck."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sv_pipeline.operations import ownership
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.table.columns import INDEFINITE_LOCK
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.conftest import fork_server as fork_server
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre

KILLED = -9


@pytest.fixture
def play(theatre: Callable[..., Theatre], cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Theatre:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    return theatre("sqlite", tmp_path / "home")


def test_listed_shown_dry_run_and_recovered(play: Theatre, cli: CommandLine) -> None:
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill", user="emma") == KILLED
    assert "nothing is stuck in stage (older than 600 s; --min-age 0 also" in cli("stuck", "list", "stage").out
    (one,) = json.loads(cli("stuck", "list", "stage", "--min-age", "0", "--json").out)
    assert (one["operation"], one["user"], one["would"]) == (15, "emma", "recover")
    assert "emma" in cli("stuck", "list", "stage", "--min-age", "0").out
    shown = cli("stuck", "show", "stage", 15).out
    assert "7 of 7 roots and chunks" in shown
    before = play.scene.rows()
    assert "would" in cli("stuck", "recover", "stage", 15, "--dry-run").out
    assert play.scene.rows() == before
    said = cli("stuck", "recover", "stage", 15)
    assert said.code == 0, said.err
    assert "replayed" in said.out
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
    again = cli("stuck", "recover", "stage", 15)
    assert again.code == 0
    assert "is finished" in again.err


def test_all_goes_on_after_a_failure_and_names_it(play: Theatre, cli: CommandLine) -> None:
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    assert play.do(**play.request("elsewhere"), failpoint="half switched:kill") == KILLED
    key = next(k for k in play.scene.indefinite_locks() if len(k) == 10)
    play.scene.table.mutate([RowMutation(key, [DeleteCells(INDEFINITE_LOCK.key)])])
    said = cli("stuck", "recover", "stage", "--all", "--min-age", "0")
    assert said.code != 0
    assert "the recovery of 1 of 2 failed: 15" in said.err
    assert [one.operation_id for one in find_unfinished(play.scene.graph)] == [15]
    abandon = ("stuck", "abandon", "stage", 15, "--reason", "it is not wanted", "--take-locks", "--yes")
    assert "abandoned" in cli(*abandon).out
    again = cli(*abandon)
    assert again.code == 0
    assert "it is finished already" in again.err


def test_mistakes_are_told(play: Theatre, cli: CommandLine) -> None:
    assert "name one operation" in cli("stuck", "recover", "stage").err
    assert "is no duration" in cli("stuck", "list", "stage", "--min-age", "soon").err
