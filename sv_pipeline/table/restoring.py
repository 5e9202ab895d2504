"""Owns the row that says from which backup a table is being restored. Until it is deleted, the table is incomplete."""

from __future__ import annotations

from sv_pipeline.table import codecs
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, DeleteCells, RowMutation, Table

__all__ = ["begin_restoring", "being_restored_from", "end_restoring"]

RESTORE_ROW = b"sv_pipeline:restore"
SOURCE: Column[str] = Column(ColumnKey("1", b"backup"), codecs.TextCodec())


def being_restored_from(table: Table) -> str | None:
    """Return the backup from which a table is being restored; None if it is not."""
    return SOURCE.newest(table.read_rows([RESTORE_ROW], newest_only=True).get(RESTORE_ROW))


def begin_restoring(table: Table, source: str) -> None:
    """Name the backup from which a table is being restored."""
    table.mutate([RowMutation(RESTORE_ROW, [SOURCE.set(source, 1)])])


def end_restoring(table: Table) -> None:
    """Delete the row, which says that the table is complete."""
    table.mutate([RowMutation(RESTORE_ROW, [DeleteCells()])])
