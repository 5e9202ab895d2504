"""A table as one question sees it: less what is half written, and with a memory of what was read. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sv_pipeline.operations.half_written import HalfWritten
from sv_pipeline.table.columns import CHILDREN
from sv_pipeline.table.interface import ColumnKey, RowKeyRange, RowView, Table

__all__ = ["SettledTable"]

FIXED_COLUMNS = frozenset({CHILDREN.key})
"""A row of these alone never changes once somebody can know of it."""


@dataclass
class _Read:
    """A request that was made, and what it gave."""

    rows: dict[bytes, RowView] | None
    """None for what never changes."""
    again: Callable[[], dict[bytes, RowView]]
    keys: Sequence[bytes]


@dataclass(eq=False)
class SettledTable(Table):
    """The rows of another table less what is half written, for the time of one question; read-only."""

    inner: Table
    half_written: HalfWritten
    until: int | None
    """Cells that are newer are not shown, milliseconds; None = all are."""
    _reads: list[_Read] = field(default_factory=list, init=False, repr=False)

    # -- what was read ----------------------------------------------------------------------------------------------

    def read_keys(self) -> Iterator[bytes]:
        """Keys of all rows that were asked for."""
        for read in self._reads:
            yield from read.keys

    def reads_the_same(self) -> bool:
        """Whether every row that was read still is what it was."""
        return all(read.rows is None or read.again() == read.rows for read in self._reads)

    def newest(self) -> int:
        """Time of the newest cell that was read, milliseconds."""
        rows = (row for read in self._reads if read.rows for row in read.rows.values())
        return max((cells[0].timestamp for row in rows for cells in row.values()), default=0)

    # -- reads --------------------------------------------------------------------------------------------------------

    def read_rows(
        self,
        keys: Iterable[bytes],
        columns: Sequence[ColumnKey] | None = None,
        *,
        until: int | None = None,
        newest_only: bool = False,
    ) -> dict[bytes, RowView]:
        """Rows by key; see the interface."""
        wanted, latest = list(dict.fromkeys(keys)), self._until(until)

        def read() -> dict[bytes, RowView]:
            return self.inner.read_rows(wanted, columns, until=latest, newest_only=newest_only)

        rows = read()
        fixed = columns is not None and FIXED_COLUMNS.issuperset(columns)
        self._reads.append(_Read(None if fixed else rows, read, wanted))
        return self._shown(rows, columns, latest, newest_only)

    def scan(
        self,
        ranges: Sequence[RowKeyRange],
        columns: Sequence[ColumnKey] | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        newest_only: bool = False,
    ) -> Iterator[tuple[bytes, RowView]]:
        """Rows of ranges in the order of keys; see the interface. They are held until the question is answered."""
        latest = self._until(until)

        def read() -> dict[bytes, RowView]:
            return dict(self.inner.scan(ranges, columns, since=since, until=latest, newest_only=newest_only))

        rows = read()
        self._reads.append(_Read(rows, read, list(rows)))
        yield from sorted(_since(self._shown(rows, columns, latest, newest_only), since).items())

    def _until(self, until: int | None) -> int | None:
        times = [time for time in (until, self.until) if time is not None]
        return min(times, default=None)

    def _shown(
        self, rows: dict[bytes, RowView], columns: Sequence[ColumnKey] | None, until: int | None, newest_only: bool
    ) -> dict[bytes, RowView]:
        touched = set(self.half_written.hides_any(rows))
        if not touched:
            return rows
        # The newest cell may be a hidden one: then the one below it is wanted.
        full = self.inner.read_rows(touched, columns, until=until) if newest_only else rows
        shown = {key: row for key, row in rows.items() if key not in touched}
        for key in touched:
            row = self.half_written.without(key, full.get(key, {}))
            if row:
                shown[key] = {column: cells[:1] for column, cells in row.items()} if newest_only else row
        return shown

    # -- the rest of a table ------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """True if the table is there."""
        return self.inner.exists()

    def close(self) -> None:
        """Nothing: the other table stays open."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise AssertionError(f"a question about graph {self.name!r} does not write")

    create = drop = mutate = increment = check_and_mutate = _refuse


def _since(rows: dict[bytes, RowView], since: int | None) -> dict[bytes, RowView]:
    """Rows without cells that are older than a time: where the newest cell is hidden, the one below it may be."""
    if since is None:
        return rows
    kept = {
        key: {column: left for column, cells in row.items() if (left := [c for c in cells if c.timestamp >= since])}
        for key, row in rows.items()
    }
    return {key: row for key, row in kept.items() if row}
