"""A process that has imported everything, and forks a child process for each task that it receives.

The fork server itself opens no table and no volume, so no child misses a thread of a library. Children open their own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sv_pipeline.processes import interrupts_held


@dataclass
class ForkServer:
    """A running fork server, as its parent sees it."""

    process: subprocess.Popen[str]

    def start(self, **task: Any) -> int:
        """Fork a process for a task; return its process id."""
        return int(self._ask({"run": task})["pid"])

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a process, or minus the signal that ended it; None while it runs."""
        code = self._ask({"poll": pid})["code"]
        return None if code is None else int(code)

    def wait(self, pid: int, seconds: float = 60) -> int:
        """Wait for the end of a process; return its exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + seconds
        while (code := self.poll(pid)) is None:
            assert time.monotonic() < deadline, f"process {pid} has not ended after {seconds} s"
            time.sleep(0.005)
        return code

    def do(self, **task: Any) -> int:
        """Run a task to its end; return the exit code, or minus the signal that ended it."""
        return self.wait(self.start(**task))

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextlib.contextmanager
def running_fork_server(*modules: str) -> Iterator[ForkServer]:
    """Run a fork server during the block, with further modules imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with interrupts_held():
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
    with process:
        try:
            yield ForkServer(process)
        finally:
            process.kill()


def main() -> None:
    """Serve tasks, one line of JSON each, until the standard input ends."""
    from sv_pipeline.testing.harness.actors import act

    for module in sys.argv[1:]:
        importlib.import_module(module)
    ended: dict[int, int] = {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of children must not be mistaken for answers
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        if "run" in asked:
            pid = os.fork()
            if pid == 0:
                answers.close()
                with contextlib.suppress(OSError):
                    os.close(0)
                os._exit(act(asked["run"]))
            ended.pop(pid, None)  # the system may use process ids again
            answer = {"pid": pid}
        else:
            pid = asked["poll"]
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": ended.get(pid)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
