"""Named steps at which a test can kill, stop or delay a process. They do nothing unless the environment arms one.

``SV_PIPELINE_FAILPOINT=<step>:<action>`` arms one step for one time:

| action | effect |
| --- | --- |
| ``kill`` or ``kill:<seconds>`` | The process receives SIGKILL at once, or after so many seconds. |
| ``raise`` | `FailpointError` is raised, which no handler of the package expects. |
| ``pause:<seconds>`` | The thread sleeps; heartbeats go on. |
| ``stop`` | The process receives SIGSTOP: all threads wait for SIGCONT. |

Changes that are written together become durable in any order, so a crash may leave any subset of them: see `pieces`.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["VARIABLE", "FailpointError", "pieces", "reach", "together"]

Item = TypeVar("Item")
Result = TypeVar("Result")

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
    """Yield items that are written together: all at once, or in two parts around the step if the step is armed.

    ``<step>:<action>`` has the first half written before the action, and ``<step> <seed>:<action>`` a random subset,
    the same for each seed. The rest is written if the process goes on after the action.
    """
    name, _, _ = os.environ.get(VARIABLE, "").partition(":")
    of, _, seed = name.rpartition(" ")
    if name == step:
        first = set(range(len(items) // 2))
    elif of == step and seed.isdigit():
        first = {i for i in range(len(items)) if random.Random(f"{seed} {i}").random() < 0.5}  # noqa: S311
    else:
        yield items
        return
    yield [item for i, item in enumerate(items) if i in first]
    reach(name)
    yield [item for i, item in enumerate(items) if i not in first]


def together(step: str, items: Sequence[Item], send: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """Send items together, or in the `pieces` around a step that is armed; return the answers in their order."""
    answers: dict[int, Result] = {}
    for part in pieces(step, range(len(items))):
        answers.update(zip(part, send([items[i] for i in part]), strict=True))
    return [answers[i] for i in range(len(items))]
