"""A request with a token becomes one edit, whoever dies, and however often it is made again."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sv_pipeline import edits
from sv_pipeline.edits import CommittedEdit, EditRefused, tokens
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph import queries
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects, two_parts_of_an_object
from sv_pipeline_tests.edits.conftest import Edited, merge_request
from sv_pipeline_tests.edits.conftest import make_graph as make_graph
from sv_pipeline_tests.graph.compare import dump


@pytest.fixture
def graph(tmp_path: Path) -> OpenGraph:
    return editable_graph(tmp_path, tmp_path / "home")


def made(graph: OpenGraph) -> list[str]:
    table = graph.operations()
    return table[table["status"] == "SUCCESS"]["kind"].tolist()


def test_a_token_makes_one_edit_and_answers_the_same_each_time(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merged = graph.merge([one], [other], token="a")
    again = graph.merge([one], [other], token="a")
    assert (again.id, again.kind, again.user) == (merged.id, merged.kind, merged.user)
    assert again.roots.tolist() == merged.roots.tolist()
    assert again.old_roots.tolist() == merged.old_roots.tolist()
    assert again.edges.tolist() == merged.edges.tolist()
    assert again.logical_time == merged.logical_time
    assert graph.find_edit(token="a") is not None
    assert graph.find_edit(token="b") is None

    undone = graph.undo(merged.id, token="b")
    assert graph.undo(merged.id, token="b").id == undone.id
    # The same request of another token is another edit.
    assert graph.merge([one], [other], token="c").id != merged.id
    assert made(graph) == ["merge", "undo", "merge"]


PROGRAM = """
import os, signal, sys
import sv_pipeline
from sv_pipeline import edits

home, kind, token, *points = sys.argv[1:]
graph = sv_pipeline.open_graph("small", home)
whole = getattr(edits, kind)

def edit_and_die(*arguments, **options):
    whole(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(edits, kind, edit_and_die)
sides = [[tuple(map(int, p.split(",")))] for p in points]
getattr(graph, kind)(*sides, user="me", token=token) if len(sides) == 2 else graph.undo(1, user="me", token=token)
"""


def test_killed_after_its_commit_and_started_again_it_finds_what_it_made(graph: OpenGraph) -> None:
    one, other = two_parts_of_an_object(graph)
    sides = [",".join(map(str, p)) for p in (one, other)]
    for kind, points in (("split", sides), ("undo", [])):
        arguments = [sys.executable, "-c", PROGRAM, graph.dataset.home, kind, f"run-{kind}", *points]
        died = subprocess.run(arguments, capture_output=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert graph.find_edit(token="run-split") is None  # it died before it could tell
    assert graph.split([one], [other], user="me", token="run-split").id == 1
    assert graph.undo(1, user="me", token="run-undo").id == 2
    assert made(graph) == ["split", "undo"]
    assert verify_dataset(graph.dataset).ok


def test_an_edit_that_died_while_it_wrote_is_not_made_a_second_time(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    merged = graph.merge([one], [other], user="me", token="a")
    table = graph.dataset.table
    started = columns.OPERATION_STATUS.set(int(OperationStatus.WRITE_STARTED))
    table.mutate([RowMutation(keys.node_key(merged.id), [started])])
    table.mutate([RowMutation(b"sv_pipeline:request:a", [DeleteCells(tokens.OPERATION.key)])])
    with pytest.raises(ConflictError, match="recover"):
        graph.merge([one], [other], user="me", token="a")
    assert len(graph.operations()) == 1


def test_what_others_did_meanwhile_is_not_taken_for_it(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    dataset = graph.dataset.graph

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.edit_once(dataset, "a", lambda _: False, die)  # type: ignore[arg-type]
    theirs = graph.merge([one], [other], user="them")
    graph.undo(theirs.id, user="them")
    mine = graph.merge([one], [other], user="me", token="a")
    assert mine.id == 3
    assert mine.user == "me"


def test_a_refused_request_leaves_no_token(graph: OpenGraph) -> None:
    one, other = neighbours_of_two_objects(graph)
    for _ in range(2):
        with pytest.raises(EditRefused):
            graph.split([one], [other], token="a")
    assert not [key for key in dump(graph.dataset.table) if key.startswith(b"sv_pipeline:request:")]
    graph.merge([one], [other], token="a")


def test_tokens_work_in_every_backend(make_graph: Callable[..., Edited]) -> None:
    edited = make_graph()
    graph = edited.graph
    source, sink = edited.pairs(same=False)[0]
    asked: list[int] = []

    def merge() -> CommittedEdit:
        asked.append(1)
        return edits.merge(graph, merge_request([source], [sink]))

    def merge_and_die() -> CommittedEdit:
        merge()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.edit_once(graph, "a", lambda operation: operation.kind == "merge", merge_and_die)
    assert tokens.is_begun(graph, "a")
    assert tokens.operation_of(graph, "a") is None
    for _ in range(2):
        found = tokens.edit_once(graph, "a", lambda operation: operation.kind == "merge", merge)
        assert found.roots.tolist() == queries.roots(graph, [source])[:1].tolist()
    assert len(asked) == 1
    assert not tokens.is_begun(graph, "b")
    with pytest.raises(EditRefused):
        tokens.edit_once(graph, "b", lambda operation: operation.kind == "merge", merge)
    assert not tokens.is_begun(graph, "b")


@pytest.mark.parametrize("token", ["", "a b", "x" * 201, "ä", "a/b"])
def test_tokens_are_plain_names(graph: OpenGraph, token: str) -> None:
    one, other = neighbours_of_two_objects(graph)
    with pytest.raises(EditRefused, match="token"):
        graph.merge([one], [other], token=token)
    assert made(graph) == []
