"""Finding unfinished operations of other software, which keeps no list of them: the log is read once, from the start.

A cursor goes along the log, a bounded piece at a time. What is finished is passed for good; what is not goes on a list
(*watched*), which is looked at each time until it is finished. Ids that have no row yet are remembered, too, since
whoever took one may be about to write it. So nothing unfinished is passed, and what a tick costs depends on what is new
and on what is stuck, not on the length of the log::

    sv_pipeline:scan             1:cursor     {"next": id, "gaps": {id: seconds when it was missed first}}
    sv_pipeline:watch:%020d      1:since      seconds when it was found
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from sv_pipeline.errors import CorruptionError, UnavailableError
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.table import codecs, columns, counters, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, DeleteCells, RowMutation, RowView, Table
from sv_pipeline.waiting import at_most

__all__ = ["Advance", "advance", "forget", "watched"]

SCAN_ROW = b"sv_pipeline:scan"
CURSOR: Column[Any] = Column(ColumnKey("1", b"cursor"), codecs.JsonCodec())
SINCE: Column[Any] = Column(ColumnKey("1", b"since"), codecs.JsonCodec())
WATCH_PREFIX = b"sv_pipeline:watch:"
WATCH_ROWS = keys.prefix_range(WATCH_PREFIX)
FINISHED = (OperationStatus.SUCCESS, OperationStatus.EXCEPTION, OperationStatus.WRITE_FAILED)

ROWS_PER_STEP = 1_000
GAP_SECONDS = 86_400.0
"""An id that has no row for so long was given to nobody."""
UNLOCKED_SECONDS = 86_400.0
"""Other software leaves refused requests at CREATED for ever; what holds nothing for so long is one of them."""
MAX_GAPS = 1_000
SECONDS_TO_NOTE = 1.0

log = logging.getLogger(__name__)


class Advance(NamedTuple):
    """How far the log has been looked through."""

    ahead: int
    """Rows that are still ahead."""
    found: dict[int, float]
    """Operations that were found now, and when."""


def advance(table: Table, *, seconds: float = 0.3) -> Advance:
    """Go on along the log for so long, one step at least.

    A table that cannot be written to just now is looked through all the same; next time again.
    """
    began, now = time.monotonic(), time.time()
    cursor = CURSOR.newest(table.read_rows([SCAN_ROW], [CURSOR.key], newest_only=True).get(SCAN_ROW)) or {}
    first = start = int(cursor.get("next", 1))
    gaps = {int(i): float(since) for i, since in cursor.get("gaps", {}).items()}
    last = counters.last_operation_id(table)
    watch: list[int] = []
    late = _read(table, keys.node_keys(sorted(gaps)) if gaps else [])
    watch += [i for i, row in late.items() if not _is_finished(row)]
    gaps = {i: since for i, since in gaps.items() if i not in late and now - since < GAP_SECONDS}
    while first <= last and (first == start or time.monotonic() - began < seconds):
        stop = min(first + ROWS_PER_STEP - 1, last)
        found = {int(key): row for key, row in _scan(table, first, stop)}
        watch += [i for i, row in found.items() if not _is_finished(row)]
        if stop > last - MAX_GAPS:
            gaps |= {i: now for i in range(max(first, last - MAX_GAPS), stop + 1) if i not in found}
        first = stop + 1
    listed = [RowMutation(_watch_key(i), [SINCE.set(now, FIXED_TIME)]) for i in watch]
    # The cursor passes an operation only once it is on the list.
    if _note(table, listed) and (first != start or gaps or late):
        _note(table, [RowMutation(SCAN_ROW, [CURSOR.set({"next": first, "gaps": gaps}, FIXED_TIME)])])
    return Advance(max(0, last + 1 - first), dict.fromkeys(watch, now))


def watched(table: Table) -> dict[int, float]:
    """Operations on the list, and since when."""
    return {
        int(key.removeprefix(WATCH_PREFIX)): float(SINCE.newest(row) or 0.0)
        for key, row in table.scan([WATCH_ROWS], newest_only=True)
    }


def forget(table: Table, operation_ids: Iterable[int]) -> None:
    """Take operations off the list."""
    _note(table, [RowMutation(_watch_key(i), [DeleteCells()]) for i in operation_ids])


def _note(table: Table, mutations: list[RowMutation]) -> bool:
    """Remember for the next time, if the table can be written to soon; whether it is remembered."""
    try:
        with at_most(SECONDS_TO_NOTE):
            table.mutate(mutations)
    except UnavailableError as error:
        log.warning("what was found is not noted, and will be looked for again: %s", error)
        return False
    return True


def _watch_key(operation_id: int) -> bytes:
    return WATCH_PREFIX + b"%020d" % operation_id


_COLUMNS = [columns.OPERATION_STATUS.key, columns.CHUNK_LOCK_SCOPE.key]


def _scan(table: Table, first: int, last: int) -> Iterable[tuple[bytes, RowView]]:
    return table.scan([keys.operation_range(first, last)], _COLUMNS, newest_only=True)


def _read(table: Table, row_keys: list[bytes]) -> dict[int, RowView]:
    return {int(key): row for key, row in table.read_rows(row_keys, _COLUMNS, newest_only=True).items()}


def _is_finished(row: RowView) -> bool:
    try:
        return columns.OPERATION_STATUS.newest(row) in FINISHED and columns.CHUNK_LOCK_SCOPE.key not in row
    except CorruptionError:  # it must not hide those behind it in the log; one of ours has an open row, too
        return True
