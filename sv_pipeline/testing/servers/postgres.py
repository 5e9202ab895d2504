"""Runs a Postgres server as a process of its own, with one database and without a password, on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sv_pipeline.errors import UnavailableError
from sv_pipeline.processes import interrupts_held
from sv_pipeline.testing.servers.bigtable import die_with_parent
from sv_pipeline.testing.servers.webhook import free_port

__all__ = ["PostgresAddress", "find_postgres", "running_postgres"]

DEBIAN = Path("/usr/lib/postgresql")
USER = "postgres"
START_SECONDS = 60


class PostgresAddress:
    """Where a server listens: ``host``, ``port``, ``user`` and ``database``; it accepts any password."""

    host, user, database = "127.0.0.1", USER, "postgres"

    def __init__(self, port: int) -> None:
        self.port = port


def find_postgres() -> Path | None:
    """Return the folder of the server's programs: SV_PIPELINE_POSTGRES, or on PATH, or Debian's; None without one."""
    if named := os.environ.get("SV_PIPELINE_POSTGRES"):
        return Path(named)
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(DEBIAN.glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@contextmanager
def running_postgres(programs: Path) -> Iterator[PostgresAddress]:
    """Run a server during the block, with its data in a temporary folder.

    Postgres refuses to run as root; then the server and its folder belong to the system's user ``postgres``.

    Raises
    ------
    UnavailableError
        If it does not start; the message contains its output.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        data = Path(folder) / "data"
        _initialize([programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8"])
        options = ["-p", port, "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off", "-c", "max_connections=200"]
        server = _start([programs / "postgres", "-D", data, *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", port], server)
            yield PostgresAddress(port)
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()


def _start(command: list[object], stdout: int) -> subprocess.Popen[bytes]:
    as_postgres = {"user": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    with interrupts_held():
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd="/",
            preexec_fn=die_with_parent,
            **as_postgres,
        )


def _initialize(command: list[object]) -> None:
    process = _start(command, subprocess.PIPE)
    output, _ = process.communicate(timeout=2 * START_SECONDS)
    if process.returncode:
        raise UnavailableError(f"{command[0]} failed: {output.decode(errors='replace').strip()}")


def _wait_for(question: list[object], server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if _start(question, subprocess.DEVNULL).wait() == 0:
            return
        time.sleep(0.1)
    raise UnavailableError("the Postgres server did not start")
