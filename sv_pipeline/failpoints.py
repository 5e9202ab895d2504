"""Named steps at which a test can end, stop or disturb a process. Nothing happens unless the environment asks for it.

``SV_PIPELINE_FAILPOINT=<step>:<action>`` arms one step, once:

| action | what happens there |
| --- | --- |
| ``kill`` or ``kill:<seconds>`` | SIGKILL, at once or so much later |
| ``raise`` | `FailpointError`, which no handler of ours expects |
| ``pause:<seconds>`` | the thread sleeps; heartbeats go on |
| ``stop`` | SIGSTOP: all of the process waits for SIGCONT |
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
    """An error that a test has asked for."""


def reach(step: str) -> None:
    """Say that a step is reached."""
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
        time.sleep(0.05)  # other threads stop first; this one must not get ahead
    elif action == "pause":
        time.sleep(float(seconds or 1))
    elif action == "raise":
        raise FailpointError(f"at {step}")
    else:
        raise ValueError(f"{VARIABLE}={wanted}: there is no action {action!r}")


def pieces(step: str, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """What is written at once, in one piece; in two, with the step between them, if a test asks for it."""
    if not os.environ.get(VARIABLE, "").startswith(f"{step}:"):
        yield items
        return
    yield items[: len(items) // 2]
    reach(step)
    yield items[len(items) // 2 :]
