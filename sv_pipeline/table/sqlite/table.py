"""SQLite backend: a table in one file of a local folder, for one machine. Knows rows and cells, no graph.

Any number of threads and processes may share a table. Each request borrows a connection from a pool. The pool is
emptied before a fork, because a child must not inherit SQLite's locks.

::

    <folder>/<name>/cells.sqlite        created under another name and renamed into place: complete or absent
"""

from __future__ import annotations

import glob
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
ROWS_PER_TRANSACTION = 2_000  # other writers can write between transactions
BUSY_SECONDS = 0.25  # timeout of one attempt; `waiting` decides how long it is repeated
NOTE = "writer.json"  # a file beside the table that names the process that began to write last
WRITE_LOCK_BYTE = 120  # position of the writer's lock in the index of the write-ahead log, defined by SQLite's format

# FULL, although NORMAL survives kill -9 too (the write-ahead log is then in the page cache): the voxels of an edit are
# durable before its rows are written, so acknowledged rows must not be lost in a power failure either.
PRAGMAS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA cache_size=-65536",  # KiB
    "PRAGMA wal_autocheckpoint=4000",  # pages; a bulk write is then copied into the file less often
    "PRAGMA journal_size_limit=134217728",  # bytes to which the log shrinks after a bulk write
    "PRAGMA temp_store=MEMORY",
)

_open_tables: weakref.WeakSet[SqliteTable] = weakref.WeakSet()
_abandoned: list[_Connection] = []  # connections of a parent process, which a child must neither use nor close


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
        Folder of the tables; it is created with the first table.
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
        """File of the table."""
        return self.folder / self.name / FILE

    @property
    def file(self) -> Path:
        """File of the table."""
        return self.path

    # -- life cycle -----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether the table exists."""
        return self.path.is_file()

    def create(self) -> None:
        """Create the table; ConflictError if it exists."""
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
            draft.rename(self.path.parent)  # fails if the folder exists and is not empty
        except OSError as error:
            if self.exists():
                raise ConflictError(
                    f"table {self.name!r} exists already in {self.folder}.",
                    remedy="Choose another graph id, or remove the table deliberately.",
                ) from error
            raise UnavailableError(f"cannot create table {self.name!r} in {self.folder}: {error}.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def drop(self) -> None:
        """Remove the table and everything in it; does nothing if it does not exist."""
        self._refuse_if_read_only()
        self.close()
        with suppress(FileNotFoundError):
            self.path.parent.rename(self.folder / f".{self.name}.{uuid.uuid4().hex}.dropped")
        # One that a killed process has left is removed as well.
        for grave in self.folder.glob(f".{glob.escape(self.name)}.*.dropped"):
            shutil.rmtree(grave, ignore_errors=True)

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def damage(self) -> list[str]:
        """Return the damage that SQLite finds in its file."""
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
        """Scan rows as of one moment."""
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
        """Apply mutations, each row atomically; see the interface."""
        rest = iter(mutations)
        while batch := list(islice(rest, ROWS_PER_TRANSACTION)):
            now = now_ms()

            def write(connection: sqlite3.Connection, batch: list[RowMutation] = batch, now: int = now) -> None:
                apply_changes(connection, ((m.key, change) for m in batch for change in m.changes), now)

            self._write(write)

    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        """Apply several increments in one transaction; see the interface."""
        if not increments:
            return []
        return self._write(lambda connection: [add(connection, *item) for item in increments])

    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        """Apply several conditional mutations in one transaction; see the interface."""
        if not conditional:
            return []
        return self._write(lambda connection: [decide(connection, item) for item in conditional])

    def at_once(self, changes: Sequence[RowMutation | ConditionalMutation]) -> list[bool]:
        """Apply changes in one transaction, unless there are very many; see the interface."""
        answers: list[bool] = []
        for start in range(0, len(changes), ROWS_PER_TRANSACTION):
            batch, now = changes[start : start + ROWS_PER_TRANSACTION], now_ms()

            def write(connection: sqlite3.Connection, batch: Any = batch, now: int = now) -> list[bool]:
                plain = ((m.key, change) for m in batch if isinstance(m, RowMutation) for change in m.changes)
                apply_changes(connection, plain, now)
                return [isinstance(one, RowMutation) or decide(connection, one) for one in batch]

            answers += self._write(write)
        return answers

    def side_by_side(self, action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Make one call after the other. SQLite has one writer at a time, so threads would wait for each other."""
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
        """Run an action that can be repeated: wait for locks, and raise errors that name the table."""
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
        """Return the process that is writing."""
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
        """Borrow a connection to the current file; it returns to the pool unless it broke."""
        try:
            inode = self.path.stat().st_ino
        except OSError as error:
            raise self._missing() from error
        with self._lock:
            current = self._idle.pop() if self._idle else None
        if current is not None and current.inode != inode:  # another process has dropped and created the table again
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
    """A connection to an open file, and the inode of the file."""

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
        """Store which process writes, if possible. The note is read only while the file is locked, so it can stay."""
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
    """Reset locks and pools in a child: a thread of the parent may have held the lock or returned a connection."""
    for table in list(_open_tables):
        _abandoned.extend(table._idle)
        table._idle, table._lock = [], threading.Lock()


os.register_at_fork(before=_close_all, after_in_child=_start_afresh)


_DENIED = frozenset({"SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_CANTOPEN"})
"""Errors that stay the same if a request is repeated."""


def _is_lock(error: sqlite3.OperationalError) -> bool:
    return "locked" in str(error) or "locking protocol" in str(error)
