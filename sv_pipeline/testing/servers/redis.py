"""Runs a Redis server as a process of its own, which can be killed and started again on the same port and data."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from sv_pipeline.errors import UnavailableError
from sv_pipeline.processes import interrupts_held
from sv_pipeline.testing.servers.bigtable import die_with_parent
from sv_pipeline.testing.servers.webhook import free_port

__all__ = ["RedisServer", "find_redis"]

START_SECONDS = 30


def find_redis() -> str | None:
    """Return the path of ``redis-server``; None if it is not installed."""
    return shutil.which("redis-server")


class RedisServer:
    """A Redis server with the settings of a file, on a free port of this machine.

    Parameters
    ----------
    folder
        Folder of its data; it exists.
    settings
        A ``redis.conf``. Port, address and folder are set here.
    """

    def __init__(self, folder: Path, settings: Path) -> None:
        self.folder, self.settings, self.port = folder, settings, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises
        ------
        UnavailableError
            If it does not start; the message names its log.
        """
        command = [
            str(find_redis()), str(self.settings), "--port", str(self.port), "--bind", "127.0.0.1",
            "--dir", str(self.folder), "--logfile", "redis.log", "--daemonize", "no",
        ]  # fmt: skip
        with interrupts_held():
            self.process = subprocess.Popen(command, preexec_fn=die_with_parent)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return
            time.sleep(0.05)
        raise UnavailableError(f"Redis did not start: see {self.folder / 'redis.log'}.")

    def kill(self) -> None:
        """End the server with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
