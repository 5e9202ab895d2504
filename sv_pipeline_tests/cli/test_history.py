"""The change log and the rollback from a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects
from sv_pipeline_tests.ingest.builds import CommandLine


@pytest.fixture
def graph(cli: CommandLine, tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path / "graph", cli.home)


def test_the_change_log_of_a_root_and_of_a_user(cli: CommandLine, graph: OpenGraph) -> None:
    assert "no edits" in cli("change-log", "small").out
    one, other = neighbours_of_two_objects(graph)
    merge = graph.merge([one], [other], user="ada")
    undo = graph.undo(merge.id, user="bob")
    [row] = json.loads(cli("change-log", "small", "--root", merge.roots[0], "--json").out)
    assert (row["operation_id"], row["kind"], row["user"]) == (merge.id, "merge", "ada")
    assert row["before"] == sorted(merge.old_roots.tolist())
    assert row["after"] == merge.roots.tolist()
    assert row["source"] == [list(one)]
    here = json.loads(cli("change-log", "small", "--at", ",".join(map(str, one)), "--json").out)
    assert [row["operation_id"] for row in here] == [merge.id, undo.id]
    assert [r["user"] for r in json.loads(cli("change-log", "small", "--user", "bob", "--json").out)] == ["bob"]
    assert json.loads(cli("change-log", "small", "--since", undo.id + 1, "--json").out) == []
    said = cli("change-log", "small").out
    assert "before" in said
    assert str(merge.roots[0]) in said
    wrong = cli("change-log", "small", "--root", int(graph.supervoxels([one])[0]))
    assert wrong.code == 1
    assert "is not a root" in wrong.err


def test_a_rollback_is_a_dry_run_until_it_is_applied(cli: CommandLine, graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merge = graph.merge([one], [other], user="eve")
    assert cli("rollback", "small", "--user", "eve").code == 2
    said = cli("rollback", "small", "--user", "eve", "--since", merge.id).out
    assert "1 edit would be undone; nothing was written" in said
    assert len(graph.operations()) == 1
    [step] = json.loads(cli("rollback", "small", "--user", "eve", "--since", merge.id, "--apply", "--json").out)
    assert (step["verdict"], step["undone_by"]) == ("undone", merge.id + 1)
    [again] = json.loads(cli("rollback", "small", "--user", "eve", "--since", merge.id, "--apply", "--json").out)
    assert again["verdict"] == "nothing to do"
    assert "made no edits" in cli("rollback", "small", "--user", "adam", "--since", 1).out
