"""Transactions that check whether they can succeed before they are committed.

A transaction with repeatable reads fails if another process has changed what it has read, which is enough for correct
results. But TensorStore (seen in 0.1.86) may crash if a commit that touches several nodes of the B+tree fails in one of
them: ``BtreeWriterCommitOperation::VisitLeafNode`` continues with the others, whose changes are freed by then. Nothing
is damaged, since nothing is committed, but the process is gone. So conflicts are detected before the commit, by
comparing the stamps of what was read: on disk while all other writers wait, elsewhere just before the commit.

Keys that all writers change, such as an entry of a ledger that many jobs work on, are best read and written last, while
the others wait (`CheckedTransaction.last`). Then it does not matter that they have changed since the transaction began.

A transaction also keeps every chunk that is read through it in memory. So large data that are only read are read
outside of the transaction, at the generation at which it began; only their stamps are read in the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import tensorstore as ts

from sv_pipeline.segmentation.fork.records import store_at
from sv_pipeline.storage.file_guard import commit_guard
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.ocdbt import OcdbtStore

__all__ = ["ChangedError", "CheckedTransaction", "checked_transaction"]

STAMPS_AT_ONCE = 1024


class ChangedError(Exception):
    """Raised if another process has changed what a transaction depends on. Callers in this package try again."""


@dataclass
class CheckedTransaction:
    """An atomic transaction with repeatable reads, and the keys that it depends on."""

    transaction: ts.Transaction
    """No key may be read in it that was written in it before: TensorStore (seen in 0.1.86) then commits an empty value.
    Arrays may be read after their chunks were written, as voxels or as keys."""
    before: OcdbtStore
    """The store as it was when the transaction began; read-only."""
    keys: set[str] = field(default_factory=set)
    """Keys that were read in the transaction; the code that reads a key adds it."""
    keys_before: set[str] = field(default_factory=set)
    """Keys that were read from `before` and are not written; the code that reads a key adds it."""
    last: list[Callable[[ts.KvStore], None]] = field(default_factory=list)
    """Functions that are called with the keys of the transaction just before the commit, while other writers on this
    disk wait."""


@contextmanager
def checked_transaction(store: OcdbtStore) -> Iterator[CheckedTransaction]:
    """Provide a transaction that is committed at the end of the block, or aborted on an error.

    Raises
    ------
    ChangedError
        If a key that was read has changed since the block began; nothing is committed.
    """
    generation = current_version(store.base).generation
    transaction = ts.Transaction(atomic=True, repeatable_read=True)
    checked = CheckedTransaction(transaction, store_at(store, generation))
    try:
        yield checked
        with commit_guard(store.folder):
            _check(store, checked, generation)
            for call in checked.last:
                call(store.kv.with_transaction(transaction))
            transaction.commit_sync()
    finally:
        transaction.abort()  # this has no effect after a commit


def _check(store: OcdbtStore, checked: CheckedTransaction, generation: int) -> None:
    then = checked.before.kv
    # These reads become conditions of the commit.
    if not _same(then, store.kv.with_transaction(checked.transaction), checked.keys_before):
        raise ChangedError
    if current_version(store.base).generation != generation and not _same(then, store.kv, checked.keys):
        raise ChangedError


def _same(then: ts.KvStore, now: ts.KvStore, keys: Iterable[str]) -> bool:
    wanted = sorted(keys)
    groups = (wanted[first : first + STAMPS_AT_ONCE] for first in range(0, len(wanted), STAMPS_AT_ONCE))
    return all(_stamps(then, group) == _stamps(now, group) for group in groups)


def _stamps(kv: ts.KvStore, keys: list[str]) -> list[bytes]:
    reads = [kv.read(key, byte_range=slice(0, 0)) for key in keys]
    return [bytes(read.result().stamp.generation) for read in reads]
