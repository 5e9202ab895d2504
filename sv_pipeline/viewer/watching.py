"""Looks for edits of a graph that were made since, by anybody, so that a viewer can show them. Reads only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sv_pipeline.proofreading import OpenGraph
from sv_pipeline.storage.wall import our_error

__all__ = ["Watcher"]

_logger = logging.getLogger(__name__)

NEWEST = 32
"""How many operations are looked at: an older one that ends late is noticed only if it changes voxels."""


class Watcher:
    """Calls a function whenever operations have ended since the last look."""

    def __init__(self, graph: OpenGraph, tell: Callable[[str], None], seconds: float) -> None:
        """Begin to look.

        Parameters
        ----------
        tell
            Function that is called, in a thread of the watcher, with a text about the newest edit.
        seconds
            Time between two looks.
        """
        self._graph, self._tell, self._seconds = graph, tell, seconds
        self._wake, self._stopped = threading.Event(), False
        self._seen = self._state()
        self._thread = threading.Thread(target=self._run, name="edits of others", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look now, without waiting for the result."""
        self._wake.set()

    def stop(self) -> None:
        """Stop looking."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._stopped:
                return
            try:
                now = self._state()
                if now != self._seen:
                    self._tell(_newest(now[0]))
                    self._seen = now
            except Exception as error:
                # The next look may succeed: a table or a fork that does not answer for a while is no end.
                ours = our_error(error)
                _logger.warning("edits of others are not seen now: %s", ours or error, exc_info=ours is None)

    def _state(self) -> tuple[tuple[tuple[int, str, str, str], ...], int]:
        """Return the newest operations (number, kind, user, status), and the generation of the fork."""
        log = self._graph.operations(last=NEWEST)
        rows = zip(log.index.tolist(), log["kind"], log["user"], log["status"], strict=True)
        return tuple(rows), self._graph.dataset.fork.generation()


def _newest(rows: tuple[tuple[int, str, str, str], ...]) -> str:
    done = [row for row in rows if row[3] == "SUCCESS"]
    return "" if not done else f"Newest edit: operation {done[-1][0]}, {done[-1][1]} by {done[-1][2]}."
