"""Row keys: what they look like, the way back to ids, and that ranges hold exactly what they are named after."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.ids import IdLayout
from sv_pipeline.table import keys
from sv_pipeline.table.interface import RowKeyRange

uint64 = st.integers(0, 2**64 - 1)
LAYOUT = IdLayout(6)


@given(st.lists(uint64, max_size=30))
def test_many_keys_are_the_keys_of_each(ids: list[int]) -> None:
    array = np.array(ids, np.uint64)
    assert keys.node_keys(array) == [b"%020d" % i for i in ids] == [keys.node_key(i) for i in ids]
    assert keys.counter_keys(array) == [keys.counter_key(i) for i in ids]
    assert keys.edit_edge_keys(array) == [keys.edit_edge_key(i) for i in ids]
    assert keys.ingest_keys(3, array) == [keys.ingest_key(3, i) for i in ids]


@given(st.lists(uint64, max_size=30))
def test_ids_come_back_from_keys(ids: list[int]) -> None:
    array = np.array(ids, np.uint64)
    for make in (keys.node_keys, keys.counter_keys, keys.edit_edge_keys):
        found = keys.node_ids(make(array))
        assert found.dtype == np.uint64
        assert found.tolist() == ids


@given(uint64, uint64)
def test_keys_sort_as_their_ids(a: int, b: int) -> None:
    assert (keys.node_key(a) < keys.node_key(b)) == (a < b)


@pytest.mark.parametrize("broken", [[b"meta"], [b"0" * 19], [b"0" * 20, b"i" + b"0" * 20], [b"x" * 20], [b"0" * 22]])
def test_other_keys_are_not_taken_for_nodes(broken: list[bytes]) -> None:
    with pytest.raises(ValueError, match="not keys"):
        keys.node_ids(broken)


def test_keys_are_those_of_the_layout() -> None:
    assert keys.node_key(7) == b"00000000000000000007"
    assert keys.counter_key(7) == b"i00000000000000000007"
    assert keys.root_counter_key(7, 12) == b"i00000000000000000007_12"
    assert keys.edit_edge_key(7) == b"f00000000000000000007"
    assert keys.ingest_key(2, 7) == b"sv_pipeline:ingest:02:00000000000000000007"
    assert keys.split_ingest_key(keys.ingest_key(12, 7)) == (12, 7)
    assert (keys.META, keys.VERSION, keys.OPERATION_COUNTER) == (b"meta", b"version", b"ioperations")


def inside(key: bytes, key_range: RowKeyRange) -> bool:
    return key_range.start <= key < key_range.stop


@given(
    layer=st.integers(1, 6),
    coordinate=st.tuples(*[st.integers(0, 1)] * 3),
    segment=st.integers(0, 2**26 - 1),
)
def test_a_chunk_range_holds_its_nodes_and_no_others(
    layer: int, coordinate: tuple[int, int, int], segment: int
) -> None:
    chunk = int(LAYOUT.chunk_ids(layer, coordinate))
    found = keys.chunk_range(LAYOUT, chunk)
    assert inside(keys.node_key(chunk | segment), found)
    assert inside(keys.node_key(chunk | LAYOUT.max_segment(layer)), found)
    assert not inside(keys.node_key(chunk + LAYOUT.max_segment(layer) + 1), found)
    assert not inside(keys.node_key(chunk - 1), found)
    assert inside(keys.node_key(chunk | segment), keys.layer_range(layer))
    assert not inside(keys.node_key(chunk | segment), keys.layer_range(layer + 1))


def test_the_last_chunk_of_all_has_a_range() -> None:
    layout = IdLayout(12)
    top = int(layout.chunk_ids(12, [1, 1, 1]))
    assert inside(keys.node_key(top | layout.max_segment(12)), keys.chunk_range(layout, top))


def test_neighbouring_chunks_are_one_range() -> None:
    row = LAYOUT.chunk_ids(2, [[3, 4, z] for z in (7, 5, 6, 9, 5)])
    ranges = keys.chunk_ranges(LAYOUT, row)
    assert len(ranges) == 2
    assert ranges[0].start == keys.chunk_range(LAYOUT, int(row[1])).start
    assert ranges[0].stop == keys.chunk_range(LAYOUT, int(row[0])).stop


def test_operations_are_before_all_nodes() -> None:
    operations = keys.operation_range()
    assert inside(keys.node_key(1), operations)
    assert not inside(keys.node_key(0), operations)
    assert operations.stop <= keys.layer_range(1).start
    assert keys.operation_range(3, 5) == RowKeyRange(keys.node_key(3), keys.node_key(6))


def test_ingest_rows_are_outside_of_all_node_ranges() -> None:
    key = keys.ingest_key(2, 5)
    assert not any(inside(key, keys.layer_range(layer)) for layer in range(255))
    assert inside(key, keys.ingest_range(2))
    assert inside(key, keys.ingest_range())
    assert not inside(key, keys.ingest_range(3))


byte_keys = st.binary(max_size=3)


@given(st.lists(st.builds(RowKeyRange, byte_keys, byte_keys), max_size=6), byte_keys)
def test_joined_ranges_hold_the_same_keys(ranges: list[RowKeyRange], key: bytes) -> None:
    joined = keys.join_ranges(ranges)
    assert sum(inside(key, r) for r in joined) == any(inside(key, r) for r in ranges)
    assert all(a.stop < b.start for a, b in pairwise(joined))
