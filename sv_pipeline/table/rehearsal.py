"""A table for dry runs: what is written to it stays in memory, where later reads of it see it, and nobody else does."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sv_pipeline.table.interface import (
    Cell,
    CellFilter,
    Change,
    DeleteCells,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

__all__ = ["RehearsedTable", "rehearsed"]


def rehearsed(table: Table) -> Table:
    """Return a view of a table whose changes stay in memory; a table that is opened read-only is returned itself."""
    return table if table.read_only else RehearsedTable(table.name, table)


@dataclass(eq=False)
class RehearsedTable(Table):
    """See :func:`rehearsed`. Counters and conditional changes are refused: no dry run needs them."""

    inner: Table
    _changed: dict[bytes, RowView] = field(default_factory=dict, init=False, repr=False)
    """Rows that were written to, with all their cells; they are read from here."""

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        there = [key for key in keys if key not in self._changed]
        found = self.inner.read_rows(there, wanted.columns, until=wanted.until, newest_only=wanted.newest_only)
        for key in keys:
            if row := _filtered(self._changed.get(key, {}), wanted):
                found[key] = row
        return found

    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        columns, until, newest_only, since = wanted
        below = self.inner.scan(ranges, columns, since=since, until=until, newest_only=newest_only)
        there = ((key, row) for key, row in below if key not in self._changed)
        here = sorted(
            (key, row)
            for key, changed in self._changed.items()
            if any(start <= key < stop for start, stop in ranges) and (row := _filtered(changed, wanted))
        )
        yield from heapq.merge(there, here, key=lambda pair: pair[0])

    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Change rows in memory."""
        todo = list(mutations)
        unread = [one.key for one in todo if one.key not in self._changed]
        rows = self.inner.read_rows(unread)
        self._changed |= {key: rows.get(key, {}) for key in unread}
        for one in todo:
            for change in one.changes:
                _apply(self._changed[one.key], change)

    def exists(self) -> bool:
        """Whether the table exists."""
        return self.inner.exists()

    def close(self) -> None:
        """Do nothing: the other table stays open."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError(f"a dry run of table {self.name!r} must not do this")

    create = drop = increment_many = check_and_mutate_many = _refuse


def _filtered(row: RowView, wanted: CellFilter) -> RowView:
    shown: RowView = {}
    for column, cells in row.items():
        if wanted.columns is not None and column not in wanted.columns:
            continue
        left = [
            cell
            for cell in cells
            if (wanted.until is None or cell.timestamp <= wanted.until)
            and (wanted.since is None or cell.timestamp >= wanted.since)
        ]
        if left:
            shown[column] = left[:1] if wanted.newest_only else left
    return shown


def _apply(row: RowView, change: Change) -> None:
    if isinstance(change, SetCell):
        at = time.time_ns() // 1_000_000 if change.timestamp is None else change.timestamp
        others = [cell for cell in row.get(change.column, []) if cell.timestamp != at]
        row[change.column] = sorted([*others, Cell(at, change.value)], reverse=True)
    elif isinstance(change, DeleteCells) and change.column is None:
        row.clear()
    else:
        assert change.column is not None
        left = [] if change.timestamp is None else row.get(change.column, [])
        row[change.column] = [cell for cell in left if cell.timestamp != change.timestamp]
