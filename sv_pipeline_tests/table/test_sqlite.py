"""SQLite tables as files: places, names, tables that others drop, and files that are no tables."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from sv_pipeline import waiting
from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError, CorruptionError, NotFoundError, UnavailableError
from sv_pipeline.table import open_table
from sv_pipeline.table.interface import MAX_AGE_MS, Cell, CellFilter, ColumnKey, RowKeyRange, RowMutation, SetCell
from sv_pipeline.table.sqlite import rows as sqlite_rows
from sv_pipeline.table.sqlite.table import SqliteTable

A = ColumnKey("0", b"a")
OLD = ColumnKey("3", b"a")


def put(table: SqliteTable, value: bytes = b"x") -> None:
    table.mutate([RowMutation(b"r", [SetCell(A, value, 1)])])


def test_tables_are_under_the_home_unless_a_path_is_configured(tmp_path: Path) -> None:
    raw = {"graph_id": "g", "data_source": {"WATERSHED": "file:///ws"}, "graph_config": {"ID_PREFIX": "p_"}}
    home = open_table(parse_config(raw), tmp_path)
    assert isinstance(home, SqliteTable)
    assert home.path == tmp_path / "tables" / "p_g" / "cells.sqlite"
    elsewhere = {"TYPE": "sqlite", "CONFIG": {"PATH": str(tmp_path / "x"), "READ_ONLY": True}}
    table = open_table(parse_config({**raw, "backend_client": elsewhere}), tmp_path)
    assert isinstance(table, SqliteTable)
    assert table.path.is_relative_to(tmp_path / "x")
    assert table.read_only


def test_a_table_that_this_user_may_not_write_is_no_matter_of_trying_again(tmp_path: Path) -> None:
    table = SqliteTable("t", tmp_path)
    table.create()
    unwritable = sqlite3.connect(f"file:{table.path}?mode=ro", uri=True)
    with pytest.raises(ConfigError, match=r"cells.sqlite cannot be used.*readonly.*permissions"), table._errors():
        unwritable.execute("create table x(a)")
    unwritable.close()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "a\0b"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        SqliteTable(name, tmp_path)


def test_names_and_folders_may_hold_any_other_sign(tmp_path: Path) -> None:
    table = SqliteTable("a ?b#c%20", tmp_path / "ü ?x=1")
    table.create()
    put(table)
    assert table.read_rows([b"r"])


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a file is in the way")
    with pytest.raises(UnavailableError, match="cannot create"):
        SqliteTable("t", tmp_path).create()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_whoever_has_a_table_open_notices_that_it_was_made_again(sqlite: SqliteTable) -> None:
    other = SqliteTable(sqlite.name, sqlite.folder)
    put(other, b"old")
    sqlite.drop()
    with pytest.raises(NotFoundError):
        other.read_rows([b"r"])
    sqlite.create()
    put(sqlite, b"new")
    assert other.read_rows([b"r"]) == {b"r": {A: [Cell(1, b"new")]}}


def test_closing_an_old_table_does_not_touch_the_one_made_again(sqlite: SqliteTable) -> None:
    other = SqliteTable(sqlite.name, sqlite.folder)
    put(other, b"old")
    sqlite.drop()
    sqlite.create()
    put(sqlite, b"new")
    other.close()
    assert SqliteTable(sqlite.name, sqlite.folder).read_rows([b"r"]) == {b"r": {A: [Cell(1, b"new")]}}


def test_a_writer_waits_for_another(sqlite: SqliteTable) -> None:
    blocker = sqlite3.connect(sqlite.path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, lambda: blocker.execute("ROLLBACK"))
    release.start()
    put(sqlite)
    release.join()
    blocker.close()
    assert sqlite.read_rows([b"r"])


def test_a_table_that_stays_locked_is_unavailable(sqlite: SqliteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(waiting.VARIABLE, "0.3")
    blocker = sqlite3.connect(sqlite.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    # It has left no note, but the system knows it.
    with pytest.raises(UnavailableError, match=rf"was locked for .* by process {os.getpid()} on host .*kill -CONT"):
        put(sqlite)
    blocker.close()


def test_readers_do_not_wait_for_a_writer(sqlite: SqliteTable) -> None:
    put(sqlite)
    blocker = sqlite3.connect(sqlite.path, isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    assert sqlite.read_rows([b"r"])
    assert list(sqlite.scan([RowKeyRange(b"", b"\xff")]))
    blocker.close()


def test_a_file_that_is_no_table_is_reported(sqlite: SqliteTable) -> None:
    sqlite.close()
    for file in sqlite.path.parent.iterdir():
        file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(CorruptionError, match=r"cells\.sqlite"):
        sqlite.read_rows([b"r"])


def test_old_cells_of_family_3_leave_the_file_when_the_column_is_written(sqlite: SqliteTable) -> None:
    now = time.time_ns() // 1_000_000
    sqlite.mutate([RowMutation(b"r", [SetCell(OLD, b"old", now - MAX_AGE_MS - 1000)])])
    sqlite.mutate([RowMutation(b"r", [SetCell(OLD, b"new", now)])])
    with sqlite3.connect(sqlite.path) as connection:
        assert connection.execute("SELECT value FROM cells").fetchall() == [(b"new",)]


@pytest.mark.parametrize("until", [None, 7])
@pytest.mark.parametrize("n_columns", [1, 3, 8])
def test_the_newest_cells_of_rows_with_few_and_with_many_cells_are_those_of_all_cells(
    sqlite: SqliteTable, n_columns: int, until: int | None
) -> None:
    columns = [OLD, *(ColumnKey("0", b"%d" % i) for i in range(n_columns - 1))]
    now = time.time_ns() // 1_000_000
    for i in range(2 * sqlite_rows.MANY):
        cells = [SetCell(columns[k % n_columns], b"%d" % k, k) for k in range(i)]
        cells += [SetCell(OLD, b"aged", now - k) for k in range(i)]
        sqlite.mutate([RowMutation(b"r%d" % i, cells)])
    keys = [b"r%d" % i for i in range(2 * sqlite_rows.MANY)]
    every = sqlite.read_rows(keys, columns, until=until)
    newest = {key: {column: cells[:1] for column, cells in row.items()} for key, row in every.items()}
    assert sqlite.read_rows(keys, columns, until=until, newest_only=True) == newest


def test_reads_by_key_and_by_range_use_the_index(sqlite: SqliteTable) -> None:
    put(sqlite)
    for rows in ([b"a", b"b"], RowKeyRange(b"a", b"b")):
        for columns in (None, [A], [ColumnKey("0", b"%d" % i) for i in range(20)]):
            for newest_only in (False, True):
                sql, values = sqlite_rows.select_cells(rows, CellFilter(columns, 5, newest_only))
                with sqlite3.connect(sqlite.path) as connection:
                    plan = " ".join(r[3] for r in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
                assert "SEARCH cells USING PRIMARY KEY (row" in plan
                assert "TEMP B-TREE" not in plan
