"""Locks of roots and of chunks, temporal and indefinite, in both backends: one suite for all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from kvdbclient import BigTableClient, BigTableConfig

from sv_pipeline import edits
from sv_pipeline.edits import LockPatience, Reason
from sv_pipeline.edits.write.locking import EditLocks, lock_roots
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.columns import LOCK, NEW_PARENTS
from sv_pipeline.table.interface import CellMatch, RowKeyRange, RowMutation, Table
from sv_pipeline_tests.table.conftest import bigtable as bigtable

EXPIRY = timedelta(minutes=3)
IMPATIENT = LockPatience(0.0)
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
NODES = {"root": (5 << 56) | 9, "chunk": (2 << 56) | (3 << 46)}
GUARDS: dict[str, tuple[CellMatch, ...]] = {"root": locks.SUPERSEDED, "chunk": ()}


@pytest.fixture(params=["root", "chunk"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def row_of(kind: str, number: int = 0) -> bytes:
    return keys.node_key(NODES[kind] + number) if kind == "root" else keys.chunk_lock_key(NODES[kind] + (number << 46))


def held(table: Table, operation_id: int, kind: str, numbers: list[int], patience: LockPatience) -> EditLocks:
    """What an edit holds: roots, and chunks if that is what is asked for."""
    nodes = np.array([NODES[kind] + (n if kind == "root" else n << 46) for n in numbers], np.uint64)
    if kind == "root":
        return lock_roots(table, operation_id, lambda: nodes, EXPIRY, patience)
    root = np.array([(5 << 56) | (1000 + operation_id)], np.uint64)
    edit = lock_roots(table, operation_id, lambda: root, EXPIRY, patience)
    try:
        edit.lock_chunks(nodes, [f"chunk {n}" for n in numbers], patience)
    except BaseException:
        edit.release()
        raise
    return edit


def cells(table: Table) -> dict[bytes, object]:
    return dict(table.scan([EVERYTHING], [columns.LOCK.key, columns.INDEFINITE_LOCK.key]))


def expire(table: Table, key: bytes, operation_id: int) -> None:
    """Let the lock of an operation look as if it had not been renewed for long."""
    then = time.time_ns() // 1_000_000 - int(2 * EXPIRY.total_seconds() * 1000)
    assert locks.unlock(table, key, operation_id)
    table.mutate([RowMutation(key, [LOCK.set(operation_id, then)])])


# -- one row ----------------------------------------------------------------------------------------------------------


def test_of_many_one_gets_the_lock_and_only_it_can_give_it_back(table: Table, kind: str) -> None:
    key, guard = row_of(kind), GUARDS[kind]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda op: locks.lock(table, key, op, EXPIRY, guard=guard), range(1, 9)))
    assert got.count(True) == 1
    winner = got.index(True) + 1
    other = winner % 8 + 1
    assert not locks.unlock(table, key, other)
    assert not locks.renew_all(table, [key], other, guard=guard)[0]
    assert not locks.lock_all_indefinitely(table, [key], other, guard=guard)[0]
    assert locks.lock_all_indefinitely(table, [key], winner, guard=guard)[0]
    assert locks.unlock(table, key, winner)
    assert not locks.lock(table, key, other, EXPIRY, guard=guard), "indefinite locks outlive temporal ones"
    assert not locks.unlock_indefinitely(table, key, other)
    assert locks.unlock_indefinitely(table, key, winner)
    assert not cells(table)


def test_who_was_taken_over_can_neither_renew_nor_release_nor_go_on(table: Table, kind: str) -> None:
    key = row_of(kind)
    with held(table, 1, kind, [0], IMPATIENT) as old:
        expire(table, key, 1)
        new = held(table, 2, kind, [0], IMPATIENT)
        assert not locks.renew_all(table, [key], 1, guard=())[0]
        with pytest.raises(OwnershipLostError):
            old.verify()
        with pytest.raises(OwnershipLostError):
            old.make_indefinite()
    assert locks.holders(table, key) == (2, None), "the end of the old edit has not released it"
    new.make_indefinite()
    new.release()
    if kind == "root":
        assert not cells(table)
    else:
        assert key not in cells(table)


def test_a_replaced_root_cannot_be_locked_but_released(table: Table) -> None:
    key = row_of("root")
    assert locks.lock(table, key, 1, EXPIRY)
    table.mutate([RowMutation(key, [NEW_PARENTS.set(np.array([NODES["root"] + 1], np.uint64))])])
    assert not locks.renew_all(table, [key], 1)[0]
    assert locks.unlock(table, key, 1)
    assert not locks.lock(table, key, 2, EXPIRY)


# -- the locks of an edit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indefinite", [False, True], ids=["temporal", "indefinite"])
def test_a_refusal_says_who_holds_what_since_when_and_what_to_do(table: Table, kind: str, indefinite: bool) -> None:
    table.mutate([RowMutation(keys.node_key(4711), [columns.USER.set("alice")])])
    holder = held(table, 4711, kind, [1], IMPATIENT)
    if indefinite:
        holder.make_indefinite()
    before = cells(table)
    with pytest.raises(edits.EditRefused) as caught:
        held(table, 5, kind, [0, 1, 2], IMPATIENT)
    said = str(caught.value)
    assert caught.value.reason is Reason.LOCKED
    name = f"root {NODES['root'] + 1}" if kind == "root" else "chunk 1"
    how = "is being written" if indefinite else "is locked"
    assert said.startswith(f"{name} {how} by operation 4711 of 'alice' since 20")
    assert "operation 5 gave up" in said
    assert ("recover it" if indefinite else "expires by itself") in said
    assert cells(table) == before, "all or none"
    holder.release()
    assert not cells(table)


def test_what_is_free_is_locked_whole_and_in_order(table: Table, kind: str) -> None:
    """Several edits that want overlapping sets at once all come through: nobody holds and waits."""

    def edit(operation_id: int) -> float:
        rng = np.random.default_rng(operation_id)
        wanted = rng.permutation(4)[:3].tolist()
        with held(table, operation_id, kind, wanted, LockPatience(60, 0.01)) as mine:
            found = [locks.holders(table, row_of(kind, n))[0] for n in wanted]
            assert found == [operation_id] * 3
            known = mine.locked_at()
            mine.taken_at.clear()  # the same time is read for locks of an earlier attempt
            assert mine.locked_at() == known
            mine.make_indefinite()
            time.sleep(0.01)
            found = [locks.holders(table, row_of(kind, n))[1] for n in wanted]
            assert found == [operation_id] * 3
        return time.monotonic()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(edit, range(1, 13)))
    assert not cells(table)


def test_who_waits_takes_one_row_after_the_other_in_the_order_of_their_keys(
    table: Table, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that of two that want the same, one gets the first row and with it all; and nothing is kept on the way."""
    rows = sorted(row_of(kind, n) for n in range(4))
    last = next(n for n in range(4) if row_of(kind, n) == rows[-1])
    holder = held(table, 1, kind, [last], IMPATIENT)
    asked: list[list[bytes]] = []
    lock_all = locks.lock_all

    def note(table: Table, row_keys: list[bytes], *args: object, **options: object) -> list[bool]:
        asked.append(list(row_keys))
        return lock_all(table, row_keys, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(locks, "lock_all", note)
    before = cells(table)
    with pytest.raises(edits.EditRefused):
        held(table, 2, kind, [3, 0, 2, 1], LockPatience(0.2, 0.01))
    assert cells(table) == before
    tries = [keys_ for keys_ in asked if set(keys_) <= set(rows)]
    assert tries[0] == rows, "first all at once"
    assert tries[1:5] == [[row] for row in rows]
    holder.release()


# -- together with PyChunkedGraph's client ----------------------------------------------------------------------------


@pytest.fixture
def client(bigtable: BigtableTable) -> Iterator[BigTableClient]:
    config = BigTableConfig(PROJECT=bigtable.project, INSTANCE=bigtable.instance, ADMIN=True, READ_ONLY=False)
    client = BigTableClient(bigtable.name, config)
    yield client
    client.close()


def test_kvdbclient_respects_our_locks_of_chunks(bigtable: BigtableTable, client: BigTableClient) -> None:
    key = row_of("chunk")
    mine = held(bigtable, 1, "chunk", [0], IMPATIENT)
    other = np.uint64(2)
    assert not client.lock_by_row_key(key, other)
    assert not client.lock_by_row_key_with_indefinite(key, other)
    assert not client.renew_lock_by_row_key(key, other)
    assert not client.unlock_by_row_key(key, other)
    mine.make_indefinite()
    assert locks.unlock(bigtable, key, 1)
    assert not client.lock_by_row_key_with_indefinite(key, other)
    assert not client.lock_by_row_key_indefinitely(key, other)
    assert not client.unlock_indefinitely_locked_by_row_key(key, other)
    assert locks.holders(bigtable, key) == (None, 1)
    mine.release()
    assert client.lock_by_row_key_with_indefinite(key, other)


def test_we_respect_locks_of_chunks_of_kvdbclient(bigtable: BigtableTable, client: BigTableClient) -> None:
    key, theirs = row_of("chunk"), np.uint64(7)
    assert client.lock_by_row_key_with_indefinite(key, theirs)
    with pytest.raises(edits.EditRefused, match="chunk 0 is locked by operation 7 since 20"):
        held(bigtable, 1, "chunk", [0], IMPATIENT)
    assert not locks.unlock(bigtable, key, 1)
    assert client.renew_lock_by_row_key(key, theirs)
    assert client.lock_by_row_key_indefinitely(key, theirs)
    assert client.unlock_by_row_key(key, theirs)
    with pytest.raises(edits.EditRefused, match="chunk 0 is being written by operation 7 since 20"):
        held(bigtable, 1, "chunk", [0], IMPATIENT)
    assert not locks.unlock_indefinitely(bigtable, key, 1)
    assert client.unlock_indefinitely_locked_by_row_key(key, theirs)
    held(bigtable, 1, "chunk", [0], IMPATIENT).release()
    assert not cells(bigtable)


def test_kvdbclient_can_renew_and_release_what_we_locked_in_its_name(
    bigtable: BigtableTable, client: BigTableClient
) -> None:
    """Recovery by the other software finds locks that it knows how to take apart."""
    key, operation = row_of("chunk"), np.uint64(1)
    mine = held(bigtable, 1, "chunk", [0], IMPATIENT)
    mine.make_indefinite()
    assert client.renew_lock_by_row_key(key, operation)
    assert client.unlock_by_row_key(key, operation)
    assert client.unlock_indefinitely_locked_by_row_key(key, operation)
    assert key not in cells(bigtable)
