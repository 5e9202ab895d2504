"""Named steps at which a test can kill, stop or delay a process. They do nothing unless the environment arms one.

``SV_PIPELINE_FAILPOINT=<step>:<action>`` arms one step for one time:

| action | effect |
| --- | --- |
| ``kill`` or ``kill:<seconds>`` | The process receives SIGKILL at once, or after so many seconds. |
| ``raise`` | `FailpointError` is raised, which no handler of the package expects. |
| ``pause:<seconds>`` | The thread sleeps; heartbeats go on. |
| ``stop`` | The process receives SIGSTOP: all threads wait for SIGCONT. |
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

__all__ = ["VARIABLE", "FailpointError", "pieces", "reach"]

Item = TypeVar("Item")

VARIABLE = "SV_PIPELINE_FAILPOINT"


class FailpointError(Exception):
    """An error that a test has requested."""


def reach(step: str) -> None:
    """Mark a step as reached, and do what the environment requests for it."""
    wanted = os.environ.get(VARIABLE)
    if not wanted or not wanted.startswith(f"{step}:"):
        return
    del os.environ[VARIABLE]
    action, _, seconds = wanted.removeprefix(f"{step}:").partition(":")
    if action == "kill" and seconds:
        threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.05)  # SIGSTOP reaches other threads first; this one must not get ahead
    elif action == "pause":
        time.sleep(float(seconds or 1))
    elif action == "raise":
        raise FailpointError(f"at {step}")
    else:
        raise ValueError(f"{VARIABLE}={wanted}: there is no action {action!r}; use kill, raise, pause or stop")


def pieces(step: str, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield items that are written together: all at once, or in two halves around the step if the step is armed."""
    if not os.environ.get(VARIABLE, "").startswith(f"{step}:"):
        yield items
        return
    yield items[: len(items) // 2]
    reach(step)
    yield items[len(items) // 2 :]
