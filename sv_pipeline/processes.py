"""Worker processes of this machine: started so that their parent alone ends them. Knows nothing of what they work on.

| what happens | what becomes of the workers |
| --- | --- |
| Ctrl-C, which reaches the whole process group | they never see it; the parent does, and ends them |
| the parent is killed, even with SIGKILL | they end by themselves |
| an error of one task | the others end what they are at |
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

__all__ = ["BrokenProcessPool", "Workers", "interrupts_held"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Workers(ProcessPoolExecutor):
    """An executor whose processes only this process ends; at the end of its block at the latest.

    Parameters
    ----------
    count
        How many processes there are at most; each is started when it is first needed.
    """

    def __init__(self, count: int) -> None:
        level = logging.getLogger().getEffectiveLevel()
        with interrupts_held():
            # spawn: TensorStore and gRPC run threads that do not survive a fork.
            super().__init__(count, multiprocessing.get_context("spawn"), _begin_worker, (level,))

    def submit(
        self, function: Callable[Parameters, Result], /, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Future[Result]:
        """Have a function called in a worker, which is started if none is idle."""
        with interrupts_held():
            return super().submit(function, *arguments, **options)

    def terminate(self) -> None:
        """End the workers at once, whatever they are at."""
        for process in list((self._processes or {}).values()):
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self.terminate()  # an interrupt: nobody waits for what the workers are at
        self.shutdown(wait=True, cancel_futures=error is not None)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes that are started in the block never see Ctrl-C; this process sees it after the block."""
    # The first queue or process of a program starts multiprocessing's resource tracker, which lets interrupts through
    # again. So it is started before they are held.
    resource_tracker.ensure_running()
    seen: list[int] = []
    before: Any = None
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        # The mask alone is not enough: another thread may take the signal, and Python still interrupts this one.
        before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
            if seen:
                signal.raise_signal(signal.SIGINT)


# -- inside a worker --------------------------------------------------------------------------------------------------


def _begin_worker(log_level: int) -> None:
    logging.basicConfig(level=log_level, format="%(levelname)s in worker %(process)d: %(message)s")
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
