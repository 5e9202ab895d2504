"""Worker processes of this machine, which only their parent ends. Knows nothing of what they work on.

| event | effect on the workers |
| --- | --- |
| Ctrl-C, which reaches the whole process group | They never see it; the parent sees it and ends them. |
| the parent is killed, even with SIGKILL | They end by themselves. |
| an error of one task | The others finish the tasks that they have begun. |
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

__all__ = ["BrokenProcessPool", "Workers", "count_up", "interrupts_held"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Workers(ProcessPoolExecutor):
    """An executor whose processes only this process ends, at the end of the executor's block at the latest.

    Parameters
    ----------
    count
        Largest number of processes; each is started when it is first needed.
    counters
        Number of counters that tasks in the workers may raise with `count_up`, and that this process reads.
    """

    def __init__(self, count: int, *, counters: int = 0) -> None:
        level = logging.getLogger().getEffectiveLevel()
        # Workers are spawned, because the threads of TensorStore and gRPC do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # Counters have no locks: a worker that is killed while it holds one would stop all others.
        self.counters = context.RawArray("q", counters)
        with interrupts_held():
            super().__init__(count, context, _begin_worker, (level, self.counters))

    def submit(
        self, function: Callable[Parameters, Result], /, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Future[Result]:
        """Call a function in a worker; a worker is started if none is idle."""
        with interrupts_held():
            return super().submit(function, *arguments, **options)

    def terminate(self) -> None:
        """End the workers at once, without waiting for their tasks."""
        for process in list((self._processes or {}).values()):
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self.terminate()  # an interrupt: the results of running tasks are no longer needed
        self.shutdown(wait=True, cancel_futures=error is not None)


@contextlib.contextmanager
def interrupts_held(*also: signal.Signals) -> Iterator[None]:
    """Shield this block, and processes that start in it, from Ctrl-C; this process sees the Ctrl-C after the block.

    Parameters
    ----------
    also
        Further signals to hold, such as the SIGTERM by which schedulers end a process.
    """
    held = (signal.SIGINT, *also)
    # The first queue or process of a program starts multiprocessing's resource tracker, which unblocks interrupts.
    # Therefore it is started before they are blocked.
    resource_tracker.ensure_running()
    seen: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # The mask alone is not enough: another thread may receive the signal, and Python still interrupts this one.
        before = {one: signal.signal(one, lambda number, _frame: seen.append(number)) for one in held}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in dict.fromkeys(seen):
            signal.raise_signal(number)


# -- inside a worker --------------------------------------------------------------------------------------------------


_counters: Any = ()


def count_up(counter: int, by: int) -> None:
    """Raise a counter of the executor in whose worker this is called; each counter is raised by one task at a time."""
    _counters[counter] += by


def _begin_worker(log_level: int, counters: Any) -> None:
    global _counters
    _counters = counters
    logging.basicConfig(level=log_level, format="%(levelname)s in worker %(process)d: %(message)s")
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent ends; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
