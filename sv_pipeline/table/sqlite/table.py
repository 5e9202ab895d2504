"""SQLite backend: a table in one file of a local folder, for one machine. Knows rows and cells, no graph.

Any number of threads and processes may share a table. Each operation borrows a connection of its own from a pool;
the pool is emptied before a fork, since SQLite's locks must not be carried into a child.

::

    <folder>/<name>/cells.sqlite        made under another name and renamed into place: complete or absent
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sv_pipeline.errors import ConfigError, ConflictError, CorruptionError, NotFoundError, UnavailableError
from sv_pipeline.failpoints import reach
from sv_pipeline.table.interface import (
    CellFilter,
    ColumnKey,
    ConditionalMutation,
    RowKeyRange,
    RowMutation,
    RowView,
    Table,
)
from sv_pipeline.table.keys import join_ranges
from sv_pipeline.table.sqlite.rows import SCHEMA, add, apply_changes, decide, now_ms, rows_of, select_cells
from sv_pipeline.waiting import NOTE_BYTES, Holder, Wait, locked_by

__all__ = ["SqliteTable"]

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

FILE = "cells.sqlite"
KEYS_PER_STATEMENT = 16_384  # SQLite allows 32,766 parameters
ROWS_PER_TRANSACTION = 2_000  # other writers get their turn in between
BUSY_SECONDS = 0.25  # of one try; how long it is tried again is the matter of `waiting`
NOTE = "writer.json"  # beside the file: the process that began to write last
WRITE_LOCK_BYTE = 120  # of the lock of the writer in the index of the write-ahead log, as SQLite's format says

# FULL, although NORMAL survives kill -9 too (the write-ahead log is in the page cache by then): voxels of an edit are
# durable before its rows are written, so rows that were acknowledged must not be lost with the power either.
PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA cache_size=-65536",  # KiB
    "PRAGMA wal_autocheckpoint=4000",  # pages; a bulk write is copied into the file less often
    "PRAGMA journal_size_limit=134217728",  # the log shrinks again after a bulk write
    "PRAGMA temp_store=MEMORY",
)

_open_tables: weakref.WeakSet[SqliteTable] = weakref.WeakSet()
_abandoned: list[_Connection] = []  # of a parent process: a child may neither use nor close them


@dataclass(eq=False)
class SqliteTable(Table):
    """A table in ``<folder>/<name>/``.

    Family 1 keeps only the newest cell; cells of family 3 that are older than 365 days are not returned, and are
    removed when their column is written again.

    Parameters
    ----------
    name
        Name of the table.
    folder
        Where tables are; made with the first table.
    """

    folder: Path
    _idle: list[_Connection] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name or "\0" in self.name:
            raise ConfigError(f"{self.name!r} cannot be the name of a table.", remedy="Choose another graph id.")
        self.folder = Path(self.folder).absolute()
        _open_tables.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SqliteTable, read_only=self.read_only), (self.name, self.folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name / FILE

    @property
    def file(self) -> Path:
        """The file."""
        return self.path

    # -- life cycle -----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """True if the table is there."""
        return self.path.is_file()

    def create(self) -> None:
        """Make the table; ConflictError if it exists."""
        self._refuse_if_read_only()
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{self.name}.{uuid.uuid4().hex}.new"
        draft.mkdir()
        try:
            connection = sqlite3.connect(draft / FILE, isolation_level=None)
            try:
                connection.execute("PRAGMA page_size=8192")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(SCHEMA)
            finally:
                connection.close()
            draft.rename(self.path.parent)  # fails if the folder is there and not empty
        except OSError as error:
            if self.exists():
                raise ConflictError(
                    f"table {self.name!r} exists already in {self.folder}.",
                    remedy="Choose another graph id, or remove the table deliberately.",
                ) from error
            raise UnavailableError(f"cannot make table {self.name!r} in {self.folder}: {error}.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def drop(self) -> None:
        """Remove the table and everything in it; nothing happens if it is not there."""
        self._refuse_if_read_only()
        self.close()
        grave = self.folder / f".{self.name}.{uuid.uuid4().hex}.dropped"
        try:
            self.path.parent.rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def close(self) -> None:
        """Close connections that nobody uses at the moment."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def damage(self) -> list[str]:
        """What SQLite finds wrong in its file."""
        found: list[str] = []

        def look(current: _Connection) -> None:
            found[:] = [str(row[0]) for row in current.connection.execute("PRAGMA integrity_check(5)")]

        self._run(look)
        return [f"{self.path}: {' '.join(text.split())}" for text in found if text != "ok"]

    # -- reads ----------------------------------------------------------------------------------------------------

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        rows: dict[bytes, RowView] = {}

        def read(current: _Connection) -> None:
            rows.clear()
            for first in range(0, len(keys), KEYS_PER_STATEMENT):
                sql, parameters = select_cells(keys[first : first + KEYS_PER_STATEMENT], wanted)
                rows.update(rows_of(current.connection.execute(sql, parameters)))
                self.round_trips += 1

        self._run(read)
        return rows

    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        """All rows are of one moment."""
        with self._errors(), self._borrow() as current:
            connection = current.connection
            connection.execute("BEGIN")
            try:
                for one in join_ranges(ranges):
                    sql, parameters = select_cells(one, wanted)
                    self.round_trips += 1
                    yield from rows_of(connection.execute(sql, parameters))
            finally:
                connection.execute("ROLLBACK")

    # -- writes ---------------------------------------------------------------------------------------------------

    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Apply mutations; each row atomically; see the interface."""
        rest = iter(mutations)
        while batch := list(islice(rest, ROWS_PER_TRANSACTION)):
            now = now_ms()

            def write(connection: sqlite3.Connection, batch: list[RowMutation] = batch, now: int = now) -> None:
                apply_changes(connection, ((m.key, change) for m in batch for change in m.changes), now)

            self._write(write)

    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        """Several increments in one transaction; see the interface."""
        if not increments:
            return []
        return self._write(lambda connection: [add(connection, *item) for item in increments])

    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        """Several conditional mutations in one transaction; see the interface."""
        if not conditional:
            return []
        return self._write(lambda connection: [decide(connection, item) for item in conditional])

    def side_by_side(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """One call after the other: SQLite has one writer at a time, so threads would only wait for each other."""
        return [action(item) for item in items]

    # -- connections ----------------------------------------------------------------------------------------------

    def _write(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        def transaction(current: _Connection) -> Result:
            connection = current.connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                current.leave_note()
                reach("table write")
                result = action(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

        self._refuse_if_read_only()
        self.round_trips += 1
        return self._run(transaction)

    def _run(self, action: Callable[[_Connection], Result]) -> Result:
        """Run an action that may be run again; wait for locks, then name the table in the error."""
        wait = Wait(f"table {self.path}", self._writer)
        with self._errors():
            while True:
                try:
                    with self._borrow() as current:
                        return action(current)
                except sqlite3.OperationalError as error:
                    if not _is_lock(error):
                        raise
                wait.pause()

    def _writer(self) -> Holder | None:
        """The process that is writing."""
        seen = locked_by(self.path.parent / f"{FILE}-shm", "POSIX", WRITE_LOCK_BYTE)
        try:
            noted = Holder.decode((self.path.parent / NOTE).read_bytes())
        except OSError:
            noted = None
        return noted if seen is None or (noted is not None and noted.pid == seen.pid) else seen

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if not self.exists():
                raise self._missing() from error
            if getattr(error, "sqlite_errorname", "") in _DENIED:
                raise ConfigError(
                    f"table {self.path} cannot be used by this user: {error}.",
                    remedy="Check the permissions of that file and of its folder.",
                ) from error
            if str(error).startswith("no such"):
                raise CorruptionError(
                    f"table {self.path} cannot be read: {error}.", remedy="Restore it from a copy, or ingest it again."
                ) from error
            raise UnavailableError(
                f"table {self.path} did not answer: {error}.", remedy="Check the disk.", repeat="Then try again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptionError(
                f"table {self.path} cannot be read: {error}.", remedy="Restore it from a copy, or ingest it again."
            ) from error

    @contextmanager
    def _borrow(self) -> Iterator[_Connection]:
        """A connection to the file that is there now; goes back to the pool unless it broke."""
        try:
            inode = self.path.stat().st_ino
        except OSError as error:
            raise self._missing() from error
        with self._lock:
            current = self._idle.pop() if self._idle else None
        if current is not None and current.inode != inode:  # dropped, and made again, by somebody else
            current.close()
            current = None
        if current is None:
            current = _Connection(self.path, inode)
        owner = os.getpid()
        try:
            yield current
        except sqlite3.Error:
            current.close()
            raise
        finally:
            if os.getpid() == owner and not current.closed:
                with self._lock:
                    self._idle.append(current)

    def _missing(self) -> NotFoundError:
        return NotFoundError(
            f"table {self.name!r} does not exist in {self.folder}.", remedy="Check the graph id, or ingest it first."
        )


class _Connection:
    """An open file: the connection and the inode that it belongs to."""

    def __init__(self, path: Path, inode: int) -> None:
        self.inode = inode
        self.closed = False
        self.connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
        )
        for pragma in PRAGMAS:
            self.connection.execute(pragma)
        self._note_path, self._note = path.parent / NOTE, -1

    def leave_note(self) -> None:
        """Say who writes, if that is possible; it is read only while the file is locked, so it is never wiped."""
        with suppress(OSError):
            if self._note < 0:
                self._note = os.open(self._note_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.pwrite(self._note, Holder.this_process().encode().ljust(NOTE_BYTES), 0)

    def close(self) -> None:
        if self._note >= 0:
            os.close(self._note)
        self.closed, self._note = True, -1
        self.connection.close()


def _close_all() -> None:
    for table in list(_open_tables):
        table.close()


def _start_afresh() -> None:
    """In a child: another thread of the parent may have held the lock, or given a connection back just then."""
    for table in list(_open_tables):
        _abandoned.extend(table._idle)
        table._idle, table._lock = [], threading.Lock()


os.register_at_fork(before=_close_all, after_in_child=_start_afresh)


_DENIED = frozenset({"SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN"})
"""Answers that do not change by asking again."""


def _is_lock(error: sqlite3.OperationalError) -> bool:
    return "locked" in str(error) or "locking protocol" in str(error)
