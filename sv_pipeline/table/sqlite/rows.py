"""SQL statements: the schema, selects from the options of a read, rows from cells, changes. Opens no connection."""

from __future__ import annotations

import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from sv_pipeline.errors import CorruptionError
from sv_pipeline.table.interface import (
    AGING_FAMILY,
    MAX_AGE_MS,
    NEWEST_FAMILY,
    Cell,
    CellFilter,
    CellMatch,
    Change,
    ColumnKey,
    ConditionalMutation,
    RowKeyRange,
    RowView,
    SetCell,
)

__all__ = ["SCHEMA", "add", "apply_changes", "column_name", "decide", "now_ms", "rows_of", "select_cells"]

CELLS_PER_FETCH = 2_000
NARROW = 4  # up to so many columns are looked up one by one; more are cheaper to filter from the whole row
FEW = 2  # the newest cells of so many columns are cheaper to look up one by one, however few versions they have
MANY = 12  # of more columns they are looked up in rows with more cells than this; most rows have one to three versions
NEWEST_PREFIX = f"{NEWEST_FAMILY}:".encode()
AGING_PREFIX = f"{AGING_FAMILY}:".encode()

SCHEMA = """
CREATE TABLE cells (
    row BLOB NOT NULL,
    column BLOB NOT NULL,       -- family ':' qualifier
    timestamp INTEGER NOT NULL, -- milliseconds since the epoch
    value BLOB NOT NULL,
    PRIMARY KEY (row, column, timestamp DESC)
) WITHOUT ROWID
"""

PUT = "INSERT OR REPLACE INTO cells (row, column, timestamp, value) VALUES (?, ?, ?, ?)"
NEWEST = "SELECT timestamp, value FROM cells WHERE row = ? AND column = ? ORDER BY timestamp DESC LIMIT 1"
KEEP_NEWEST = """
DELETE FROM cells WHERE row = ?1 AND column = ?2
    AND timestamp < (SELECT max(timestamp) FROM cells WHERE row = ?1 AND column = ?2)
"""


def select_cells(rows: Sequence[bytes] | RowKeyRange, wanted: CellFilter) -> tuple[str, list[Any]]:
    """Return the statement and the parameters of a read, by keys or by range."""
    columns, until, newest_only, since = wanted
    by_range = isinstance(rows, RowKeyRange)
    if newest_only and since is None and columns is not None and not isinstance(rows, RowKeyRange):
        return _select_newest(rows, columns, until)
    conditions = ["row >= ? AND row < ?" if by_range else f"row IN ({_marks(rows)})"]
    parameters: list[Any] = list(rows)
    if columns is not None:
        # "+" prevents the use of the index for the column, so that cells arrive in the order of the index.
        lookup = "+column" if by_range or len(columns) > NARROW else "column"
        conditions.append(f"{lookup} IN ({_marks(columns)})")
        parameters += [column_name(c) for c in columns]
    if since is not None:
        conditions.append("timestamp >= ?")
        parameters.append(since)
    if until is not None:
        conditions.append("timestamp <= ?")
        parameters.append(until)
    if columns is None or any(c.family == AGING_FAMILY for c in columns):
        conditions.append("NOT (column >= ? AND column < ? AND timestamp < ?)")
        parameters += [AGING_PREFIX, f"{AGING_FAMILY};".encode(), now_ms() - MAX_AGE_MS]  # ';' follows ':'
    # With a single max(), SQLite takes the other columns from the row that has the maximum.
    value = "max(timestamp), value" if newest_only else "timestamp, value"
    group = " GROUP BY row, column" if newest_only else ""
    order = " ORDER BY row, column" + ("" if newest_only else ", timestamp DESC")
    return f"SELECT row, column, {value} FROM cells WHERE {' AND '.join(conditions)}{group}{order}", parameters  # noqa: S608


def _select_newest(rows: Sequence[bytes], columns: Sequence[ColumnKey], until: int | None) -> tuple[str, list[Any]]:
    """Return the statement and the parameters of a read of newest cells.

    A grouping would read all cells of a column to find the newest. A node near the root of an object that was edited a
    thousand times has a thousand parents. So each cell is looked up, where there are few columns. With many columns,
    most of which a row lacks, look-ups would be slower as long as there are few versions; then only rows with many
    cells are read in this way, and of the others all cells are visited, and the newest returned.
    """
    names = [column_name(c) for c in dict.fromkeys(columns)]
    aging = any(c.family == AGING_FAMILY for c in columns)
    conditions: list[Any] = [] if until is None else [until]
    if aging:
        conditions += [AGING_PREFIX, f"{AGING_FAMILY};".encode(), now_ms() - MAX_AGE_MS]
    text = _text_of_newest(len(rows), len(names), until is not None, aging)
    return text, [*rows, *names, *conditions, *(conditions if len(names) > FEW else ())]


