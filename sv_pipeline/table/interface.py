"""The table interface that every backend implements: rows of timestamped cells. Knows no graph and no encoding.

A table is a sorted map ``row key -> (family, qualifier) -> cells, newest first``. Timestamps are integers, in
milliseconds since the epoch (the resolution of Bigtable). Changes of one row are atomic; changes of several are not.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from sv_pipeline.errors import ConfigError
from sv_pipeline.helper_threads import Helpers

__all__ = [
    "AGING_FAMILY",
    "FAMILIES",
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
FAMILIES = ("0", "1", "2", "3", "4")
"""The column families of every table."""
NEWEST_FAMILY = "1"
"""The family that keeps only the newest cell of a column."""
AGING_FAMILY = "3"
MAX_AGE_MS = 365 * 24 * 3600 * 1000
"""Age in milliseconds above which no backend returns cells of family 3."""
MAX_CELL_BYTES = 100 << 20
"""Largest size of one value; Bigtable's limit, which all backends keep."""


class ColumnKey(NamedTuple):
    """The name of a column."""

    family: str
    qualifier: bytes


class Cell(NamedTuple):
    """A stored value."""

    timestamp: int
    """Milliseconds since the epoch."""
    value: bytes


RowView = dict[ColumnKey, list[Cell]]
"""Cells of one row, newest first; a column without cells is absent."""


class RowKeyRange(NamedTuple):
    """Row keys from ``start`` (inclusive) to ``stop`` (exclusive); empty if ``start`` is not before ``stop``."""

    start: bytes
    stop: bytes


@dataclass(frozen=True)
class SetCell:
    """Set a cell; this replaces a cell of the same column and timestamp."""

    column: ColumnKey
    value: bytes
    timestamp: int | None = None
    """Milliseconds since the epoch; None means the time at which the write is sent."""


@dataclass(frozen=True)
class DeleteCells:
    """Remove cells of one column, or of the whole row."""

    column: ColumnKey | None = None
    """The column; None means the whole row."""
    timestamp: int | None = None
    """Time of the only cell to remove; None means all versions. It requires ``column``."""


Change = SetCell | DeleteCells


@dataclass(frozen=True)
class RowMutation:
    """Changes of one row, applied atomically and in their order."""

    key: bytes
    changes: Sequence[Change]


@dataclass(frozen=True)
class CellMatch:
    """A condition on one row: the newest cell of ``column`` has ``value`` and is not older than ``since``.

    Only the **newest** cell of the column is compared, so that an old version of a lock cell never matches.
    """

    column: ColumnKey
    value: bytes | None = None
    """Value to compare; None matches any value."""
    since: int | None = None
    """Milliseconds since the epoch (inclusive); None matches any age."""


class CellFilter(NamedTuple):
    """Which cells of each row a read returns; see `Table.read_rows`."""

    columns: Sequence[ColumnKey] | None
    until: int | None
    newest_only: bool
    since: int | None = None


@dataclass(frozen=True)
class ConditionalMutation:
    """A condition on one row, and the changes to make if it holds and if not; see `Table.check_and_mutate`."""

    key: bytes
    any_of: Sequence[CellMatch]
    none_of: Sequence[CellMatch] = ()
    if_matched: Sequence[Change] = ()
    if_unmatched: Sequence[Change] = ()


