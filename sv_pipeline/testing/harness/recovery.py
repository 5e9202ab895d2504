"""One world, and the processes that edit and recover it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sv_pipeline import waiting
from sv_pipeline.testing.harness.forkserver import ForkServer
from sv_pipeline.testing.worlds import World

__all__ = ["SERVERS", "RecoveryHarness"]

SERVERS = ("BIGTABLE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", waiting.VARIABLE)
"""Environment variables that processes of a task are given as they are at that moment."""


@dataclass
class RecoveryHarness:
    """Lets processes work on one world. A task is what :mod:`sv_pipeline.testing.harness.actors` describes."""

    world: World
    fork_server: ForkServer
    folder: Path
    """Where processes leave what they have to say."""
    words: dict[int, Path] = field(default_factory=dict)
    """By process id, the file with what the process said at its end."""

    @property
    def graph(self) -> list[str]:
        """Home folder and graph id, as tasks name the graph."""
        return [self.world.dataset.home, self.world.dataset.graph_id]

    def start(self, **task: Any) -> int:
        """Begin a task in a process; its process id."""
        where = {name: os.environ[name] for name in SERVERS if name in os.environ}
        task.setdefault("result", str(self.folder / f"said by {len(self.words)}"))
        task.setdefault("graph", self.graph)
        pid = self.fork_server.start(environment=where, **task)
        self.words[pid] = Path(task["result"])
        return pid

    def do(self, **task: Any) -> int:
        """Do a task in a process; its exit code, or minus the signal that ended it."""
        return self.fork_server.wait(self.start(**task))

    def said(self, **task: Any) -> tuple[int, str]:
        """Do a task; its exit code, and what the process said."""
        result = self.folder / "said"
        result.unlink(missing_ok=True)
        code = self.do(result=str(result), **task)
        return code, result.read_text() if result.exists() else ""

    def word_of(self, pid: int) -> str:
        """What a process said at its end."""
        return self.words[pid].read_text() if self.words[pid].exists() else ""

    def stop(self, **task: Any) -> int:
        """Start a task with a failpoint that stops it; its process id, once it has stopped or ended."""
        pid = self.start(**task)
        deadline = time.monotonic() + 30
        while self.fork_server.poll(pid) is None and _state(pid) != "T":
            assert time.monotonic() < deadline, f"process {pid} neither stops nor ends"
            time.sleep(0.005)
        return pid

    def wake(self, pid: int) -> int:
        """Let a stopped process continue to its end; its exit code."""
        if self.fork_server.poll(pid) is None:
            os.kill(pid, signal.SIGCONT)
        return self.fork_server.wait(pid)


def _state(pid: int) -> str:
    """State of a process as Linux names it: T = stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
