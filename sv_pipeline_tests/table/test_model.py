"""Any sequence of changes leaves every backend in the state of a plain dictionary."""

from __future__ import annotations

import uuid

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline.table.interface import (
    Cell,
    Change,
    ColumnKey,
    DeleteCells,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
    Table,
)
from sv_pipeline.table.rehearsal import rehearsed
from sv_pipeline_tests.properties import examples

COLUMNS = [ColumnKey("0", b"a"), ColumnKey("0", b"a\x00"), ColumnKey("4", b"a"), ColumnKey("1", b"n")]
KEYS = [b"a", b"a\x00", b"b", b"\xff"]

Model = dict[bytes, dict[ColumnKey, dict[int, bytes]]]

timestamps = st.integers(1, 5)
changes = st.one_of(
    st.builds(SetCell, st.sampled_from(COLUMNS), st.binary(max_size=2), timestamps),
    st.builds(DeleteCells, st.sampled_from(COLUMNS), st.none() | timestamps),
    st.builds(DeleteCells),
)
calls = st.lists(
    st.dictionaries(st.sampled_from(KEYS), st.lists(changes, min_size=1, max_size=4), max_size=4), max_size=6
)


def apply(model: Model, key: bytes, change: Change) -> None:
    row = model.setdefault(key, {})
    if isinstance(change, SetCell):
        assert change.timestamp is not None
        row.setdefault(change.column, {})[change.timestamp] = change.value
    elif change.column is None:
        row.clear()
    elif change.timestamp is None:
        row.pop(change.column, None)
    else:
        row.get(change.column, {}).pop(change.timestamp, None)


def view(model: Model, until: int, newest_only: bool) -> dict[bytes, RowView]:
    rows: dict[bytes, RowView] = {}
    for key, row in model.items():
        for column, cells in row.items():
            seen = [Cell(t, v) for t, v in sorted(cells.items(), reverse=True) if t <= until]
            if seen:
                rows.setdefault(key, {})[column] = seen[:1] if newest_only else seen
    return rows


@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=calls, until=st.integers(0, 5), newest_only=st.booleans())
def test_a_table_is_a_sorted_map(
    table: Table, calls: list[dict[bytes, list[Change]]], until: int, newest_only: bool
) -> None:
    prefix = uuid.uuid4().bytes  # the table is shared by all examples
    model: Model = {}
    for call in calls:
        table.mutate([RowMutation(prefix + key, changes) for key, changes in call.items()])
        for key, row_changes in call.items():
            for change in row_changes:
                apply(model, prefix + key, change)
        if any(column.family == "1" for row in model.values() for column in row):
            newest = table.read_rows(list(model), [COLUMNS[-1]])
            assert all(len(row[COLUMNS[-1]]) == 1 for row in newest.values())
    for key in model:  # what family 1 keeps between calls is up to the backend
        model[key].pop(COLUMNS[-1], None)
    expected = view(model, until, newest_only)
    assert table.read_rows(list(model), COLUMNS[:-1], until=until, newest_only=newest_only) == expected
    ranges = [RowKeyRange(prefix, prefix + b"\xff\xff")]
    scanned = list(table.scan(ranges, COLUMNS[:-1], until=until, newest_only=newest_only))
    assert scanned == sorted(expected.items())


@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=calls, after=calls, until=st.integers(0, 5), newest_only=st.booleans())
def test_a_rehearsal_shows_what_would_be_and_changes_nothing(
    table: Table,
    before: list[dict[bytes, list[Change]]],
    after: list[dict[bytes, list[Change]]],
    until: int,
    newest_only: bool,
) -> None:
    prefix = uuid.uuid4().bytes
    kept = [key for key in COLUMNS if key.family != "1"]
    model: Model = {}
    rehearsal = rehearsed(table)
    for number, call in enumerate([*before, *after]):
        (table if number < len(before) else rehearsal).mutate([RowMutation(prefix + k, c) for k, c in call.items()])
        for key, row_changes in call.items():
            for change in row_changes:
                apply(model, prefix + key, change)
        if number + 1 == len(before):
            as_it_was = table.read_rows([prefix + key for key in KEYS])
    for row in model.values():
        row.pop(COLUMNS[-1], None)
    expected = view(model, until, newest_only)
    every = [RowKeyRange(prefix, prefix + b"\xff\xff")]
    assert rehearsal.read_rows([prefix + key for key in KEYS], kept, until=until, newest_only=newest_only) == expected
    assert list(rehearsal.scan(every, kept, until=until, newest_only=newest_only)) == sorted(expected.items())
    recent = {key for key, row in model.items() for cells in row.values() for time in cells if 3 <= time <= until}
    assert [key for key, _ in rehearsal.scan(every, kept, since=3, until=until)] == sorted(recent)
    if before:
        assert table.read_rows([prefix + key for key in KEYS]) == as_it_was