@dataclass(eq=False)
class Table(abc.ABC):
    """The table of one graph. Threads may share an instance; a forked process opens its own connections.

    All methods raise :class:`~sv_pipeline.errors.UnavailableError` if the backend does not answer after retries,
    and :class:`~sv_pipeline.errors.NotFoundError` if the table does not exist (except ``exists`` and ``create``).
    """

    name: str
    round_trips: int = field(default=0, init=False)
    """Number of requests that this instance has sent so far (for benchmarks and tests)."""
    read_only: bool = field(default=False, kw_only=True)
    """Whether changes are refused with a ConfigError."""

    @property
    def file(self) -> Path | None:
        """The file that holds the table; None for backends without one."""
        return None

    # -- life cycle -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def exists(self) -> bool:
        """Return whether the table exists."""

    @abc.abstractmethod
    def create(self) -> None:
        """Create the table with its families; ConflictError if it exists."""

    @abc.abstractmethod
    def drop(self) -> None:
        """Remove the table and everything in it; does nothing if it does not exist."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close connections."""

    def damage(self) -> list[str]:
        """Return the damage that the backend finds in its stored data, with places; empty if it cannot tell."""
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
        """Read rows by key, in as few round trips as the backend allows; rows without matching cells are absent.

        Parameters
        ----------
        keys
            Row keys; duplicates are allowed.
        columns
            Columns to read; None reads all.
        until
            Time in milliseconds (inclusive) after which cells are ignored; None reads all.
        newest_only
            Return only the newest (matching) cell of each column.
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

    def any_row(self, ranges: Sequence[RowKeyRange], columns: Sequence[ColumnKey] | None = None) -> bool:
        """Return whether a row of the ranges exists that has a cell of the columns; None means any column."""
        return next(iter(self.scan(ranges, columns, newest_only=True)), None) is not None

    @abc.abstractmethod
    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        """Implement `read_rows`; the keys are distinct and sorted, and there is at least one key and one column."""

    @abc.abstractmethod
    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        """Implement `scan`; there is at least one column."""

    # -- writes ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Apply mutations, each row atomically, rows in any order. It returns when all of them are durable.

        Two mutations of the same row in one call may be applied in either order, so changes whose order matters must be
        in one mutation.
        """

    def increment(self, key: bytes, column: ColumnKey, by: int) -> int:
        """Add to an int64 big-endian counter cell atomically; return the new value. A missing cell counts as 0.

        If an answer is lost, a backend may add twice. So a number is never handed out twice, but some may be unused.
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
        """Apply ``if_matched`` if the row meets the condition, otherwise ``if_unmatched``; atomically.

        If an answer is lost, a backend repeats the request and returns its second answer, which may already see the
        effect of the first request. A caller to whom this matters must read the row after an unwelcome answer.

        Parameters
        ----------
        key
            Key of the row.
        any_of, none_of
            The condition: at least one of ``any_of`` matches (so an empty one never holds), and none of ``none_of``.
        if_matched, if_unmatched
            Changes to make in either case.

        Returns
        -------
        bool
            Whether the row met the condition.
        """
        return self.check_and_mutate_many([ConditionalMutation(key, any_of, none_of, if_matched, if_unmatched)])[0]

    @abc.abstractmethod
    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        """Apply several `increment` (key, column, by), each atomically, in about the time of one; results in order."""

    @abc.abstractmethod
    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        """Apply several `check_and_mutate`, each atomically, in about the time of one; results in their order.

        If one raises an error, the others may or may not have been applied.
        """

    def at_once(self, changes: Sequence[RowMutation | ConditionalMutation]) -> list[bool]:
        """Apply changes of rows, each atomically, conditional or not, in about the time of one request.

        They are applied in any order. If one raises an error, or the process dies, any of the others may have been
        applied.

        Returns
        -------
        list[bool]
            For each change whether its row met the condition; True for changes without one.
        """
        self.mutate([change for change in changes if isinstance(change, RowMutation)])
        conditional = [change for change in changes if isinstance(change, ConditionalMutation)]
        answers = iter(self.check_and_mutate_many(conditional))
        return [isinstance(change, RowMutation) or next(answers) for change in changes]

    def side_by_side(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Call an action that sends requests to this table for each item; return results in the order of the items.

        The calls overlap if the backend profits from it. The first error is raised after all calls have ended.
        """
        todo = list(items)
        if len(todo) < 2:
            return [action(item) for item in todo]
        results: list[Result] = []
        for start in range(0, len(todo), REQUESTS_AT_ONCE):
            here, *others = todo[start : start + REQUESTS_AT_ONCE]
            with Helpers() as pool:
                futures = [pool.submit(action, item) for item in others]
                first = action(here)
            results += [first, *(future.result() for future in futures)]
        return results

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise ConfigError(
                f"table {self.name!r} is opened read-only.", remedy="Set backend_client.CONFIG.READ_ONLY to false."
            )
