"""One table, in every backend: each test that asks for ``table`` is a statement about all of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable


@pytest.fixture(params=["sqlite", "bigtable"])
def new_table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """A table that does not exist yet, under a name of its own."""
    name = f"t{uuid.uuid4().hex[:12]}"
    table: Table
    if request.param == "sqlite":
        table = SqliteTable(name, tmp_path)
    else:
        request.getfixturevalue("bigtable_emulator")
        table = BigtableTable(name, "project", "instance", patience=5.0)
    yield table
    table.drop()
    table.close()


@pytest.fixture
def table(new_table: Table) -> Table:
    """An empty table."""
    new_table.create()
    return new_table


@pytest.fixture
def bigtable(bigtable_emulator: str) -> Iterator[BigtableTable]:
    """An empty table in the Bigtable emulator."""
    table = BigtableTable(f"t{uuid.uuid4().hex[:12]}", "project", "instance", patience=5.0)
    table.create()
    yield table
    table.drop()
    table.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteTable]:
    """An empty table in a file."""
    table = SqliteTable("t", tmp_path)
    table.create()
    yield table
    table.close()
