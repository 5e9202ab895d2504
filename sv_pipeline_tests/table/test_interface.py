"""What every backend does: reads, scans, writes, counters and conditions of the table interface."""

from __future__ import annotations

import pickle
import struct
import time
from collections.abc import Sequence

import pytest

from sv_pipeline.errors import ConfigError, ConflictError, NotFoundError, SvPipelineError
from sv_pipeline.table.interface import (
    MAX_AGE_MS,
    Cell,
    CellMatch,
    Change,
    ColumnKey,
    ConditionalMutation,
    DeleteCells,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

A = ColumnKey("0", b"a")
B = ColumnKey("0", b"b")
C = ColumnKey("4", b"a")
COUNTER = ColumnKey("1", b"counter")
OLD = ColumnKey("3", b"old")


def put(table: Table, key: bytes, *changes: Change) -> None:
    table.mutate([RowMutation(key, changes)])


def row(table: Table, key: bytes, columns: Sequence[ColumnKey] | None = None) -> RowView:
    return table.read_rows([key], columns).get(key, {})


def keys_of(table: Table, *ranges: tuple[bytes, bytes]) -> list[bytes]:
    return [key for key, _ in table.scan([RowKeyRange(*r) for r in ranges])]


# -- life cycle -------------------------------------------------------------------------------------------------------


def test_a_table_exists_between_create_and_drop(new_table: Table) -> None:
    assert not new_table.exists()
    new_table.create()
    assert new_table.exists()
    new_table.drop()
    assert not new_table.exists()


def test_dropping_a_missing_table_does_nothing(new_table: Table) -> None:
    new_table.drop()


def test_a_table_cannot_be_created_twice(table: Table) -> None:
    put(table, b"r", SetCell(A, b"kept"))
    with pytest.raises(ConflictError, match=table.name):
        table.create()
    assert row(table, b"r")[A][0].value == b"kept"


def test_a_table_made_again_is_empty(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x"))
    table.drop()
    table.create()
    assert row(table, b"r") == {}


def test_a_missing_table_is_named_in_the_error(new_table: Table) -> None:
    with pytest.raises(NotFoundError, match=new_table.name):
        new_table.read_rows([b"r"])
    with pytest.raises(NotFoundError, match=new_table.name):
        list(new_table.scan([RowKeyRange(b"a", b"b")]))
    with pytest.raises(NotFoundError, match=new_table.name):
        put(new_table, b"r", SetCell(A, b"x"))
    with pytest.raises(NotFoundError, match=new_table.name):
        new_table.increment(b"r", COUNTER, 1)
    with pytest.raises(NotFoundError, match=new_table.name):
        new_table.check_and_mutate(b"r", [CellMatch(A)], if_unmatched=[SetCell(A, b"x")])


def test_a_closed_table_opens_itself_again(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 5))
    table.close()
    assert row(table, b"r") == {A: [Cell(5, b"x")]}


def test_a_table_travels_to_other_processes_as_its_address(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 5))
    copy: Table = pickle.loads(pickle.dumps(table))
    assert row(copy, b"r") == {A: [Cell(5, b"x")]}
    copy.close()


def test_a_read_only_table_refuses_every_change(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 5))
    table.read_only = True
    try:
        copy: Table = pickle.loads(pickle.dumps(table))
        for refused in (
            lambda: put(copy, b"r", DeleteCells()),
            lambda: copy.increment(b"r", COUNTER, 1),
            lambda: copy.check_and_mutate(b"r", [CellMatch(A)], if_matched=[DeleteCells()]),
            lambda: copy.at_once([RowMutation(b"r", [DeleteCells()])]),
            copy.drop,
            copy.create,
        ):
            with pytest.raises(ConfigError, match="read-only"):
                refused()
        assert row(copy, b"r") == {A: [Cell(5, b"x")]}
    finally:
        table.read_only = False


# -- reads ------------------------------------------------------------------------------------------------------------


def test_cells_come_newest_first(table: Table) -> None:
    put(table, b"r", SetCell(A, b"2", 2), SetCell(A, b"9", 9), SetCell(A, b"5", 5))
    assert row(table, b"r") == {A: [Cell(9, b"9"), Cell(5, b"5"), Cell(2, b"2")]}


