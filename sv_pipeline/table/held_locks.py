"""Temporal locks on several rows with one owner, which a thread renews inside a context. Takes no lock itself."""

from __future__ import annotations

import abc
import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.table import locks
from sv_pipeline.table.interface import Table

__all__ = ["HeldLocks"]

log = logging.getLogger(__name__)

RENEWALS_PER_EXPIRY = 4


@dataclass(eq=False)
class HeldLocks(abc.ABC):
    """Locks of one owner: a thread renews them inside the context, and they are released at its end."""

    table: Table
    owner: int
    """Operation id, or another number that identifies the owner alone."""
    expiry: timedelta
    _lost: bool = field(default=False, init=False)
    """Whether a renewal has found that another owner has one of the locks."""
    _renewed: float = field(default_factory=time.monotonic, init=False)
    """Time of the last renewal, in seconds of the monotonic clock."""
    _stop: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)

    @property
    @abc.abstractmethod
    def keys(self) -> list[bytes]:
        """Keys of the locked rows."""

    @abc.abstractmethod
    def release(self) -> None:
        """Release the locks that this owner still holds."""

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._renew_on, name=f"locks of {self.owner}", daemon=True)
        try:
            thread.start()
        except BaseException:  # an interrupt, after which the thread would renew the locks for ever
            self._stop.set()
            self.release()
            raise
        self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_renewing()
        self.release()

    def _stop_renewing(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _renew_on(self) -> None:
        while not self._stop.wait(self.expiry.total_seconds() / RENEWALS_PER_EXPIRY):
            began = time.monotonic()
            try:
                # The roots of an edit are superseded near its end, but their locks stay until they are released.
                alive = locks.renew_all(self.table, self.keys, self.owner, guard=())
            except SvPipelineError:
                log.warning("locks of %d could not be renewed", self.owner, exc_info=True)
                continue
            if not all(alive):
                self._lost = True
                log.error("the locks of %d were lost", self.owner)
                return
            self._renewed = began
