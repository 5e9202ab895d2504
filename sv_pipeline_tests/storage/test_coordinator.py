"""The coordinator process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorstore as ts

from sv_pipeline.errors import ConfigError, ConflictError
from sv_pipeline.storage.coordinator import running_coordinator, serve


def listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_coordinator_runs_for_the_length_of_a_block() -> None:
    with running_coordinator() as address:
        assert listens(address)
    assert not listens(address)


def test_writers_commit_through_it(tmp_path: Path) -> None:
    with running_coordinator() as address:
        spec = {"driver": "ocdbt", "base": f"file://{tmp_path}/", "coordinator": {"address": address}}
        ts.KvStore.open(spec, context=ts.Context()).result().write("key", b"value").result()
        assert ts.KvStore.open(spec, context=ts.Context()).result()["key"] == b"value"


def test_a_second_one_on_the_same_port_is_refused() -> None:
    with running_coordinator() as address:
        with pytest.raises(ConflictError, match="choose another port"):
            serve(address)
        command = [sys.executable, "-m", "sv_pipeline.storage.coordinator", "--bind", address]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "cannot listen" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_stopped_one_frees_its_port_for_the_next() -> None:
    with running_coordinator() as address:
        assert listens(address)
    with running_coordinator(port=int(address.rsplit(":", 1)[1])) as again:
        assert again == address


@pytest.mark.parametrize("bind", ["nonsense", "127.0.0.1", "127.0.0.1:abc", "127.0.0.1:99999"])
def test_addresses_that_make_no_sense_are_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        serve(bind)


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from sv_pipeline.storage.coordinator import running_coordinator\n"
        "with running_coordinator() as address:\n"
        "    print(address, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    address = parent.stdout.readline().strip()
    assert listens(address)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while listens(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(address)
    parent.stdout.close()
