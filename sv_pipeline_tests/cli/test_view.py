"""The command that serves a viewer: its options, its address, and its end."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import requests

from sv_pipeline.cli import view
from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.reports.viewer_links import VIEWER_VARIABLE, viewer_link
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.viewer.conftest import built as built
from sv_pipeline_tests.viewer.conftest import graph as graph


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--at", "1", "--operation", "2"], "not both"),
        (["--edit", "--at", "1"], "the past cannot be edited"),
        (["--edit", "--operation", "1"], "the past cannot be edited"),
        (["--user", "somebody"], "needs --edit"),
        (["--at", "yesterday"], "is neither a time nor the number of an operation"),
        (["--position", "1,2"], "Write x,y,z"),
        (["--port", "99999"], "99999"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cli: CommandLine, options: list[str], said: str) -> None:
    answer = cli("view", "tissue", *options)
    assert answer.code == 2
    assert said in answer.err


def test_a_graph_that_is_not_known_is_one_message(cli: CommandLine) -> None:
    cli.home.mkdir()
    answer = cli("view", "nothing")
    assert answer.code == 1
    assert "graph 'nothing' is not known" in answer.err


def test_an_operation_that_is_not_known_is_one_message(cli: CommandLine, graph: OpenGraph) -> None:
    cli.home = graph.dataset.home
    answer = cli("view", graph.dataset.graph_id, "--operation", 7)
    assert answer.code == 1
    assert "operation 7" in answer.err


def test_what_cannot_be_shown_or_edited_is_said_before_anything_is_served(cli: CommandLine, graph: OpenGraph) -> None:
    cli.home = graph.dataset.home
    answer = cli("view", graph.dataset.graph_id, "--position", "-5,100000,3")
    assert answer.code == 1
    assert "outside the volume" in answer.err
    registered = Path(graph.dataset.home) / "graphs" / f"{graph.dataset.graph_id}.json"
    registered.write_text(registered.read_text().replace('"READ_ONLY": false', '"READ_ONLY": true'))
    answer = cli("view", graph.dataset.graph_id, "--edit")
    assert answer.code == 1
    assert "is read-only" in answer.err


def test_ctrl_c_ends_well_as_soon_as_the_address_is_printed() -> None:
    closed = []
    with view._until_ctrl_c(lambda: closed.append(True)):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    assert closed


def test_the_viewer_is_served_until_ctrl_c(graph: OpenGraph) -> None:
    process = builds.start_cli(graph.dataset.home, "view", graph.dataset.graph_id, "--edit")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        assert requests.get(url, timeout=30).status_code == 200
        process.send_signal(signal.SIGINT)
        end = builds.end_of(process)
    finally:
        builds.kill_group(process)
    assert end.code == 0, end.err
    assert end.err.splitlines()[-1] == "stopped."


def test_a_viewer_for_everybody_needs_no_graph_and_opens_links(
    graph: OpenGraph, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (["--edit"], ["--position", "1,2,3"], ["--operation", "1"]):
        answer = cli("view", *options)
        assert answer.code == 2
        assert "without a graph" in answer.err
    process = builds.start_cli(graph.dataset.home, "view")
    try:
        assert process.stdout is not None
        monkeypatch.setenv(VIEWER_VARIABLE, process.stdout.readline().strip())
        opened = requests.get(viewer_link(graph.dataset), timeout=30)
        assert (opened.status_code, "/v/" in opened.url) == (200, True)
        process.send_signal(signal.SIGINT)
        end = builds.end_of(process)
    finally:
        builds.kill_group(process)
    assert end.code == 0, end.err
    assert end.err.splitlines()[-1] == "stopped."


def test_a_port_that_is_taken_is_one_message(graph: OpenGraph) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = builds.end_of(builds.start_cli(graph.dataset.home, "view", graph.dataset.graph_id, "--port", port))
    assert said.code == 1
    assert f"127.0.0.1:{port}" in said.err
