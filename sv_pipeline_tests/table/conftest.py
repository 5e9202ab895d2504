"""An empty table of one backend, for tests of what only that backend does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.sqlite.table import SqliteTable


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
