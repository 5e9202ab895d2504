"""Owns commits that look whether they can succeed before they are made. Knows no mips and no ledger.

A transaction with repeatable reads fails where somebody has changed what it has read: that alone makes results right.
But TensorStore (seen in 0.1.86) may crash when a commit that touches several nodes of the B+tree fails in one of them:
``BtreeWriterCommitOperation::VisitLeafNode`` goes on with the others, whose changes are freed by then. Nothing is
damaged, since nothing is committed; but the process is gone. So conflicts are looked for first, by comparing the stamps
of what was read: on disk while all other writers wait, elsewhere just before the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import tensorstore as ts

from sv_pipeline.segmentation.file_guard import commit_guard
from sv_pipeline.segmentation.history import current_version
from sv_pipeline.segmentation.operations import store_at
from sv_pipeline.segmentation.specs import OcdbtStore

__all__ = ["ChangedError", "CheckedTransaction", "checked_transaction"]

STAMPS_AT_ONCE = 1024


class ChangedError(Exception):
    """Somebody has changed what a transaction depends on; try again. Never leaves this room."""


@dataclass
class CheckedTransaction:
    """An atomic transaction with repeatable reads, and what it depends on."""

    transaction: ts.Transaction
    keys: set[str] = field(default_factory=set)
    """Keys that were read: to be added by whoever reads."""


@contextmanager
def checked_transaction(store: OcdbtStore) -> Iterator[CheckedTransaction]:
    """Commit at the end of the block; an error in it aborts.

    Raises
    ------
    ChangedError
        If a key that was read has changed since the block began; nothing is committed.
    """
    before = current_version(store.base).generation
    checked = CheckedTransaction(ts.Transaction(atomic=True, repeatable_read=True))
    try:
        yield checked
    except BaseException:
        checked.transaction.abort()
        raise
    with commit_guard(store.folder):
        if _changed(store, before, checked.keys):
            checked.transaction.abort()
            raise ChangedError
        checked.transaction.commit_sync()


def _changed(store: OcdbtStore, before: int, keys: Iterable[str]) -> bool:
    if current_version(store.base).generation == before:
        return False
    then, wanted = store_at(store, before).kv, sorted(keys)
    for first in range(0, len(wanted), STAMPS_AT_ONCE):
        some = wanted[first : first + STAMPS_AT_ONCE]
        if _stamps(then, some) != _stamps(store.kv, some):
            return True
    return False


def _stamps(kv: ts.KvStore, keys: list[str]) -> list[bytes]:
    reads = [kv.read(key, byte_range=slice(0, 0)) for key in keys]
    return [bytes(read.result().stamp.generation) for read in reads]
