"""Named steps at which a test can end, stop or disturb a process. Nothing happens unless the environment asks for it.

``SV_PIPELINE_FAILPOINT=<step>:<action>`` arms one step, once:

| action | what happens there |
| --- | --- |
| ``kill`` | SIGKILL |
| ``raise`` | `FailpointError`, which no handler of ours expects |
| ``pause:<seconds>`` | the thread sleeps; heartbeats go on |
| ``stop`` | SIGSTOP: all of the process waits for SIGCONT |
"""

from __future__ import annotations

import os
import signal
import time

__all__ = ["VARIABLE", "FailpointError", "reach"]

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
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "pause":
        time.sleep(float(seconds or 1))
    elif action == "raise":
        raise FailpointError(f"at {step}")
    else:
        raise ValueError(f"{VARIABLE}={wanted}: there is no action {action!r}")
