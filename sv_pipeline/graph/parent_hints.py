"""Remembers the parents of nodes that this process has read: guesses that tell which rows to read together.

A parent changes with every edit of its object, and other processes edit too. So a hint is never an answer: whoever
follows hints reads the rows that they lead to, all with one request, and goes on from what these rows say.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field

import numpy as np

from sv_pipeline.ids import UInt64Array
from sv_pipeline.table.interface import Table

__all__ = ["ParentHints", "forget_hints", "hints_of"]

MAX_HINTS = 1 << 16
"""Number of nodes of a table after which the older half of the hints is forgotten: about 10 MB."""
MAX_LAYERS = 64

_hints: weakref.WeakKeyDictionary[Table, ParentHints] = weakref.WeakKeyDictionary()


def hints_of(table: Table) -> ParentHints:
    """Return the hints of a table, which live as long as it."""
    return _hints.setdefault(table, ParentHints())


def forget_hints() -> None:
    """Forget all hints, as in a new process."""
    _hints.clear()


@dataclass(eq=False)
class ParentHints:
    """The parents of nodes as they were read last. Threads may share it."""

    _recent: dict[int, int] = field(default_factory=dict)
    _older: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def note(self, nodes: UInt64Array, parents: UInt64Array) -> None:
        """Remember parents, both of shape (n,); 0 is none. Of very many, none are remembered."""
        if len(nodes) > MAX_HINTS // 4:
            return
        known = parents != 0
        with self._lock:
            self._recent.update(zip(nodes[known].tolist(), parents[known].tolist(), strict=True))
            if len(self._recent) > MAX_HINTS // 2:
                self._older, self._recent = self._recent, {}

    def above(self, nodes: UInt64Array) -> UInt64Array:
        """Return the hinted ancestors of nodes, ascending; without the nodes themselves."""
        found: set[int] = set()
        for node in nodes.tolist():
            for _ in range(MAX_LAYERS):
                node = self._recent.get(node) or self._older.get(node, 0)
                if not node or node in found:
                    break
                found.add(node)
        return np.array(sorted(found), np.uint64)


def _start_afresh() -> None:
    """Forget the hints of the parent in a forked process: a thread of it may have held the lock of some."""
    global _hints
    _hints = weakref.WeakKeyDictionary()


os.register_at_fork(after_in_child=_start_afresh)
