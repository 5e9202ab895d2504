"""A graph is built by many or removed by one, never both; the lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sv_pipeline.errors import ConflictError
from sv_pipeline.storage import presence
from sv_pipeline.storage.presence import building, removing, require_unbuilt

KILLED = """
import os, signal, sys
from sv_pipeline.storage import presence
from sv_pipeline.storage.presence import building
with building(sys.argv[1], "small"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(tmp_path: Path) -> str:
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "small.json").touch()
    return str(tmp_path)


def test_many_build_or_one_removes(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "PATIENCE", 60.0)
    inside: list[str] = []
    refused: list[str] = []
    guard = threading.Lock()

    def enter(what: str) -> None:
        try:
            with building(home, "small") if what == "build" else removing(home, "small"):
                with guard:
                    assert "remove" not in inside
                    assert what == "build" or not inside
                    inside.append(what)
                time.sleep(0.001)
                with guard:
                    inside.remove(what)
        except ConflictError:
            refused.append(what)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(enter, "remove" if i % 8 == 0 else "build") for i in range(160)]:
            done.result()
    assert "build" not in refused, "a builder waits for those that only look"
    assert [file.name for file in (Path(home) / "graphs").iterdir()] == ["small.json"], "the last one removes the file"


def test_a_killed_builder_holds_nothing(home: str) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, home], check=False).returncode == -9
    before = list((Path(home) / "graphs").iterdir())
    require_unbuilt(home, "small")
    assert list((Path(home) / "graphs").iterdir()) == before, "a look changes nothing"
    with removing(home, "small"):
        for another in (lambda: require_unbuilt(home, "small"), lambda: removing(home, "small").__enter__()):
            with pytest.raises(ConflictError, match="graph 'small' is being retired by another process"):
                another()
    with building(home, "small"), building(home, "other"), removing(home, "third"):
        pass


def test_those_who_take_a_look_stop_nobody(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "GLANCE", 60.0)
    (Path(home) / "graphs" / "small.__lock").touch()  # a killed process left it

    def look(times: int) -> None:
        for _ in range(times):
            require_unbuilt(home, "small")

    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(look, 50) for _ in range(4)]
        with removing(home, "small"):
            pass
        for done in looks:
            done.result()


def test_a_builder_that_waited_for_a_retirement_builds_nothing_that_nobody_finds(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "PATIENCE", 60.0)
    waits = threading.Event()
    monkeypatch.setattr(presence.time, "sleep", lambda seconds: waits.set())

    def build() -> None:
        with building(home, "small"):
            raise AssertionError("it was built")

    with ThreadPoolExecutor(1) as pool:
        with removing(home, "small"):
            built = pool.submit(build)
            assert waits.wait(60)
            (Path(home) / "graphs" / "small.json").unlink()
        with pytest.raises(ConflictError, match="has just been retired"):
            built.result()


def test_a_file_system_that_locks_only_for_those_who_may_write(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def of_nfs(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with building(home, "small"), pytest.raises(ConflictError, match="is being built"), removing(home, "small"):
        raise AssertionError("it was removed")
    with removing(home, "small"):
        pass
    assert [file.name for file in (Path(home) / "graphs").iterdir()] == ["small.json"]


@pytest.mark.parametrize("place", ["memory://nowhere/", "/nonexistent/home"])
def test_where_there_are_no_locks_nobody_is_stopped(place: str) -> None:
    with building(place, "small"), removing(place, "small"):
        require_unbuilt(place, "small")