def test_rows_and_columns_without_cells_are_absent(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 1))
    put(table, b"s", SetCell(B, b"x", 1))
    assert table.read_rows([b"r", b"s", b"none"], [A]) == {b"r": {A: [Cell(1, b"x")]}}


def test_duplicate_keys_and_columns_are_read_once(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 1))
    assert table.read_rows([b"r", b"r"], [A, A]) == {b"r": {A: [Cell(1, b"x")]}}


def test_nothing_asked_gives_nothing(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 1))
    assert table.read_rows([]) == {}
    assert table.read_rows([b"r"], []) == {}
    assert list(table.scan([])) == []
    assert list(table.scan([RowKeyRange(b"a", b"z")], [])) == []
    assert list(table.scan([RowKeyRange(b"z", b"a"), RowKeyRange(b"r", b"r")])) == []
    table.mutate([])
    table.mutate([RowMutation(b"s", [])])
    assert keys_of(table, (b"", b"\xff")) == [b"r"]


def test_columns_are_chosen_by_family_and_qualifier(table: Table) -> None:
    put(table, b"r", SetCell(A, b"a", 1), SetCell(B, b"b", 1), SetCell(C, b"c", 1))
    assert row(table, b"r", [A]) == {A: [Cell(1, b"a")]}
    assert row(table, b"r", [B, C]) == {B: [Cell(1, b"b")], C: [Cell(1, b"c")]}
    assert row(table, b"r") == {A: [Cell(1, b"a")], B: [Cell(1, b"b")], C: [Cell(1, b"c")]}


def test_many_columns_can_be_asked_at_once(table: Table) -> None:
    columns = [ColumnKey("4", b"c%d" % i) for i in range(30)]
    put(table, b"r", *(SetCell(column, b"v", 1) for column in columns))
    assert set(row(table, b"r", columns[:20])) == set(columns[:20])


@pytest.mark.parametrize("qualifier", [b"", b"\x00", b"a\x00b", b"\xff\xfe", b"a:b", b".*", b"a\nb", bytes(range(256))])
def test_qualifiers_and_keys_are_any_bytes(table: Table, qualifier: bytes) -> None:
    column, key = ColumnKey("0", qualifier), b"k" + qualifier
    put(table, key, SetCell(column, qualifier, 1), SetCell(A, b"other", 1))
    assert row(table, key, [column]) == {column: [Cell(1, qualifier)]}
    assert table.check_and_mutate(key, [CellMatch(column, qualifier)], if_matched=[DeleteCells(column)])
    assert row(table, key) == {A: [Cell(1, b"other")]}


@pytest.mark.parametrize(("since", "until"), [(20, None), (20, 20), (0, 25), (21, None), (11, 19)])
def test_a_scan_gives_cells_of_a_span_of_time_and_rows_that_have_some(
    table: Table, since: int, until: int | None
) -> None:
    times = {b"r1": (10, 20, 30), b"r2": (10,), b"r3": (30,)}
    table.mutate([RowMutation(key, [SetCell(A, b"%d" % t, t) for t in some]) for key, some in times.items()])
    expected = {
        key: [t for t in reversed(some) if t >= since and (until is None or t <= until)] for key, some in times.items()
    }
    found = dict(table.scan([RowKeyRange(b"r", b"s")], [A], since=since, until=until))
    assert {key: [cell.timestamp for cell in row[A]] for key, row in found.items()} == {
        key: some for key, some in expected.items() if some
    }


def test_until_is_inclusive(table: Table) -> None:
    put(table, b"r", *(SetCell(A, b"%d" % t, t) for t in (10, 20, 30)), SetCell(B, b"b", 25))
    assert table.read_rows([b"r"], until=20) == {b"r": {A: [Cell(20, b"20"), Cell(10, b"10")]}}
    assert table.read_rows([b"r"], until=19) == {b"r": {A: [Cell(10, b"10")]}}
    assert table.read_rows([b"r"], until=9) == {}


