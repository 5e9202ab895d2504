"""Locks of one row: who holds them, when they end, and that nobody can touch another's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from kvdbclient import BigTableClient, BigTableConfig

from sv_pipeline.table import keys, locks
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.columns import LOCK, NEW_PARENTS
from sv_pipeline.table.interface import RowMutation, Table

ROOT = (5 << 56) | 9
ROW = keys.node_key(ROOT)
EXPIRY = timedelta(minutes=3)


def age(table: Table, operation_id: int, by: timedelta = 2 * EXPIRY) -> None:
    """Put a lock that was taken some time ago."""
    then = time.time_ns() // 1_000_000 - int(by.total_seconds() * 1000)
    table.mutate([RowMutation(ROW, [LOCK.set(operation_id, then)])])


def test_one_operation_holds_a_lock(table: Table) -> None:
    assert locks.lock(table, ROW, 1, EXPIRY)
    assert not locks.lock(table, ROW, 2, EXPIRY)
    assert not locks.lock(table, ROW, 1, EXPIRY)
    assert locks.holders(table, ROW) == (1, None)
    assert not locks.unlock(table, ROW, 2)
    assert locks.unlock(table, ROW, 1)
    assert locks.lock(table, ROW, 2, EXPIRY)


def test_of_many_threads_one_gets_the_lock(table: Table) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda op: locks.lock(table, ROW, op, EXPIRY), range(1, 9)))
    assert got.count(True) == 1
    assert locks.holders(table, ROW)[0] == got.index(True) + 1


def test_an_expired_lock_can_be_taken_or_renewed(table: Table) -> None:
    age(table, 1)
    assert locks.renew_all(table, [ROW], 1)[0]
    assert not locks.lock(table, ROW, 2, EXPIRY)


def test_whoever_was_overtaken_can_do_nothing_to_the_new_holder(table: Table) -> None:
    age(table, 1)
    assert locks.lock(table, ROW, 2, EXPIRY)
    assert not locks.renew_all(table, [ROW], 1)[0]
    assert not locks.lock_all_indefinitely(table, [ROW], 1)[0]
    assert not locks.unlock(table, ROW, 1)
    assert locks.holders(table, ROW) == (2, None)
    assert locks.lock_all_indefinitely(table, [ROW], 2)[0]


def test_no_older_lock_comes_up_when_one_is_released(table: Table) -> None:
    age(table, 1, timedelta(minutes=1))
    assert locks.renew_all(table, [ROW], 1)[0]
    assert locks.unlock(table, ROW, 1)
    assert locks.holders(table, ROW) == (None, None)
    assert locks.lock(table, ROW, 2, EXPIRY)


def test_an_indefinite_lock_outlives_the_temporal_one(table: Table) -> None:
    assert not locks.lock_all_indefinitely(table, [ROW], 1)[0]
    locks.lock(table, ROW, 1, EXPIRY)
    assert locks.lock_all_indefinitely(table, [ROW], 1)[0]
    assert locks.unlock(table, ROW, 1)
    assert not locks.lock(table, ROW, 2, EXPIRY)
    assert not locks.unlock_indefinitely(table, ROW, 2)
    assert locks.holders(table, ROW) == (None, 1)
    assert locks.unlock_indefinitely(table, ROW, 1)
    assert locks.lock(table, ROW, 2, EXPIRY)


def test_a_replaced_root_cannot_be_locked(table: Table) -> None:
    locks.lock(table, ROW, 1, EXPIRY)
    table.mutate([RowMutation(ROW, [NEW_PARENTS.set(np.array([ROOT + 1], np.uint64))])])
    assert not locks.renew_all(table, [ROW], 1)[0]
    assert not locks.lock_all_indefinitely(table, [ROW], 1)[0]
    assert locks.unlock(table, ROW, 1)
    assert not locks.lock(table, ROW, 2, EXPIRY)
    assert locks.lock(table, ROW, 2, EXPIRY, guard=())


# -- together with PyChunkedGraph's client ----------------------------------------------------------------------------


@pytest.fixture
def client(bigtable: BigtableTable) -> Iterator[BigTableClient]:
    config = BigTableConfig(PROJECT=bigtable.project, INSTANCE=bigtable.instance, ADMIN=True, READ_ONLY=False)
    client = BigTableClient(bigtable.name, config)
    yield client
    client.close()


def test_we_and_kvdbclient_respect_each_others_locks(bigtable: BigtableTable, client: BigTableClient) -> None:
    root = np.uint64(ROOT)
    assert locks.lock(bigtable, ROW, 1, EXPIRY)
    assert not client.lock_root(root, np.uint64(2))
    assert client.renew_lock(root, np.uint64(1))
    assert locks.lock_all_indefinitely(bigtable, [ROW], 1)[0]
    assert locks.unlock(bigtable, ROW, 1)
    assert not client.lock_root(root, np.uint64(2))
    assert locks.unlock_indefinitely(bigtable, ROW, 1)
    assert client.lock_root(root, np.uint64(2))
    assert not locks.lock(bigtable, ROW, 3, EXPIRY)
    assert locks.renew_all(bigtable, [ROW], 2)[0]
    assert client.lock_root_indefinitely(root, np.uint64(2))
    assert locks.unlock(bigtable, ROW, 2)
    assert not locks.lock(bigtable, ROW, 3, EXPIRY)
    assert client.unlock_indefinitely_locked_root(root, np.uint64(2))
    assert locks.lock(bigtable, ROW, 3, EXPIRY)
