"""One damaged file anywhere: a message that names it, an answer that is as before, or a verify that finds it."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from sv_pipeline.cli.main import DEFECT_EXIT_CODE
from sv_pipeline_tests.damage import world as worlds
from sv_pipeline_tests.damage.world import DAMAGES, GRAPH, World

SAMPLE = 6
"""Files, beside one of each kind that a rule is known for."""
IMPORTANT = (
    "graphs/small.json",
    "cells.sqlite",
    "small/manifest.ocdbt",
    "complete.json",
    ".forks/small",
    "watershed/info",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    before = os.environ.get("SV_PIPELINE_PATIENCE")
    os.environ["SV_PIPELINE_PATIENCE"] = "2"
    try:
        return worlds.build(tmp_path_factory.mktemp("damage") / "world")
    finally:
        os.environ.pop("SV_PIPELINE_PATIENCE")
        if before is not None:
            os.environ["SV_PIPELINE_PATIENCE"] = before


def chosen(world: World) -> list[tuple[str, str]]:
    chance = random.Random(9)
    important = [name for name in world.files if name.endswith(IMPORTANT)]
    others = chance.sample([name for name in world.files if name not in important], SAMPLE)
    return [(name, how) for name in (*important, *others) for how in chance.sample(DAMAGES, 2)]


def test_no_command_shows_a_foreign_error_or_answers_otherwise_without_a_finding(world: World) -> None:
    commands = {name: world.reads[name] for name in ("status", "roots", "info", "stuck list", "lag", "verify")}
    seen: Counter[str] = Counter()
    for file, how in chosen(world):
        outcomes = list(world.look(file, how, commands))
        kinds = worlds.verdicts(outcomes)
        seen += kinds
        bad = {k: n for k, n in kinds.items() if k in ("traceback or defect", worlds.WRONG)}
        assert not bad, (file, how, [o for o in outcomes if o.code == DEFECT_EXIT_CODE or not o.as_before])
        if how in ("empty", "garbage") and file.endswith(IMPORTANT):
            assert kinds["verify names it"], (file, how, [o.said for o in outcomes if o.command == "verify"])
    assert seen["refused, names the file"] > 20, seen


@pytest.mark.parametrize("how", ["half", "gone"])
def test_a_damaged_data_file_of_the_base_is_named_although_the_fork_is_read(world: World, how: str) -> None:
    """The base refers to the watershed's chunks: these are its data files."""
    files = [name for name in world.files if "/watershed/16_16_40/" in name]
    assert len(files) == 8
    commands = {name: world.reads[name] for name in ("roots", "verify")}
    refused = []
    for file in files:
        outcomes = {outcome.command: outcome for outcome in world.look(file, how, commands)}
        assert outcomes["verify"].code == 1
        assert outcomes["verify"].names_it, outcomes["verify"].said
        if outcomes["roots"].code == 1:
            assert outcomes["roots"].names_it, outcomes["roots"].said
            refused.append(file)
    assert refused


def test_edits_of_a_damaged_fork_are_errors_of_ours_and_write_nothing(world: World) -> None:
    manifest = next(name for name in world.files if name.endswith("small/manifest.ocdbt"))
    for outcome in world.look(manifest, "half", world.writes):
        assert outcome.code == 1, outcome.said
        assert "Traceback" not in outcome.said
        assert outcome.names_it or outcome.command in ("undo",), outcome.said


def test_what_nobody_has_foreseen_is_one_sentence_with_the_details_in_a_file(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such thing at https://me:hunter22@host/?token=abcdef")

    monkeypatch.setenv("SV_PIPELINE_LOGS", str(tmp_path / "logs"))
    monkeypatch.setattr("sv_pipeline.reports.status.graph_status", broken)
    code, out, err = world.run(["status", GRAPH])
    assert (code, out) == (DEFECT_EXIT_CODE, "")
    assert len(err.splitlines()) == 1
    (details,) = (tmp_path / "logs").iterdir()
    assert str(details) in err
    assert "RuntimeError" in details.read_text()
    assert details.stat().st_mode & 0o777 == 0o600
    assert "hunter22" not in err + details.read_text()
    code, _, err = world.run(["--debug", "status", GRAPH])
    assert "Traceback" in err


def test_the_answers_of_the_undamaged_installation_are_sound(world: World) -> None:
    code, out, _ = world.run(world.reads["verify"])
    assert code == 0, out
    code, out, err = world.run(world.reads["roots"])
    assert code == 0, err
    assert json.loads(out)
    assert sys.argv[0] != "sv-pipeline"
