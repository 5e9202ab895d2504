"""Locks of blocks: all or none, kept alive while they are held, free again when their holder is dead."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import ConflictError
from sv_pipeline.pyramid.block_locks import block_key, lock_blocks, new_owner
from sv_pipeline.table import locks
from sv_pipeline.table.interface import RowKeyRange, Table

EXPIRY = timedelta(minutes=1)
SHORT = timedelta(seconds=0.4)
BLOCKS = [(0, 0, 0), (3, 1, 0), (0, 7, 2)]

coordinates = st.tuples(*[st.integers(0, 2**40)] * 3)


@given(st.lists(coordinates, unique=True, max_size=20))
def test_each_block_has_a_row_key_of_26_bytes_of_its_own(blocks: list[tuple[int, int, int]]) -> None:
    keys = {block_key(block) for block in blocks}
    assert len(keys) == len(blocks)
    assert all(len(key) == 26 for key in keys)


def test_overlapping_sets_of_blocks_exclude_each_other_and_disjoint_ones_do_not(table: Table) -> None:
    first = lock_blocks(table, BLOCKS[:2], 1, EXPIRY)
    assert first is not None
    assert lock_blocks(table, BLOCKS[1:], 2, EXPIRY) is None
    third = lock_blocks(table, BLOCKS[2:], 3, EXPIRY)
    assert third is not None, "a refused set holds none of its blocks"
    first.release()
    third.release()
    assert lock_blocks(table, BLOCKS, 2, EXPIRY) is not None


def test_of_many_jobs_one_gets_the_blocks(table: Table) -> None:
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda owner: lock_blocks(table, BLOCKS, owner, EXPIRY), range(1, 7)))
    assert sum(each is not None for each in got) <= 1


def test_released_blocks_leave_no_rows(table: Table) -> None:
    held = lock_blocks(table, BLOCKS, new_owner(), EXPIRY)
    assert held is not None
    with held:
        assert len(list(table.scan([RowKeyRange(b"\x00", b"\xff" * 30)]))) == 3
    assert not list(table.scan([RowKeyRange(b"\x00", b"\xff" * 30)]))


def test_locks_are_renewed_for_as_long_as_they_are_held(table: Table) -> None:
    held = lock_blocks(table, BLOCKS, 1, SHORT)
    assert held is not None
    with held:
        for _ in range(4):
            time.sleep(SHORT.total_seconds() / 2)
            assert lock_blocks(table, BLOCKS[:1], 2, SHORT) is None
        held.check()
    assert lock_blocks(table, BLOCKS[:1], 2, SHORT) is not None


def test_locks_of_a_dead_holder_expire(table: Table) -> None:
    assert lock_blocks(table, BLOCKS, 1, SHORT) is not None
    time.sleep(SHORT.total_seconds() * 1.2)
    assert lock_blocks(table, BLOCKS, 2, SHORT) is not None


def test_who_lost_its_locks_is_told_and_takes_nothing_away(table: Table) -> None:
    held = lock_blocks(table, BLOCKS, 1, SHORT)
    assert held is not None
    time.sleep(SHORT.total_seconds() * 1.2)
    assert lock_blocks(table, BLOCKS[:1], 2, SHORT) is not None
    with held:
        time.sleep(SHORT.total_seconds())
        with pytest.raises(ConflictError, match="lost"):
            held.check()
    assert locks.holders(table, block_key(BLOCKS[0])) == (2, None)
    assert locks.holders(table, block_key(BLOCKS[1])) == (None, None)
