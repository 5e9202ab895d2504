"""Decides the order of a feed: each finished operation once, after the operations that it builds on. `rows` stores it.

Operations do not end in the order of their ids, and some end late: a recovery may finish an edit hours after its
process died. So ids cannot be the order of the feed, and a cursor along the ids would miss late operations. Instead,
the feed has numbers of its own. A look at the log

1. reads the operations that are new, those that wait, and some of those that are late;
2. selects those that have succeeded and, if the feed does not have them yet, the operations that made the roots which
   they replaced: these succeeded before the later ones began to write, so they are found now, wherever they are;
3. appends them, each after those that it builds on, else in the order of their logical times;
4. puts unfinished operations on the list of those that wait, before the cursor passes them.

The cost of a look depends on the number of new and unfinished operations. Other software leaves refused requests in
their first state for ever. So an operation that has waited for `LATE_SECONDS` is looked at only in turn, about
`LATE_AT_ONCE` at a time, or when another operation builds on it.

A cell that cannot be decoded counts as missing, because one damaged row must not stop the feed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.failpoints import reach
from sv_pipeline.feed import rows
from sv_pipeline.feed.rows import Head
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.moments import epoch_milliseconds
from sv_pipeline.operations.log import OperationStatus, is_our_end
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.writing import REQUEST, WRITES
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import RowView, Table

__all__ = ["advance", "current_head", "readable_time"]

OPERATIONS_AT_ONCE = 1_000
LATE_SECONDS = 600.0
"""Time after which a waiting operation is looked at only in turn, in seconds."""
LATE_AT_ONCE = 200
"""Number of late operations that a look reads, about."""
GAP_SECONDS = 86_400.0
"""Age of a later operation at which an id without a row counts as never used, in seconds."""
_END_OF_TIME = epoch_milliseconds(datetime.max)

_COLUMNS = [
    columns.OPERATION_STATUS.key,
    columns.OPERATION_TIMESTAMP.key,
    columns.OPERATION_EXCEPTION.key,
    columns.ROOTS.key,
]


def current_head(table: Table) -> Head:
    """Return the head of a feed; the feed is begun if it does not exist yet.

    Raises
    ------
    ConfigError
        If the table is opened read-only, and the feed was never begun.
    """
    found = rows.read_head(table)
    if found is None and table.read_only:
        raise ConfigError(
            f"the edit feed of table {table.name!r} was never begun, and the table is opened read-only.",
            remedy="The feed stores its order in the table: read it once where the table can be written to.",
        )
    return found or rows.begin(table)


def advance(table: Table, *, seconds: float = 5.0) -> Head:
    """Append the operations that have finished since the last look; return the new head.

    Parameters
    ----------
    seconds
        How long to read on in a log that was not read before, in seconds; one step is always made.
    """
    deadline = time.monotonic() + seconds
    head = current_head(table)
    while not table.read_only:
        look = _look(table, head)
        rows.note_waiting(table, look.waiting)
        rows.note_late(table, look.late)
        if not look.has_news:
            look.tidy(table)
            return head
        reach("feed listed")
        if rows.replace_head(table, head, head.followed_by(look.order(), look.following)):
            reach("feed appended")
            look.tidy(table)
        head = current_head(table)
        if head.next > look.last or time.monotonic() > deadline:
            break
    return head


def readable_time(row: RowView) -> int | None:
    """Return the logical time in a row of the log, in milliseconds since the epoch; None if it cannot be read."""
    try:
        at = milliseconds(columns.OPERATION_TIMESTAMP.readable(row))
    except InputError:
        return None
    return at if at is None or at < _END_OF_TIME else None


@dataclass
class _Look:
    """The result of one look at the log."""

    following: int
    """Id of the first operation that the look has not reached."""
    last: int
    """The last operation id that was given out."""
    changed: bool
    """Whether the log has new operations."""
    finished: dict[int, int] = field(default_factory=dict)
    """Logical time, in milliseconds, of each operation to append."""
    before: dict[int, set[int]] = field(default_factory=dict)
    """For each of these operations, the operations that made the roots which it replaced."""
    waiting: dict[int, float] = field(default_factory=dict)
    """Operations to put on the list of those that wait, with the time since which they wait, in seconds."""
    late: dict[int, float] = field(default_factory=dict)
    """Operations to put on the list of those that are looked at in turn, likewise."""
    done: set[int] = field(default_factory=set)
    """Operations to remove from the lists after the head is replaced."""

    @property
    def has_news(self) -> bool:
        """Whether the head has to be replaced."""
        return self.changed or bool(self.finished)

    def tidy(self, table: Table) -> None:
        """Remove operations from the lists that are in the feed now, or will never be."""
        rows.forget(table, self.done)

    def order(self) -> list[int]:
        """Return the operations to append: each after those that it builds on, else in order of logical time."""
        found: dict[int, None] = {}
        for operation in sorted(self.finished, key=lambda i: (self.finished[i], i)):
            path = [operation]
            while path:
                ahead = [i for i in sorted(self.before.get(path[-1], ())) if i in self.finished and i not in found]
                ahead = [i for i in ahead if i not in path]  # damaged lineage may go round in a circle
                if ahead:
                    path.append(ahead[0])
                else:
                    found[path.pop()] = None
        return list(found)


def _look(table: Table, head: Head) -> _Look:
    now = time.time()
    last = counters.last_operation_id(table)
    following = max(head.next, min(head.next + OPERATIONS_AT_ONCE, last + 1))
    look = _Look(following, last, changed=following > head.next)
    fresh: dict[int, RowView] = {}
    if look.changed:
        fresh = _by_id(table.scan([keys.operation_range(head.next, following - 1)], _COLUMNS, newest_only=True))
    waiting, late = rows.waiting_ones(table), rows.late_ones(table, LATE_AT_ONCE, last)
    listed = waiting | late
    found = {**_read(table, listed), **fresh}
    succeeded = {i: row for i, row in found.items() if _status(row) is OperationStatus.SUCCESS}
    final = _final(table, succeeded)
    _close(table, head, look, final)
    look.done |= {i for i in listed if i in look.finished or i in look.done or _has_failed(found.get(i))}

    still = {i: row for i, row in fresh.items() if i not in final and not _has_failed(row)}
    for operation, row in still.items():
        since = min(now, _oldest(row) / 1000)
        (look.waiting if now - since < LATE_SECONDS else look.late)[operation] = now
    look.waiting |= dict.fromkeys(_gaps(head.next, fresh, following, now), now)
    for operation, since in waiting.items():
        if operation not in look.done and now - since >= LATE_SECONDS:
            look.late[operation] = since
    given_up = [i for i, since in listed.items() if i not in found and now - since >= GAP_SECONDS]
    look.done |= set(given_up)
    return look


def _close(table: Table, head: Head, look: _Look, final: Mapping[int, RowView]) -> None:
    """Add the operations that have succeeded, and those that they build on, unless the feed has them already."""
    candidates = dict(final)
    while candidates:
        placed = rows.numbers_of(table, head, candidates)
        look.done |= placed.keys()
        fresh = {i: row for i, row in candidates.items() if i not in placed}
        look.finished |= {i: readable_time(row) or 0 for i, row in fresh.items()}
        look.before |= _built_on(table, fresh)
        wanted = {i for operation in fresh for i in look.before[operation]} - look.finished.keys() - look.done
        known = rows.numbers_of(table, head, wanted)
        missing = _read(table, wanted - known.keys())
        candidates = _final(table, {i: row for i, row in missing.items() if _status(row) is OperationStatus.SUCCESS})


def _built_on(table: Table, operations: Mapping[int, RowView]) -> dict[int, set[int]]:
    """Return, for each operation, the operations that made the roots which it replaced."""
    made = {i: _ids(columns.ROOTS, row) for i, row in operations.items()}
    former = table.read_rows(_keys(made.values()), [columns.FORMER_PARENTS.key], newest_only=True)
    replaced = {
        i: {old for root in roots for old in _ids(columns.FORMER_PARENTS, former.get(keys.node_key(root)))}
        for i, roots in made.items()
    }
    makers = table.read_rows(_keys(replaced.values()), [columns.OPERATION_ID.key])

    def maker(root: int) -> int:
        """Return the operation that made a root; 0 if none did.

        A root that was replaced names two operations. The older cell names the one that made it.
        """
        oldest = columns.OPERATION_ID.cells(makers.get(keys.node_key(root)))[-1:]
        return columns.OPERATION_ID.readable({columns.OPERATION_ID.key: oldest}) or 0

    return {i: {maker(root) for root in roots} - {0, i} for i, roots in replaced.items()}


def _keys(groups: Iterable[Iterable[int]]) -> list[bytes]:
    return keys.node_keys(np.array(sorted({i for group in groups for i in group}), np.uint64))


def _ids(column: columns.ArrayColumn[np.uint64], row: RowView | None) -> list[int]:
    found = column.readable(row)
    return [] if found is None else found.tolist()


def _read(table: Table, operations: Iterable[int]) -> dict[int, RowView]:
    wanted = np.array(sorted(operations), np.uint64)
    return _by_id(table.read_rows(keys.node_keys(wanted), _COLUMNS, newest_only=True).items()) if len(wanted) else {}


def _by_id(found: Iterable[tuple[bytes, RowView]]) -> dict[int, RowView]:
    return {int(key): row for key, row in found}


def _status(row: RowView) -> OperationStatus | None:
    status = columns.OPERATION_STATUS.readable(row)
    try:
        return None if status is None else OperationStatus(status)
    except ValueError:
        return None


def _has_failed(row: RowView | None) -> bool:
    """Return whether an operation has ended without effect for good. Other software may still repair its own."""
    if row is None or _status(row) is not OperationStatus.EXCEPTION:
        return False
    return is_our_end(columns.OPERATION_EXCEPTION.newest(row))


def _final(table: Table, succeeded: Mapping[int, RowView]) -> dict[int, RowView]:
    """Leave out operations that a recovery has rolled back and is about to replay: they will be written again."""
    by_key = {open_key(i): i for i in succeeded}
    opened = table.read_rows(list(by_key), [REQUEST.key, WRITES], newest_only=True) if by_key else {}
    taken_back = {by_key[key] for key, row in opened.items() if REQUEST.key in row and WRITES not in row}
    return {i: row for i, row in succeeded.items() if i not in taken_back}


def _oldest(row: RowView) -> int:
    return min((cell.timestamp for cells in row.values() for cell in cells), default=0)


def _gaps(first: int, found: Mapping[int, RowView], following: int, now: float) -> Iterator[int]:
    """Yield ids without a row that a process may have reserved and may still write."""
    old = [i for i, row in found.items() if now - _oldest(row) / 1000 >= GAP_SECONDS]
    yield from (i for i in range(max([first - 1, *old]) + 1, following) if i not in found)