def test_newest_only_takes_the_newest_that_matches(table: Table) -> None:
    put(table, b"r", *(SetCell(A, b"%d" % t, t) for t in (10, 20, 30)), SetCell(B, b"b", 25))
    assert table.read_rows([b"r"], newest_only=True) == {b"r": {A: [Cell(30, b"30")], B: [Cell(25, b"b")]}}
    assert table.read_rows([b"r"], [A], until=29, newest_only=True) == {b"r": {A: [Cell(20, b"20")]}}
    (scanned,) = table.scan([RowKeyRange(b"r", b"s")], [A], until=29, newest_only=True)
    assert scanned == (b"r", {A: [Cell(20, b"20")]})


def test_25_000_keys_are_read_in_one_call(table: Table) -> None:
    keys = [b"%020d" % i for i in range(25_000)]
    table.mutate(RowMutation(key, [SetCell(A, key[-4:], 1)]) for key in keys[::2])
    before = table.round_trips
    rows = table.read_rows(keys, [A], newest_only=True)
    assert table.round_trips - before <= 3
    assert list(rows) == keys[::2]
    assert all(r == {A: [Cell(1, key[-4:])]} for key, r in rows.items())


def test_big_values_come_back_whole(table: Table) -> None:
    value = bytes(range(256)) * 20_000  # 5 MB: the server sends it in pieces
    put(table, b"r", SetCell(A, value, 1), SetCell(A, value[::-1], 2), SetCell(B, b"small", 1))
    assert row(table, b"r") == {A: [Cell(2, value[::-1]), Cell(1, value)], B: [Cell(1, b"small")]}


# -- scans ------------------------------------------------------------------------------------------------------------


def test_a_scan_is_in_the_order_of_keys(table: Table) -> None:
    for key in (b"b", b"a\xff", b"a", b"\x00", b"a\x00", b"c"):
        put(table, key, SetCell(A, key, 1))
    assert keys_of(table, (b"", b"\xff")) == [b"\x00", b"a", b"a\x00", b"a\xff", b"b", b"c"]


def test_whether_there_is_any_row_is_told_by_its_cells(table: Table) -> None:
    everything = RowKeyRange(b"a", b"z")
    assert not table.any_row([everything])
    for key in (b"b", b"c", b"d"):
        put(table, key, SetCell(B if key == b"c" else A, b"1"))
    put(table, b"aa", SetCell(OLD, b"1", 1))
    assert table.any_row([everything])
    assert table.any_row([everything], [B])
    assert table.any_row([RowKeyRange(b"a", b"b"), RowKeyRange(b"c", b"d")], [B])
    assert not table.any_row([RowKeyRange(b"a", b"c"), RowKeyRange(b"d", b"e")], [B])
    assert not table.any_row([everything], [C])
    assert not table.any_row([RowKeyRange(b"a", b"b")])
    assert not table.any_row([])


def test_a_scan_starts_inside_and_stops_outside(table: Table) -> None:
    for key in (b"a", b"b", b"c"):
        put(table, key, SetCell(A, key, 1))
    assert keys_of(table, (b"a", b"c")) == [b"a", b"b"]


def test_overlapping_and_unsorted_ranges_give_each_row_once(table: Table) -> None:
    for i in range(10):
        put(table, b"%d" % i, SetCell(A, b"x", 1))
    assert keys_of(table, (b"6", b"8"), (b"1", b"3"), (b"2", b"4"), (b"6", b"7")) == [b"1", b"2", b"3", b"6", b"7"]


def test_a_scan_over_thousands_of_ranges_is_ordered(table: Table) -> None:
    keys = [b"%06d" % i for i in range(9_000)]
    table.mutate(RowMutation(key, [SetCell(A, b"x", 1)]) for key in keys)
    assert keys_of(table, *((b"%06d" % i, b"%06d" % (i + 1)) for i in range(8_998, -1, -2))) == keys[::2]


def test_a_scan_that_is_left_early_does_not_disturb(table: Table) -> None:
    table.mutate(RowMutation(b"%04d" % i, [SetCell(A, b"x", 1)]) for i in range(5_000))
    for key, _ in table.scan([RowKeyRange(b"", b"\xff")]):
        put(table, b"later", SetCell(A, b"x", 1))
        assert key == b"0000"
        break
    assert row(table, b"later") == {A: [Cell(1, b"x")]}


# -- writes -----------------------------------------------------------------------------------------------------------


def test_a_cell_of_the_same_time_is_replaced(table: Table) -> None:
    put(table, b"r", SetCell(A, b"1", 7))
    put(table, b"r", SetCell(A, b"2", 7), SetCell(A, b"3", 7))
    assert row(table, b"r") == {A: [Cell(7, b"3")]}


