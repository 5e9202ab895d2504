"""A table as one query sees it: without half-written cells, and with a record of what was read. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sv_pipeline.operations.half_written import HalfWritten
from sv_pipeline.table.columns import CHILDREN
from sv_pipeline.table.interface import CellFilter, RowKeyRange, RowView, Table

__all__ = ["SettledTable"]

FIXED_COLUMNS = frozenset({CHILDREN.key})
"""Cells of these columns never change once the row can be known to a reader."""


@dataclass
class _Read:
    """A read request and its result."""

    rows: dict[bytes, RowView] | None
    """Rows that were read; None if they can never change."""
    again: Callable[[], dict[bytes, RowView]]
    keys: Sequence[bytes]


@dataclass(eq=False)
class SettledTable(Table):
    """The rows of another table without half-written cells, for the duration of one query; read-only."""

    inner: Table
    half_written: HalfWritten
    until: int | None
    """Cells newer than this time in milliseconds are hidden; None hides none."""
    _reads: list[_Read] = field(default_factory=list, init=False, repr=False)

    # -- what was read ----------------------------------------------------------------------------------------------

    def read_keys(self) -> Iterator[bytes]:
        """Yield the keys of all rows that were requested."""
        for read in self._reads:
            yield from read.keys

    def reads_the_same(self) -> bool:
        """Whether every row that was read is still the same."""
        return all(read.rows is None or read.again() == read.rows for read in self._reads)

    def newest(self) -> int:
        """Return the timestamp of the newest cell that was read, in milliseconds."""
        rows = (row for read in self._reads if read.rows for row in read.rows.values())
        return max((cells[0].timestamp for row in rows for cells in row.values()), default=0)

    # -- reads --------------------------------------------------------------------------------------------------------

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        wanted = self._bounded(wanted)

        def read() -> dict[bytes, RowView]:
            return self.inner.read_rows(keys, wanted.columns, until=wanted.until, newest_only=wanted.newest_only)

        rows = read()
        fixed = wanted.columns is not None and FIXED_COLUMNS.issuperset(wanted.columns)
        self._reads.append(_Read(None if fixed else rows, read, keys))
        return self._shown(rows, wanted)

    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        """Scan rows; they are kept in memory until the query is answered."""
        wanted = self._bounded(wanted)

        def read() -> dict[bytes, RowView]:
            columns, until, newest_only, since = wanted
            return dict(self.inner.scan(ranges, columns, since=since, until=until, newest_only=newest_only))

        rows = read()
        self._reads.append(_Read(rows, read, list(rows)))
        yield from sorted(_since(self._shown(rows, wanted), wanted.since).items())

    def _bounded(self, wanted: CellFilter) -> CellFilter:
        times = [time for time in (wanted.until, self.until) if time is not None]
        return wanted._replace(until=min(times, default=None))

    def _shown(self, rows: dict[bytes, RowView], wanted: CellFilter) -> dict[bytes, RowView]:
        touched = set(self.half_written.hides_any(rows))
        if not touched:
            return rows
        # If the newest cell is hidden, the one below it is needed.
        full = self.inner.read_rows(touched, wanted.columns, until=wanted.until) if wanted.newest_only else rows
        shown = {key: row for key, row in rows.items() if key not in touched}
        for key in touched:
            row = self.half_written.without(key, full.get(key, {}))
            if row:
                shown[key] = {column: cells[:1] for column, cells in row.items()} if wanted.newest_only else row
        return shown

    # -- the rest of a table ------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether the table exists."""
        return self.inner.exists()

    def close(self) -> None:
        """Do nothing: the other table stays open."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError(f"a query of graph {self.name!r} must not write")

    create = drop = mutate = increment_many = check_and_mutate_many = _refuse


def _since(rows: dict[bytes, RowView], since: int | None) -> dict[bytes, RowView]:
    """Rows without cells that are older than a time: where the newest cell is hidden, the one below it may be."""
    if since is None:
        return rows
    kept = {
        key: {column: left for column, cells in row.items() if (left := [c for c in cells if c.timestamp >= since])}
        for key, row in rows.items()
    }
    return {key: row for key, row in kept.items() if row}
