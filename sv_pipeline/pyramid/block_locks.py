"""Locks of blocks of space: several rows are locked together or not at all, renewed in the background, and released.

The key of a block's row has 26 bytes: two of a hash, so that neighbours are spread over the table, and the block's
three coordinates as big-endian int64. The row holds nothing but the lock, and disappears when the lock is released. The
callers define what a block is, and must all use the same definition.
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
from sv_pipeline.wording import counted

__all__ = ["BlockLocks", "block_key", "lock_blocks", "new_owner"]

_COORDINATES = struct.Struct(">3q")

Triple = tuple[int, int, int]


def block_key(block: Triple) -> bytes:
    """Return the key of the row that holds a block's lock."""
    place = _COORDINATES.pack(*block)
    return hashlib.blake2b(place, digest_size=2).digest() + place


def new_owner() -> int:
    """Return a new random number that identifies an owner; locks hold it in place of an operation id."""
    return secrets.randbits(62) | 1 << 62


def lock_blocks(table: Table, blocks: Iterable[Triple], owner: int, expiry: timedelta) -> BlockLocks | None:
    """Lock all of the blocks, or none. Returns None if another owner holds one of them.

    A lock expires by itself unless it is renewed, which `BlockLocks` does as a context manager.
    """
    held = BlockLocks(table, owner, expiry)
    for block in sorted(set(blocks)):  # all owners lock in the same order
        key = block_key(block)
        # A first request, whose answer was lost, may have succeeded.
        if not locks.lock(table, key, owner, expiry, guard=()) and locks.holders(table, key)[0] != owner:
            held.release()
            return None
        held.keys.append(key)
    return held


class BlockLocks(HeldLocks):
    """Locks of blocks, which a thread renews inside the context, and which are released at its end."""

    def __init__(self, table: Table, owner: int, expiry: timedelta) -> None:
        super().__init__(table, owner, expiry)
        self._keys: list[bytes] = []

    @property
    def keys(self) -> list[bytes]:
        """Keys of the locked rows."""
        return self._keys

    def check(self) -> None:
        """Raise ConflictError if a renewal has found a lock that is held by another owner."""
        if self._lost:
            raise ConflictError(
                f"the locks of {counted(len(self.keys), 'block')} were lost: not renewed within {self.expiry}.",
                remedy="Nothing was written without them.",
                repeat="Run it again.",
            )

    def release(self) -> None:
        """Release the locks that are still its own; locks that another owner has taken since stay."""
        locks.unlock_all(self.table, self.keys, self.owner)
