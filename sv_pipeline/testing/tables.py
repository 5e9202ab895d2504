"""Makes tables in every backend under unique names, and returns their rows as values."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable

__all__ = ["BACKENDS", "EVERYTHING", "PLACE", "Backend", "all_rows", "but_operations", "new_table", "unique_name"]

Backend = Literal["sqlite", "bigtable"]
BACKENDS: tuple[Backend, ...] = ("sqlite", "bigtable")
PLACE = ("project", "instance")
"""Project and instance of tables in the emulator, which accepts any names."""
EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
"""Key range of all rows of a table."""


def unique_name() -> str:
    """Return a name that no other table or graph has."""
    return f"t{uuid.uuid4().hex[:12]}"


def new_table(backend: Backend, folder: str | Path, *, patience: float = 5.0) -> Table:
    """Return a table under a unique name, which does not exist yet.

    Parameters
    ----------
    folder
        Folder of the file of an SQLite table.
    patience
        Time that Bigtable may take to answer, in seconds.
    """
    if backend == "sqlite":
        return SqliteTable(unique_name(), Path(folder))
    return BigtableTable(unique_name(), *PLACE, patience=patience)


def all_rows(table: Table) -> list[RowMutation]:
    """Return mutations that give an empty table the contents of this one."""
    return [
        RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
        for key, row in table.scan([EVERYTHING])
    ]


def but_operations(rows: dict[bytes, dict[Any, Any]]) -> dict[bytes, dict[Any, Any]]:
    """Return rows without the operation log and without counters; a refused edit must not change these rows.

    A refused edit has an operation id, and may have reserved ids of nodes, which are then never used.
    """
    return {
        key: row for key, row in rows.items() if not key.startswith(b"i") and not (key.isdigit() and int(key) < 1 << 56)
    }
