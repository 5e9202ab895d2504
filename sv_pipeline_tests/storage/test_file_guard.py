"""Folders on disk survive writers that are killed while they write a file."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import UnavailableError
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv
from sv_pipeline.storage.context import reset_context
from sv_pipeline.storage.file_guard import clear_stale_lock
from sv_pipeline.waiting import VARIABLE
from sv_pipeline_tests.segmentation.fork.test_fork import at_point, paint
from sv_pipeline_tests.segmentation.volumes import Watershed, make_watershed

WRITE_FOR_EVER = """
import sys, tensorstore as ts
store = ts.KvStore.open(sys.argv[1]).result()
value = b"x" * 50_000_000
while True:
    store["key"] = value
"""


@pytest.fixture(params=["single", "numbered"])
def forked(request: pytest.FixtureRequest, tmp_path: Path) -> Watershed:
    watershed = make_watershed(str(tmp_path / "a folder"), size=(40, 40, 20), manifest_kind=request.param)
    watershed.populate()
    Fork(watershed.url, "g").create()
    return watershed


def leave_a_lock(folder: Path) -> None:
    """What a writer leaves that is killed just before it renames its (longer) manifest."""
    manifest = max(folder.glob("manifest.[0-9]*"), default=folder / "manifest.ocdbt")
    following = manifest.name
    if following != "manifest.ocdbt":
        following = f"manifest.{int(following.removeprefix('manifest.'), 16) + 1:016x}"
    (folder / f"{following}.__lock").write_bytes(manifest.read_bytes() + b"\xff" * 5000)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and return when it stands: the signal alone takes effect some time after it was sent."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock file: between its creation and its locking nobody does."""
    try:
        with lock.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def stop_while_it_holds(process: subprocess.Popen[bytes], lock: Path) -> None:
    """Stop a process that takes a lock again and again at a moment at which it holds it."""
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        stop(process)
        if is_held(lock):
            return
        process.send_signal(signal.SIGCONT)


def test_a_value_is_not_followed_by_the_rest_of_a_killed_writers(tmp_path: Path) -> None:
    for write in (kv.write_bytes, kv.write_if_absent):
        folder = tmp_path / write.__name__
        folder.mkdir()
        (folder / "key.__lock").write_bytes(b"x" * 1000)
        write(str(folder), "key", b"value")
        assert (folder / "key").read_bytes() == b"value"
        assert [path.name for path in folder.iterdir()] == ["key"]


def test_a_fork_takes_commits_after_a_writer_was_killed_in_its_own(forked: Watershed) -> None:
    url, folder = forked.url, Path(kv.as_url(forked.url).removeprefix("file://").replace("%20", " ")) / "ocdbt/g"
    opened_before = Fork(url, "g").store()
    before = Fork(url, "g").generation()
    for n in range(3):
        leave_a_lock(folder)
        with opened_before.transaction() as transaction:
            opened_before.array(0).with_transaction(transaction)[10, 0, 5] = np.uint64(70 + n)
        reset_context()
        assert at_point(url, "g") == 70 + n
        assert Fork(url, "g").generation() == before + 1 + n
        assert not list(folder.glob("manifest*.__lock"))


def test_a_manifest_with_a_killed_writers_end_is_repaired_when_the_store_is_opened(forked: Watershed) -> None:
    url, folder = forked.url, Path(kv.as_url(forked.url).removeprefix("file://").replace("%20", " ")) / "ocdbt/g"
    paint(url, "g", 77)
    manifest = max(folder.glob("manifest.[0-9]*"), default=folder / "manifest.ocdbt")
    content = manifest.read_bytes()
    manifest.write_bytes(content + b"\xff" * 100)
    reset_context()
    Fork(url, "g").store()
    assert manifest.read_bytes() == content
    assert at_point(url, "g") == 77
    manifest.write_bytes(content + b"\xff" * 100)
    reset_context()
    assert int(Fork(url, "g").open()[10, 0, 5].read().result()) == 77


def test_the_lock_of_a_living_writer_is_left_alone_and_that_of_a_dead_one_removed(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, kv.as_url(tmp_path)])
    lock = tmp_path / "key.__lock"
    try:
        seen = 0
        deadline = time.monotonic() + 60
        while seen < 20 and time.monotonic() < deadline:
            if lock.exists():
                stop(writer)
                if is_held(lock):
                    assert not clear_stale_lock(tmp_path / "key")
                    seen += 1
                os.kill(writer.pid, signal.SIGCONT)
        assert seen == 20
        stop_while_it_holds(writer, lock)
    finally:
        writer.kill()
        writer.wait()
    kv.write_bytes(tmp_path, "key", b"short")
    assert (tmp_path / "key").read_bytes() == b"short"


def test_a_key_that_a_stopped_writer_has_locked_is_not_waited_for_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "0.5")
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, kv.as_url(tmp_path)])
    lock = tmp_path / "key.__lock"
    try:
        stop_while_it_holds(writer, lock)
        for write in (kv.write_bytes, kv.write_if_absent):
            with pytest.raises(UnavailableError, match=r"has locked .*key\.__lock.*kill -CONT"):
                write(tmp_path, "key", b"short")
        kv.write_bytes(tmp_path, "other", b"value")
    finally:
        writer.kill()
        writer.wait()
    kv.write_bytes(tmp_path, "key", b"short")
    assert (tmp_path / "key").read_bytes() == b"short"


def test_commits_of_several_processes_to_one_fork_all_succeed(forked: Watershed) -> None:
    program = (
        "import sys, numpy as np\n"
        "from sv_pipeline.segmentation.fork.fork import Fork\n"
        "store = Fork(sys.argv[1], 'g').store()\n"
        "for n in range(10):\n"
        "    with store.transaction() as transaction:\n"
        "        store.kv.with_transaction(transaction).write(f'x/{sys.argv[2]}/{n}', b'1').result()\n"
    )
    before = Fork(forked.url, "g").generation()
    workers = [subprocess.Popen([sys.executable, "-c", program, forked.url, str(number)]) for number in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    keys = Fork(forked.url, "g").store().kv.list().result()
    assert sum(key.startswith(b"x/") for key in keys) == 30
    assert Fork(forked.url, "g").generation() == before + 30
