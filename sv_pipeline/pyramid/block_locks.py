"""Owns the locks of blocks of space: several rows taken all or none, kept alive in the background, given back.

The row of a block is named by 26 bytes: two of a hash, so that neighbours are spread over the table, and its three
coordinates as big-endian int64. It holds nothing but the lock, and is gone when that is given back. What a block is, is
for the caller to know; all who lock must agree on it.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Iterable
from datetime import timedelta

from sv_pipeline.errors import ConflictError
from sv_pipeline.table import locks
from sv_pipeline.table.held_locks import HeldLocks
from sv_pipeline.table.interface import Table

__all__ = ["BlockLocks", "block_key", "lock_blocks", "new_owner"]

_COORDINATES = struct.Struct(">3q")

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


class BlockLocks(HeldLocks):
    """Locks of blocks; renewed in a thread inside the context, released at its end."""

    def __init__(self, table: Table, owner: int, expiry: timedelta) -> None:
        super().__init__(table, owner, expiry)
        self._keys: list[bytes] = []

    @property
    def keys(self) -> list[bytes]:
        """Rows that are locked."""
        return self._keys

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
        locks.unlock_all(self.table, self.keys, self.owner)