def test_a_cell_without_time_gets_the_present(table: Table) -> None:
    before = time.time_ns() // 1_000_000
    put(table, b"r", SetCell(A, b"x"))
    (cell,) = row(table, b"r")[A]
    assert before <= cell.timestamp <= time.time_ns() // 1_000_000


def test_changes_of_a_row_apply_in_their_order(table: Table) -> None:
    put(table, b"r", SetCell(A, b"old", 1), SetCell(B, b"old", 1))
    put(table, b"r", DeleteCells(A), SetCell(A, b"new", 2), SetCell(B, b"gone", 2), DeleteCells(B))
    assert row(table, b"r") == {A: [Cell(2, b"new")]}
    put(table, b"r", DeleteCells(), SetCell(C, b"only", 3))
    assert row(table, b"r") == {C: [Cell(3, b"only")]}


def test_one_version_of_a_cell_can_be_deleted(table: Table) -> None:
    put(table, b"r", *(SetCell(A, b"%d" % t, t) for t in (9, 10, 11)), SetCell(B, b"b", 10))
    put(table, b"r", DeleteCells(A, 10))
    assert row(table, b"r") == {A: [Cell(11, b"11"), Cell(9, b"9")], B: [Cell(10, b"b")]}


def test_a_deleted_row_leaves_its_neighbours(table: Table) -> None:
    for key in (b"r", b"r\x00", b"ra"):
        put(table, key, SetCell(A, b"x", 1))
    put(table, b"r", DeleteCells())
    assert keys_of(table, (b"", b"\xff")) == [b"r\x00", b"ra"]


def test_every_family_of_the_layout_is_there(table: Table) -> None:
    now = time.time_ns() // 1_000_000
    put(table, b"r", *(SetCell(ColumnKey(family, b"q"), b"x", now) for family in "01234"))
    assert {column.family for column in row(table, b"r")} == set("01234")


def test_family_1_keeps_only_the_newest_cell(table: Table) -> None:
    put(table, b"r", SetCell(COUNTER, b"1", 1), SetCell(COUNTER, b"3", 3))
    put(table, b"r", SetCell(COUNTER, b"2", 2))
    assert row(table, b"r") == {COUNTER: [Cell(3, b"3")]}


def test_family_3_forgets_after_a_year(table: Table) -> None:
    now = time.time_ns() // 1_000_000
    old, recent = now - MAX_AGE_MS - 60_000, now - MAX_AGE_MS + 60_000
    put(table, b"r", SetCell(OLD, b"old", old), SetCell(OLD, b"recent", recent), SetCell(A, b"kept", old))
    put(table, b"s", SetCell(OLD, b"old", old))
    assert table.read_rows([b"r", b"s"]) == {b"r": {OLD: [Cell(recent, b"recent")], A: [Cell(old, b"kept")]}}
    assert row(table, b"r", [OLD]) == {OLD: [Cell(recent, b"recent")]}
    assert keys_of(table, (b"r", b"t")) == [b"r"]


def test_a_write_of_thousands_of_rows_arrives_whole(table: Table) -> None:
    cells = [SetCell(ColumnKey("0", b"%d" % i), bytes(80), 1) for i in range(4)]
    table.mutate(RowMutation(b"%06d" % i, cells) for i in range(5_000))
    rows = dict(table.scan([RowKeyRange(b"", b"\xff")]))
    assert len(rows) == 5_000
    assert {len(r) for r in rows.values()} == {4}


def test_a_write_of_big_rows_is_split_as_needed(table: Table) -> None:
    value = bytes(3_000_000)
    table.mutate(RowMutation(b"%02d" % i, [SetCell(A, value, 1)]) for i in range(12))
    assert len(keys_of(table, (b"", b"\xff"))) == 12


# -- counters ---------------------------------------------------------------------------------------------------------


def test_a_counter_starts_at_zero_and_adds(table: Table) -> None:
    assert table.increment(b"i", COUNTER, 5) == 5
    assert table.increment(b"i", COUNTER, 1) == 6
    assert table.increment(b"i", COUNTER, -2) == 4
    assert [c.value for c in row(table, b"i")[COUNTER]] == [struct.pack(">q", 4)]


