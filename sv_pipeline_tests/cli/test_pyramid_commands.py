"""Coarser mips from a terminal: how far they are behind, and how they catch up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline_tests.defs.edited import assert_mips_right, damage, edit
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine


@pytest.fixture
def built(cli: CommandLine, tmp_path: Path) -> Dataset:
    assert cli("ingest", builds.config_file(tmp_path / "tissue.yaml", builds.raw_config(tmp_path))).code == 0
    return open_dataset("tissue", str(cli.home))


def test_the_lag_is_told_and_readers_see_it_until_the_mips_have_caught_up(cli: CommandLine, built: Dataset) -> None:
    graph = built.graph_id
    assert cli("lag", graph).out.strip() == "up to date"
    edit(built, 1, age=40)
    assert "of 1 operation behind, the oldest 4" in cli("lag", graph).out
    assert json.loads(cli("lag", graph, "--json").out)["entries"] == 1
    assert [m["pending"] for m in json.loads(cli("info", graph, "--json").out)["mips"]][:2] == [False, True]
    assert "pending: behind the latest edits" in cli("info", graph).out
    said = cli("downsample", graph)
    assert said.code == 0
    assert "of 1 operation in" in said.out
    assert "storage chunks were different" in said.out
    assert cli("lag", graph).out.strip() == "up to date"
    assert "nothing to do" in cli("downsample", graph).out
    assert "behind operation 77" in cli("downsample", graph, "--op", 77).out
    assert "pending: behind" not in cli("info", graph).out
    assert_mips_right(built)


def test_one_operation_can_be_asked_for(cli: CommandLine, built: Dataset) -> None:
    edit(built, 1)
    edit(built, 2, at=(20, 10, 8))
    assert json.loads(cli("downsample", built.graph_id, "--op", 2, "--json").out)["operations"] == [2]
    assert json.loads(cli("lag", built.graph_id, "--json").out)["entries"] == 1


def test_all_mips_are_made_again_whether_they_are_listed_or_not(cli: CommandLine, built: Dataset) -> None:
    damage(built, 1)
    damage(built, 2)
    assert cli("downsample", built.graph_id).code == 0
    assert json.loads(cli("downsample", built.graph_id, "--all", "--json").out)["complete"]
    assert_mips_right(built)


def test_all_and_one_operation_exclude_each_other(cli: CommandLine, built: Dataset) -> None:
    said = cli("downsample", built.graph_id, "--all", "--op", 3)
    assert said.code == 2
    assert "either --all or --op" in said.err
