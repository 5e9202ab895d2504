"""Owns the locks of blocks of space: several rows taken all or none, kept alive in the background, given back.

The row of a block is named by 26 bytes: two of a hash, so that neighbours are spread over the table, and its three
coordinates as big-endian int64. It holds nothing but the lock, and is gone when that is given back. What a block is, is
for the caller to know; all who lock must agree on it.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from sv_pipeline.errors import ConflictError, SvPipelineError
from sv_pipeline.table import locks
from sv_pipeline.table.interface import Table

__all__ = ["BlockLocks", "block_key", "lock_blocks", "new_owner"]

RENEWALS_PER_EXPIRY = 4
_COORDINATES = struct.Struct(">3q")

_logger = logging.getLogger(__name__)
Triple = tuple[int, int, int]


def block_key(block: Triple) -> bytes:
    """Key of the row of a block's lock."""
    place = _COORDINATES.pack(*block)
    return hashlib.blake2b(place, digest_size=2).digest() + place


def new_owner() -> int:
    """A number that nobody else has; locks hold it in the place of an operation id."""
    return secrets.randbits(62) | 1 << 62


def lock_blocks(table: Table, blocks: Iterable[Triple], owner: int, expiry: timedelta) -> BlockLocks | None:
    """Lock all of the blocks, or none; None if somebody else holds one of them.

    A lock that is not renewed (by `BlockLocks`, as a context manager) expires by itself.
    """
    held = BlockLocks(table, owner, expiry)
    for block in sorted(set(blocks)):  # the same order for everybody
        key = block_key(block)
        # The answer to a first, lost request may have been yes.
        if not locks.lock(table, key, owner, expiry, guard=()) and locks.holders(table, key)[0] != owner:
            held.release()
            return None
        held.keys.append(key)
    return held


@dataclass(eq=False)
class BlockLocks:
    """Locks that somebody holds; renewed in a thread inside the context, released at its end."""

    table: Table
    owner: int
    expiry: timedelta
    keys: list[bytes] = field(default_factory=list)
    _lost: bool = False
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __enter__(self) -> BlockLocks:
        self._thread = threading.Thread(target=self._renew, name="block locks", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.release()

    def check(self) -> None:
        """Raise ConflictError if a renewal has found a lock in other hands."""
        if self._lost:
            raise ConflictError(
                f"the locks of {len(self.keys)} block(s) were lost: they were not renewed within {self.expiry}.",
                remedy="Nothing was written without them.",
                repeat="Run it again.",
            )

    def release(self) -> None:
        """Give back what is its own; what is another's by now stays."""
        for key in self.keys:
            locks.unlock(self.table, key, self.owner)

    def _renew(self) -> None:
        while not self._stop.wait(self.expiry.total_seconds() / RENEWALS_PER_EXPIRY):
            try:
                alive = all(locks.renew(self.table, key, self.owner, guard=()) for key in self.keys)
            except SvPipelineError:
                _logger.warning("block locks could not be renewed", exc_info=True)
                continue
            if not alive:
                self._lost = True
                _logger.warning("block locks of %d were lost", self.owner)
                return