def test_a_counter_goes_on_from_a_cell_that_was_set(table: Table) -> None:
    put(table, b"i", SetCell(COUNTER, struct.pack(">q", 41), 1))
    assert table.increment(b"i", COUNTER, 1) == 42


def test_a_cell_that_is_no_counter_is_not_added_to(table: Table) -> None:
    put(table, b"i", SetCell(A, b"text", 1))
    with pytest.raises(SvPipelineError, match=r"64-bit|counter"):
        table.increment(b"i", A, 1)
    assert row(table, b"i") == {A: [Cell(1, b"text")]}


# -- conditions -------------------------------------------------------------------------------------------------------


def check(table: Table, *any_of: CellMatch, none_of: Sequence[CellMatch] = ()) -> bool:
    """The answer of a condition, seen also in what it did."""
    answer = table.check_and_mutate(
        b"r", any_of, none_of=none_of, if_matched=[SetCell(C, b"yes", 1)], if_unmatched=[SetCell(C, b"no", 1)]
    )
    assert row(table, b"r")[C] == [Cell(1, b"yes" if answer else b"no")]
    assert table.check_and_mutate(b"r", any_of, none_of=none_of) is answer
    return answer


def test_a_condition_looks_at_column_value_and_age(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 100))
    assert check(table, CellMatch(A))
    assert check(table, CellMatch(A, b"x"))
    assert check(table, CellMatch(A, b"x", since=100))
    assert not check(table, CellMatch(A, since=101))
    assert not check(table, CellMatch(A, b"y"))
    assert not check(table, CellMatch(A, b""))
    assert not check(table, CellMatch(B))


def test_an_empty_value_is_a_value(table: Table) -> None:
    put(table, b"r", SetCell(A, b"", 1), SetCell(B, b"x", 1))
    assert check(table, CellMatch(A, b""))
    assert not check(table, CellMatch(B, b""))


def test_only_the_newest_cell_counts(table: Table) -> None:
    put(table, b"r", SetCell(A, b"mine", 100), SetCell(A, b"theirs", 200))
    assert not check(table, CellMatch(A, b"mine"))
    assert not check(table, CellMatch(A, b"mine", since=50))
    assert check(table, CellMatch(A, b"theirs", since=150))


def test_any_of_several_conditions_is_enough(table: Table) -> None:
    put(table, b"r", SetCell(B, b"x", 1))
    assert check(table, CellMatch(A), CellMatch(B))
    assert not check(table, CellMatch(A), CellMatch(B, b"y"))
    assert not check(table)


def test_none_of_forbids(table: Table) -> None:
    put(table, b"r", SetCell(A, b"x", 1))
    assert check(table, CellMatch(A), none_of=[CellMatch(B)])
    put(table, b"r", SetCell(B, b"x", 1))
    assert not check(table, CellMatch(A), none_of=[CellMatch(B)])
    assert not check(table, CellMatch(A), none_of=[CellMatch(B, b"y"), CellMatch(B, b"x")])
    assert check(table, CellMatch(A), none_of=[CellMatch(B, b"y")])


def test_a_condition_on_a_missing_row_is_not_met(table: Table) -> None:
    assert not table.check_and_mutate(b"none", [CellMatch(A)], if_matched=[SetCell(A, b"x", 1)])
    assert row(table, b"none") == {}


def test_changes_sent_at_once_are_each_decided_by_their_own_row(table: Table) -> None:
    put(table, b"r1", SetCell(A, b"mine", 1))
    put(table, b"r2", SetCell(A, b"theirs", 1))
    change = [SetCell(B, b"changed", 1)]
    answers = table.at_once(
        [
            RowMutation(b"r0", change),
            *(ConditionalMutation(key, [CellMatch(A, b"mine")], if_matched=change) for key in (b"r2", b"r1")),
            RowMutation(b"r4", change),
            ConditionalMutation(b"r3", [CellMatch(A)], if_unmatched=change),
        ]
    )
    assert answers == [True, False, True, True, False]
    assert {key for key, row in table.read_rows([b"r%d" % i for i in range(5)]).items() if B in row} == {
        b"r0", b"r1", b"r3", b"r4",
    }  # fmt: skip
    assert table.at_once([]) == []
