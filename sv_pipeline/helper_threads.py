"""Threads that do short tasks beside their caller, and are kept for the next task instead of being started for each.

A request to a table takes about as long as starting a thread on a busy machine, and an edit sends ten beside others.
There is no limit to their number, so tasks may wait for other tasks; a thread ends when it was idle for a while.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

__all__ = ["Helpers"]

Result = TypeVar("Result")
Task = Callable[[], None]

IDLE_SECONDS = 10.0


class Helpers:
    """Submits tasks; at the end of the context all of them have ended, as with a ``ThreadPoolExecutor``."""

    def __init__(self) -> None:
        self._futures: list[Future[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._futures:
            future.exception()

    def submit(self, action: Callable[..., Result], *args: Any, **kwargs: Any) -> Future[Result]:
        """Call a function in another thread, at once."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()

        def task() -> None:
            try:
                result = action(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        _hand_over(task)
        self._futures.append(future)  # not if no thread could be started: nobody would ever end it
        return future


class _Worker(threading.Thread):
    def __init__(self, first: Task) -> None:
        super().__init__(name="helper", daemon=True)  # whoever needs a result waits for it
        self.tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.tasks.put(first)

    def run(self) -> None:
        while True:
            try:
                task = self.tasks.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with _lock:
                    if self in _idle:
                        _idle.remove(self)
                        return
                continue  # it has just been given a task
            task()
            del task
            with _lock:
                _idle.append(self)


_lock = threading.Lock()
_idle: list[_Worker] = []


def _hand_over(task: Task) -> None:
    with _lock:
        worker = _idle.pop() if _idle else None
    if worker is None:
        _Worker(task).start()
    else:
        worker.tasks.put(task)


def _start_afresh() -> None:
    """Forget the threads of the parent, which a forked process does not have."""
    global _lock, _idle
    _lock, _idle = threading.Lock(), []


os.register_at_fork(after_in_child=_start_afresh)
