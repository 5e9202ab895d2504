"""The table interface that every backend implements: rows of timestamped cells. Knows no graph and no encoding.

A table is a sorted map ``row key -> (family, qualifier) -> cells, newest first``. Timestamps are integers, in
milliseconds since the epoch (what Bigtable keeps). One row changes atomically; several rows never do.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from sv_pipeline.errors import ConfigError

__all__ = [
    "AGING_FAMILY",
    "MAX_AGE_MS",
    "MAX_CELL_BYTES",
    "NEWEST_FAMILY",
    "Cell",
    "CellFilter",
    "CellMatch",
    "ColumnKey",
    "ConditionalMutation",
    "DeleteCells",
    "RowKeyRange",
    "RowMutation",
    "RowView",
    "SetCell",
    "Table",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS_AT_ONCE = 16
NEWEST_FAMILY = "1"
"""The family, of ``0`` to ``4``, that keeps only the newest cell of a column."""
AGING_FAMILY = "3"
MAX_AGE_MS = 365 * 24 * 3600 * 1000
"""Age, in milliseconds, at which cells of family 3 are gone; no backend returns them."""
MAX_CELL_BYTES = 100 << 20
"""Of one value: the limit of Bigtable, kept by all backends."""


class ColumnKey(NamedTuple):
    """Name of a column."""

    family: str
    qualifier: bytes


class Cell(NamedTuple):
    """One stored value."""

    timestamp: int
    """Milliseconds since the epoch."""
    value: bytes


RowView = dict[ColumnKey, list[Cell]]
"""Cells of one row, newest first; a column without cells is absent."""


class RowKeyRange(NamedTuple):
    """Row keys from ``start`` (inside) to ``stop`` (outside); empty if ``start`` is not before ``stop``."""

    start: bytes
    stop: bytes


@dataclass(frozen=True)
class SetCell:
    """Put a cell; replaces a cell of the same column and timestamp."""

    column: ColumnKey
    value: bytes
    timestamp: int | None = None
    """Milliseconds since the epoch; None = the time at which the write is sent."""


@dataclass(frozen=True)
class DeleteCells:
    """Remove cells of one column, or of the whole row."""

    column: ColumnKey | None = None
    """None = the whole row."""
    timestamp: int | None = None
    """Only the cell of this very time; None = all versions. Needs ``column``."""


Change = SetCell | DeleteCells


@dataclass(frozen=True)
class RowMutation:
    """Changes of one row, applied in their order, atomically."""

    key: bytes
    changes: Sequence[Change]


@dataclass(frozen=True)
class CellMatch:
    """A condition on one row: some cell of ``column`` has ``value`` and is not older than ``since``.

    Only the **newest** cell of the column is looked at, so that an old version of a lock cell never counts.
    """

    column: ColumnKey
    value: bytes | None = None
    """None = any value."""
    since: int | None = None
    """Milliseconds since the epoch (inclusive); None = any age."""


class CellFilter(NamedTuple):
    """The cells that a read returns of each row; see `Table.read_rows`."""

    columns: Sequence[ColumnKey] | None
    until: int | None
    newest_only: bool
    since: int | None = None


@dataclass(frozen=True)
class ConditionalMutation:
    """One row, a condition on it, and what is done where it is met, and where it is not; see `check_and_mutate`."""

    key: bytes
    any_of: Sequence[CellMatch]
    none_of: Sequence[CellMatch] = ()
    if_matched: Sequence[Change] = ()
    if_unmatched: Sequence[Change] = ()


@dataclass(eq=False)
class Table(abc.ABC):
    """One graph's table. Instances may be shared by threads; a forked process opens its own.

    All methods raise :class:`~sv_pipeline.errors.UnavailableError` when the backend does not answer after retries,
    and :class:`~sv_pipeline.errors.NotFoundError` when the table does not exist (except ``exists`` and ``create``).
    """

    name: str
    round_trips: int = field(default=0, init=False)
    """Requests sent so far by this instance (for benchmarks and tests)."""
    read_only: bool = field(default=False, kw_only=True)
    """Refuse to change anything, with a ConfigError."""

    @property
    def file(self) -> Path | None:
        """The file in which the table is, where it is one."""
        return None

    # -- life cycle -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def exists(self) -> bool:
        """True if the table is there."""

    @abc.abstractmethod
    def create(self) -> None:
        """Make the table with its families; ConflictError if it exists."""

    @abc.abstractmethod
    def drop(self) -> None:
        """Remove the table and everything in it; nothing happens if it is not there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release connections."""

    def damage(self) -> list[str]:
        """What the backend itself finds wrong in what it has stored, each with its place; empty if it cannot tell."""
        return []

    # -- reads ----------------------------------------------------------------------------------------------------

    def read_rows(
        self,
        keys: Iterable[bytes],
        columns: Sequence[ColumnKey] | None = None,
        *,
        until: int | None = None,
        newest_only: bool = False,
    ) -> dict[bytes, RowView]:
        """Rows by key, in as few round trips as the backend allows; rows without matching cells are absent.

        Parameters
        ----------
        keys
            Row keys; duplicates are allowed.
        columns
            Columns wanted; None = all.
        until
            Cells not newer than this (inclusive, milliseconds); None = all.
        newest_only
            Only the newest (matching) cell of each column.
        """
        wanted = sorted(set(keys))
        if not wanted or (columns is not None and not columns):
            return {}
        return self._read_rows(wanted, CellFilter(columns, until, newest_only))

    def scan(
        self,
        ranges: Sequence[RowKeyRange],
        columns: Sequence[ColumnKey] | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        newest_only: bool = False,
    ) -> Iterator[tuple[bytes, RowView]]:
        """Rows whose keys lie in any of the ranges, in the order of keys; streamed, one round trip where possible.

        Parameters
        ----------
        since
            Cells not older than this (inclusive, milliseconds); None = all. The backend looks through all rows of the
            ranges, but sends only rows with such cells.
        columns, until, newest_only
            As for :meth:`read_rows`.
        """
        if columns is not None and not columns:
            return iter(())
        return self._scan(ranges, CellFilter(columns, until, newest_only, since))

    @abc.abstractmethod
    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        """`read_rows` for keys that are distinct and ascending; there is one at least, and one column."""

    @abc.abstractmethod
    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        """`scan` for one column at least."""

    # -- writes ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Apply mutations; each row atomically, rows in no order. Returns when all of them are durable.

        Of two mutations of one row in one call, either may come first: put changes whose order counts into one.
        """

    def increment(self, key: bytes, column: ColumnKey, by: int) -> int:
        """Add to an int64 big-endian counter cell, atomically; the value after. A missing cell counts as 0.

        When an answer is lost, a backend may add twice: numbers are never given twice, but some may be given to nobody.
        """
        return self.increment_many([(key, column, by)])[0]

    def check_and_mutate(
        self,
        key: bytes,
        any_of: Sequence[CellMatch],
        *,
        none_of: Sequence[CellMatch] = (),
        if_matched: Sequence[Change] = (),
        if_unmatched: Sequence[Change] = (),
    ) -> bool:
        """If the row meets the condition apply ``if_matched``, else ``if_unmatched``; atomically.

        When an answer is lost, a backend asks again: then the answer is that of the second time, which may already see
        what the first one did. So read what is there when the answer is not the hoped-for one and that matters.

        Parameters
        ----------
        any_of, none_of
            The condition: at least one of ``any_of`` holds (so an empty one is never met), and no one of ``none_of``.

        Returns
        -------
        bool
            Whether the row met the condition.
        """
        return self.check_and_mutate_many([ConditionalMutation(key, any_of, none_of, if_matched, if_unmatched)])[0]

    @abc.abstractmethod
    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        """Several `increment` (key, column, by), each atomic by itself, in the time of one; in their order."""

    @abc.abstractmethod
    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        """Several `check_and_mutate`, each atomic by itself, in the time of one; answers in their order.

        If one raises, the others may or may not have been applied.
        """

    def side_by_side(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call an action that sends requests to this table with each item; results in the order of the items.

        The calls overlap where the backend gains by it. The first error is raised after all calls have ended.
        """
        todo = list(items)
        if len(todo) < 2:
            return [action(item) for item in todo]
        with ThreadPoolExecutor(min(len(todo), REQUESTS_AT_ONCE)) as pool:
            futures = [pool.submit(action, item) for item in todo]
        return [future.result() for future in futures]

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise ConfigError(
                f"table {self.name!r} is opened read-only.", remedy="Set backend_client.CONFIG.READ_ONLY to false."
            )
