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
"""Environment variables whose present values are passed to the process of each task."""


@dataclass
class RecoveryHarness:
    """Lets processes work on one world. A task is what :mod:`sv_pipeline.testing.harness.actors` describes."""

    world: World
    fork_server: ForkServer
    folder: Path
    """Folder for the results of processes."""
    words: dict[int, Path] = field(default_factory=dict)
    """File with the result of each process, by process id."""

    @property
    def graph(self) -> list[str]:
        """Home folder and graph id, as tasks name the graph."""
        return [self.world.dataset.home, self.world.dataset.graph_id]

    def start(self, **task: Any) -> int:
        """Start a task in a process; return its process id."""
        where = {name: os.environ[name] for name in SERVERS if name in os.environ}
        task.setdefault("result", str(self.folder / f"said by {len(self.words)}"))
        task.setdefault("graph", self.graph)
        pid = self.fork_server.start(environment=where, **task)
        self.words[pid] = Path(task["result"])
        return pid

    def do(self, **task: Any) -> int:
        """Run a task in a process; return its exit code, or minus the signal that ended it."""
        return self.fork_server.wait(self.start(**task))

    def said(self, **task: Any) -> tuple[int, str]:
        """Run a task; return its exit code, and the result that the process wrote."""
        result = self.folder / "said"
        result.unlink(missing_ok=True)
        code = self.do(result=str(result), **task)
        return code, result.read_text() if result.exists() else ""

    def word_of(self, pid: int) -> str:
        """Return the result that a process wrote at its end."""
        return self.words[pid].read_text() if self.words[pid].exists() else ""

    def stop(self, **task: Any) -> int:
        """Start a task with a failpoint that stops it; return its process id once it has stopped or ended."""
        pid = self.start(**task)
        deadline = time.monotonic() + 120  # on a machine that does much else, an edit takes 20 s
        while self.fork_server.poll(pid) is None and _state(pid) != "T":
            assert time.monotonic() < deadline, f"process {pid} neither stops nor ends"
            time.sleep(0.005)
        return pid

    def wake(self, pid: int) -> int:
        """Let a stopped process continue to its end; return its exit code."""
        if self.fork_server.poll(pid) is None:
            os.kill(pid, signal.SIGCONT)
        return self.fork_server.wait(pid)


def _state(pid: int) -> str:
    """Return the state of a process as Linux names it; T means stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
