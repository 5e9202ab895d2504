"""Waiting for locks of the system: bounds, notes, and what is said."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sv_pipeline import waiting
from sv_pipeline.errors import ConfigError, UnavailableError
from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import GUARD, commit_guard
from sv_pipeline.waiting import Holder, Wait, at_most, doing, lock_wait, locked_by

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1 s"])
def test_a_bound_that_is_no_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(waiting.VARIABLE, text)
    with pytest.raises(ConfigError, match=waiting.VARIABLE):
        lock_wait()


def test_the_bound_is_a_setting_and_can_be_shortened_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(waiting.VARIABLE, raising=False)
    assert lock_wait() == waiting.DEFAULT_SECONDS
    monkeypatch.setenv(waiting.VARIABLE, "2.5")
    with at_most(1):
        assert lock_wait() == 1
    with at_most(10):
        assert lock_wait() == 2.5
    assert lock_wait() == 2.5


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"host": "h"}', b"\xff", b" " * 100])
def test_what_is_no_note_is_none(note: bytes) -> None:
    assert Holder.decode(note) is None


def test_a_note_says_what_the_process_does() -> None:
    with doing("commits operation 12 of graph g"):
        holder = Holder.decode(Holder.this_process().encode().ljust(waiting.NOTE_BYTES))
    assert holder is not None
    assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
    assert f"process {os.getpid()} on host {holder.host}, which commits operation 12 of graph g, since" in str(holder)
    assert "which runs" in str(Holder.this_process())
    with doing("ü" * 1000):
        assert len(Holder.this_process().encode()) <= waiting.NOTE_BYTES


def test_a_long_wait_is_logged_and_a_longer_one_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(waiting.VARIABLE, "0.5")
    monkeypatch.setattr(waiting, "SAY_AFTER", 0.1)
    wait, began = Wait("the door", lambda: Holder("far", 7, "commits operation 3", 0.0)), time.monotonic()

    def wait_for_ever() -> None:
        while True:
            wait.pause()

    with caplog.at_level(logging.WARNING), pytest.raises(UnavailableError, match="process 7 on host far") as error:
        wait_for_ever()
    assert 0.4 < time.monotonic() - began < 5
    assert "waiting for the door, locked by process 7 on host far, which commits operation 3" in caplog.text
    assert "kill -9 7" in str(error.value)


def test_a_guard_without_a_note_names_the_process_that_the_system_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(waiting.VARIABLE, "0.2")
    with commit_guard(kv.as_url(tmp_path)):
        pass  # leaves the note of a process that does not hold it any more
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / GUARD)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = locked_by(tmp_path / GUARD, "FLOCK")
        assert found is not None
        assert found.pid == other.pid
        with (
            pytest.raises(UnavailableError, match=f"the commit guard of .* by process {other.pid} on host"),
            commit_guard(kv.as_url(tmp_path)),
        ):
            raise AssertionError("not to be reached")
        other.kill()
    with commit_guard(kv.as_url(tmp_path)):
        assert locked_by(tmp_path / GUARD, "FLOCK") is not None
        with (tmp_path / GUARD).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
