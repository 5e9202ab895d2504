"""A process that is stopped while it holds a lock of the system: others wait for a bounded time and then name it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sv_pipeline import waiting
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.recovery import find_unfinished, list_stuck
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.reports.edit_numbers import operations_table
from sv_pipeline.testing.harness.actors import BROKEN, DONE
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.seen import opened

Make = Callable[..., Theatre]
WAIT = 1.5
ENOUGH = 15.0
"""Seconds, for what takes WAIT and little else, on a busy machine."""


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(waiting.VARIABLE, str(WAIT))


def in_time(play: Theatre, pid: int, **task: object) -> str:
    """What a process says that needs the lock which ``pid`` holds; it does not wait for long."""
    began = time.monotonic()
    code, said = play.said(**task)
    assert code == BROKEN, said
    assert time.monotonic() - began < ENOUGH
    last = said.strip().splitlines()[-1]
    assert "UnavailableError" in last
    assert f"process {pid} on host {socket.gethostname()}" in last
    assert "it is stopped" in last
    assert f"kill -CONT {pid}" in last
    return last


@pytest.mark.parametrize("backend", ["sqlite", "bigtable"])
@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_stopped_with_the_commit_guard(theatre: Make, backend: str, end: signal.Signals) -> None:
    play = theatre(backend)
    pid = play.stop(**play.request("supervoxel split"), failpoint="commit guard:stop")
    assert play.fork_server.poll(pid) is None
    said = in_time(play, pid, **play.request("supervoxel split elsewhere"))
    assert "which commits the voxels of operation" in said
    first, second = (one.operation_id for one in find_unfinished(play.scene.graph))
    assert [one.operation_id for one in list_stuck(play.scene.graph)] == [first, second]
    assert dry_run(play.scene.graph, second).to_dict()["operation"] == second
    in_time(play, pid, do="recover", operation=second)
    # Nobody keeps it from being claimed by the next one.
    key = open_key(second)
    rows = [play.scene.table.read_rows([key]), time.sleep(0.2), play.scene.table.read_rows([key])]
    assert rows[0] == rows[2]
    os.kill(pid, end)
    assert play.fork_server.wait(pid) == (DONE if end is signal.SIGCONT else -9)
    for one in find_unfinished(play.scene.graph):
        assert play.do(do="recover", operation=one.operation_id) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split", "supervoxel split elsewhere")


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_stopped_in_the_middle_of_a_write_to_sqlite(theatre: Make, tmp_path: Path, end: signal.Signals) -> None:
    play = theatre(home=tmp_path / "home")
    assert play.do(**play.request("elsewhere"), failpoint="half switched:kill") == -9
    pid = play.stop(**play.request("merge"), failpoint="table write:stop")
    assert play.fork_server.poll(pid) is None
    in_time(play, pid, **play.request("split"))
    (one,) = list_stuck(play.scene.graph)
    in_time(play, pid, do="recover", operation=one.operation_id)
    began = time.monotonic()
    reader = opened(play)
    assert len(reader.roots(play.request("merge")["source"])) == 1
    assert len(operations_table(play.scene.graph)) > 0
    assert dry_run(play.scene.graph, one.operation_id).found.operation_id == one.operation_id
    assert time.monotonic() - began < WAIT + 5
    listed = command(tmp_path / "home", "stuck", "list", "stage", "--min-age", "0s")
    assert f"{one.operation_id:>8}  " in listed.stdout, listed
    assert listed.returncode == 0
    os.kill(pid, end)
    assert play.fork_server.wait(pid) == (DONE if end is signal.SIGCONT else -9)
    assert play.do(do="recover", operation=one.operation_id) == DONE
    if end is signal.SIGKILL:
        assert play.do(**play.request("merge")) == DONE
    play.scene.prove()
    assert play.scene.objects() == play.twin("elsewhere", "merge")


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(home), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