@lru_cache(256)
def _text_of_newest(n_rows: int, n_columns: int, until: bool, aging: bool) -> str:
    """Return the statement; its parameters are rows, columns, and the conditions, for each of its selects."""
    before = "AND n.timestamp <= ?" if until else ""
    # If the newest cell is too old, all are.
    aged = "AND NOT (cells.column >= ? AND cells.column < ? AND cells.timestamp < ?)" if aging else ""
    newest = "SELECT n.timestamp FROM cells AS n WHERE n.row = r.row AND n.column = {}.column"
    newest = f"cells.timestamp = ({newest} {before} ORDER BY n.timestamp DESC LIMIT 1) {aged}"
    # A cross join is read in the order in which it is written, so all cells of a row arrive together.
    select = "SELECT cells.row, cells.column, cells.timestamp, cells.value FROM r CROSS JOIN"
    looked_up = f"{select} c CROSS JOIN cells WHERE cells.row = r.row AND cells.column = c.column AND {newest}"
    looked_up = looked_up.format("c")
    rows, names = (",".join(["(?)"] * n) for n in (n_rows, n_columns))
    if n_columns <= FEW:
        return f"WITH r(row) AS (VALUES {rows}), c(column) AS (VALUES {names}) {looked_up}"
    return f"""
        WITH r(row, many) AS MATERIALIZED (
            SELECT column1, EXISTS (SELECT 1 FROM cells WHERE row = column1 LIMIT 1 OFFSET {MANY}) FROM (VALUES {rows})
        ), c(column) AS (VALUES {names})
        {select} cells WHERE NOT r.many AND cells.row = r.row AND +cells.column IN (SELECT column FROM c)
        AND {newest.format("cells")}
        UNION ALL {looked_up} AND r.many
    """  # noqa: S608


def _marks(parameters: Sequence[Any]) -> str:
    return ",".join("?" * len(parameters))


def rows_of(cursor: sqlite3.Cursor) -> Iterator[tuple[bytes, RowView]]:
    """Yield rows from the cells of a select, in its order."""
    names: dict[bytes, ColumnKey] = {}
    last: bytes | None = None
    row: RowView = {}
    cursor.arraysize = CELLS_PER_FETCH
    while cells := cursor.fetchmany():
        for key, column, timestamp, value in cells:
            if key != last:
                if last is not None:
                    yield last, row
                last, row = key, {}
            name = names.get(column)
            if name is None:
                family, _, qualifier = column.partition(b":")
                name = names[column] = ColumnKey(family.decode(), qualifier)
            if name in row:
                row[name].append(Cell(timestamp, value))
            else:
                row[name] = [Cell(timestamp, value)]
    if last is not None:
        yield last, row


def apply_changes(connection: sqlite3.Connection, changes: Iterable[tuple[bytes, Change]], now: int) -> None:
    """Apply changes in their order; consecutive new cells are written by one statement."""
    cells: list[tuple[bytes, bytes, int, bytes]] = []
    for key, change in changes:
        if isinstance(change, SetCell):
            timestamp = now if change.timestamp is None else change.timestamp
            cells.append((key, column_name(change.column), timestamp, bytes(change.value)))
            continue
        _put(connection, cells)
        cells = []
        if change.column is None:
            connection.execute("DELETE FROM cells WHERE row = ?", (key,))
        elif change.timestamp is None:
            connection.execute("DELETE FROM cells WHERE row = ? AND column = ?", (key, column_name(change.column)))
        else:
            connection.execute(
                "DELETE FROM cells WHERE row = ? AND column = ? AND timestamp = ?",
                (key, column_name(change.column), change.timestamp),
            )
    _put(connection, cells)


def _put(connection: sqlite3.Connection, cells: list[tuple[bytes, bytes, int, bytes]]) -> None:
    if not cells:
        return
    connection.executemany(PUT, cells)
    single = {(key, column) for key, column, _, _ in cells if column.startswith(NEWEST_PREFIX)}
    if single:
        connection.executemany(KEEP_NEWEST, single)
    aging = {(key, column, now_ms() - MAX_AGE_MS) for key, column, _, _ in cells if column.startswith(AGING_PREFIX)}
    if aging:
        connection.executemany("DELETE FROM cells WHERE row = ? AND column = ? AND timestamp < ?", aging)


def column_name(column: ColumnKey) -> bytes:
    """Return the name of a column in the file."""
    return column.family.encode() + b":" + column.qualifier


def now_ms() -> int:
    """Return the current time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def add(connection: sqlite3.Connection, key: bytes, column: ColumnKey, by: int) -> int:
    """Add to a counter cell; return the new number."""
    newest = connection.execute(NEWEST, (key, column_name(column))).fetchone()
    timestamp, value = newest or (0, bytes(8))
    if len(value) != 8:
        raise CorruptionError(f"{column.family}:{column.qualifier!r} of row {key!r} is not a counter.")
    total = int(struct.unpack(">q", value)[0]) + by
    apply_changes(connection, [(key, SetCell(column, struct.pack(">q", total), max(timestamp, now_ms())))], 0)
    return total


def decide(connection: sqlite3.Connection, item: ConditionalMutation) -> bool:
    """Apply one side of a conditional mutation; return whether the condition held."""

    def holds(match: CellMatch) -> bool:
        newest = connection.execute(NEWEST, (item.key, column_name(match.column))).fetchone()
        return (
            newest is not None
            and (match.since is None or newest[0] >= match.since)
            and (match.value is None or newest[1] == match.value)
        )

    matched = any(holds(match) for match in item.any_of) and not any(holds(match) for match in item.none_of)
    changes = item.if_matched if matched else item.if_unmatched
    apply_changes(connection, ((item.key, change) for change in changes), now_ms())
    return matched
