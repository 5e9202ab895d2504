"""Runs a Postgres server as a process of its own, with one database and without a password, on a free port."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sv_pipeline.errors import UnavailableError
from sv_pipeline.processes import interrupts_held
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
        return Path(found).parent
    versions = sorted(DEBIAN.glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@contextmanager
def running_postgres(programs: Path, folder: Path) -> Iterator[PostgresAddress]:
    """Run a server during the block, with its data in ``folder``, which is made here.

    Postgres refuses to run as root; then the server belongs to the system's user ``postgres``.

    Raises
    ------
    UnavailableError
        If it does not start; the message contains its output.
    """
    port = free_port()
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        for above in folder.parents:  # the folders of a test belong to root alone
            if not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)
    data, log = folder / "data", folder / "postgres.log"
    _call([programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8"])
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off -c max_connections=200"
    try:
        _call([programs / "pg_ctl", "-D", data, "-l", log, "-w", "-t", str(START_SECONDS), "-o", options, "start"])
        yield PostgresAddress(port)
    finally:
        if (data / "postmaster.pid").exists():
            _call([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"])


def _call(command: list[object]) -> None:
    as_postgres = {"user": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    with interrupts_held():
        process = subprocess.Popen(  # type: ignore[call-overload]
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            **as_postgres,
        )
    output, _ = process.communicate(timeout=2 * START_SECONDS)
    if process.returncode:
        raise UnavailableError(f"{command[0]} failed: {output.decode(errors='replace').strip()}")
