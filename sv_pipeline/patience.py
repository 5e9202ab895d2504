"""Bounded waits for stores that do not answer: how long to wait, and what to log meanwhile. Knows no store.

``SV_PIPELINE_PATIENCE`` (seconds, default 30) limits how long one request to a storage or a table is retried. A request
that takes longer than `SAY_AFTER` seconds is named in the log, then again after twice the time, and so on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from sv_pipeline.environment import number_in

__all__ = ["PATIENCE_VARIABLE", "UnansweredRequest", "patience", "waiting_for"]

PATIENCE_VARIABLE = "SV_PIPELINE_PATIENCE"
DEFAULT_SECONDS = 30.0
SAY_AFTER = 3.0
"""Seconds until a request is first named in the log."""

_logger = logging.getLogger(__name__)


def patience() -> float:
    """Return the seconds for which one request is retried before it fails.

    Raises
    ------
    ConfigError
        If the environment variable does not hold a positive number.
    """
    return number_in(PATIENCE_VARIABLE, DEFAULT_SECONDS, meaning="seconds")


@dataclass
class UnansweredRequest:
    """A request that has not been answered yet; the log names it while a block runs with it as its context."""

    what: str
    said_at: float = SAY_AFTER
    """Seconds after its start at which the log names the request next."""
    began: float = field(default_factory=time.monotonic)
    reason: str = ""
    """Why the latest attempt failed; empty during the first attempt."""

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.began

    def __enter__(self) -> Self:
        _watch.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watch.waits.pop(id(self), None)


class _Watch:
    """A thread that checks the requests of this process once a second, and logs those that take long."""

    def __init__(self) -> None:
        self.waits: dict[int, UnansweredRequest] = {}
        self._thread: threading.Thread | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def add(self, wait: UnansweredRequest) -> None:
        self.waits[id(wait)] = wait
        if self._thread is None or self._owner != os.getpid():
            with self._lock:
                if self._thread is None or self._owner != os.getpid():
                    self._owner = os.getpid()
                    self._thread = threading.Thread(target=self._look, name="sv_pipeline waits", daemon=True)
                    self._thread.start()

    def _look(self) -> None:
        while True:
            time.sleep(1.0)
            for wait in list(self.waits.values()):
                if wait.seconds >= wait.said_at:
                    wait.said_at *= 2
                    why = f": {wait.reason}" if wait.reason else ", no answer so far"
                    _logger.warning("still trying after %.0f s: %s%s", wait.seconds, wait.what, why)


_watch = _Watch()


def _start_afresh() -> None:
    global _watch  # a forked child has neither the thread nor the requests of its parent
    _watch = _Watch()


os.register_at_fork(after_in_child=_start_afresh)


def waiting_for(what: str) -> UnansweredRequest:
    """Return a context that names ``what`` in the log if its block takes long."""
    return UnansweredRequest(what)
