"""Finds unfinished operations of other software, which keeps no list of them: the log is read once, from the start.

A cursor moves along the log, a bounded piece at a time. Finished operations are passed for good. Unfinished ones are
added to a list (*watched*), which is looked at on each tick until they are finished. Ids without a row are remembered
as well, since the process that reserved one may still write it. So no unfinished operation is missed, and the cost of a
tick depends on new and stuck operations, not on the length of the log::

    sv_pipeline:scan             1:cursor     {"next": id, "gaps": {id: time when it was first missing, in seconds}}

The list is in `operations.watch_list`. It also holds operations that their worker ended with an error, since their rows
may be half written, and operations that succeeded recently and have left locks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sv_pipeline.errors import CorruptionError, UnavailableError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import Operation, OperationStatus, is_our_end
from sv_pipeline.operations.other_software import (
    Standing,
    edited_roots,
    ended_by_us,
    footprint_of,
    logical_time,
    quiet_seconds,
)
from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.operations.unfinished import read_log, try_standings
from sv_pipeline.operations.watch_list import Notes, added, noted, removed
from sv_pipeline.operations.watch_list import watched as watch_list
from sv_pipeline.table import codecs, columns, counters, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, RowMutation, RowView, Table
from sv_pipeline.waiting import at_most

__all__ = ["Advance", "advance", "forget", "look", "watched"]

SCAN_ROW = b"sv_pipeline:scan"
CURSOR: Column[Any] = Column(ColumnKey("1", b"cursor"), codecs.JsonCodec())
RECENT_SECONDS = 86_400.0
"""Successful operations that ended within this time, in seconds, are checked for remaining locks."""

ROWS_PER_STEP = 1_000
"""Number of log rows that are read at once."""
GAP_SECONDS = 86_400.0
"""Time after which an id without a row counts as never used, in seconds."""
UNLOCKED_SECONDS = 86_400.0
"""Time after which an operation without locks counts as refused, in seconds: other software leaves the status of
refused requests at CREATED for ever."""
MAX_GAPS = 1_000
"""Number of last ids in the log among which ids without a row are remembered."""
SECONDS_TO_NOTE = 1.0
"""Time that a write of notes may take, in seconds, before it is given up."""

log = logging.getLogger(__name__)


class Advance(NamedTuple):
    """The progress of the cursor along the log."""

    ahead: int
    """Number of ids that the cursor has not reached."""
    found: dict[int, float]
    """Ids of the operations that were found in this call, with the time, in seconds since the epoch."""


def advance(table: Table, *, seconds: float = 0.3) -> Advance:
    """Move the cursor along the log for a time in seconds, and at least one step.

    If the table cannot be written to, the operations are returned all the same, and found again by the next call.
    """
    began, now = time.monotonic(), time.time()
    cursor = CURSOR.newest(table.read_rows([SCAN_ROW], [CURSOR.key], newest_only=True).get(SCAN_ROW)) or {}
    first = start = int(cursor.get("next", 1))
    gaps = {int(i): float(since) for i, since in cursor.get("gaps", {}).items()}
    last = counters.last_operation_id(table)
    watch: list[int] = []
    late = _read(table, keys.node_keys(sorted(gaps)) if gaps else [])
    watch += _unfinished(table, late, now)
    gaps = {i: since for i, since in gaps.items() if i not in late and now - since < GAP_SECONDS}
    while first <= last and (first == start or time.monotonic() - began < seconds):
        stop = min(first + ROWS_PER_STEP - 1, last)
        found = {int(key): row for key, row in _scan(table, first, stop)}
        watch += _unfinished(table, found, now)
        if stop > last - MAX_GAPS:
            gaps |= {i: now for i in range(max(first, last - MAX_GAPS), stop + 1) if i not in found}
        first = stop + 1
    listed = [added(i, now) for i in watch]
    # The cursor passes an operation only once it is on the list.
    if _note(table, listed) and (first != start or gaps or late):
        _note(table, [RowMutation(SCAN_ROW, [CURSOR.set({"next": first, "gaps": gaps}, FIXED_TIME)])])
    return Advance(max(0, last + 1 - first), dict.fromkeys(watch, now))


def watched(table: Table) -> dict[int, float]:
    """Return the ids of the operations on the list, each with the time when it was added, in seconds."""
    return {i: since for i, (since, _) in watch_list(table).items()}


def forget(table: Table, operation_ids: Iterable[int]) -> None:
    """Remove operations from the list."""
    _note(table, [removed(i) for i in operation_ids])


class Looked(NamedTuple):
    """What is known about the operations on the list."""

    known: set[int]
    """Ids of the operations whose edited objects are known, or whose rows cannot be read."""
    undecided: set[int]
    """Ids of the operations that may still write, or may have left cells that were not searched for yet."""


def look(graph: ChunkedGraph, operation_ids: Iterable[int], *, seconds: float) -> Looked:
    """Determine which objects the operations on the list edit, and which cells they have left.

    This takes about ``seconds`` at most. The result for each operation is noted, so later calls take only a few reads,
    however many operations there are.
    """
    began, known = time.monotonic(), watch_list(graph.table)
    notes = {i: known[i][1] if i in known else None for i in sorted(operation_ids)}
    open_ones = [i for i, of in notes.items() if of is None or not of.written]
    rows = read_log(graph, open_ones)
    log = {i: one for i, one in rows.items() if isinstance(one, Operation)}
    damaged = rows.keys() - log.keys()
    for i in (i for i in open_ones if notes[i] is None and i in log):
        if time.monotonic() - began > seconds:
            break
        try:
            notes[i] = Notes(edited_roots(graph, log[i]))
        except CorruptionError:  # one damaged operation must not hide the others
            damaged |= {i}
            continue
        _note(graph.table, [noted(i, notes[i] or Notes(()))])
    examined = {i: of for i in open_ones if i in log and (of := notes[i]) is not None}
    found_now = try_standings(graph, [log[i] for i in examined])
    standings = {i: one for i, one in found_now.items() if isinstance(one, Standing)}
    for i, one in standings.items():
        if examined[i].judged_by != one.signature:  # its worker was alive after all, and may have written since
            notes[i] = replace(examined[i], written=None)
    for i in _quiet(graph, log, standings):
        if (of := notes[i]) is None or of.written is not None:
            continue
        if time.monotonic() - began > seconds:
            break
        try:
            written = footprint_of(graph, log[i], of.roots).removable
        except CorruptionError:
            continue
        notes[i] = of = Notes(of.roots, written, standings[i].signature)
        _note(graph.table, [noted(i, of)])
    undecided = {i for i, of in notes.items() if (of is None or of.written is None) and not _is_over(log.get(i))}
    return Looked({i for i, of in notes.items() if of is not None} | damaged, undecided)


def _quiet(graph: ChunkedGraph, log: Mapping[int, Operation], standings: Mapping[int, Standing]) -> list[int]:
    """Return the operations that hold no lock and whose worker is taken for dead, because any lock has expired."""
    old = (time.time() - quiet_seconds(graph)) * 1000
    return [
        i
        for i, one in standings.items()
        if one.scope is None and one.moved_at < old and logical_time(log[i]) and not _is_over(log[i])
    ]


def _is_over(operation: Operation | None) -> bool:
    return operation is not None and (operation.is_complete or ended_by_us(operation))


def _note(table: Table, mutations: list[RowMutation]) -> bool:
    """Write notes to the table; return False if that is not possible within a short time."""
    try:
        with at_most(SECONDS_TO_NOTE):
            table.mutate(mutations)
    except UnavailableError as error:
        log.warning("the operations that were found could not be noted and will be searched for again: %s", error)
        return False
    return True


_COLUMNS = [c.key for c in (columns.OPERATION_STATUS, columns.CHUNK_LOCK_SCOPE, columns.OPERATION_EXCEPTION)]


def _scan(table: Table, first: int, last: int) -> Iterable[tuple[bytes, RowView]]:
    return table.scan([keys.operation_range(first, last)], _COLUMNS, newest_only=True)


def _read(table: Table, row_keys: list[bytes]) -> dict[int, RowView]:
    return {int(key): row for key, row in table.read_rows(row_keys, _COLUMNS, newest_only=True).items()}


def _unfinished(table: Table, log: Mapping[int, RowView], now: float) -> list[int]:
    """Return the operations of a part of the log that have not ended, or have ended but still hold roots."""
    found, recent = [], []
    for i, row in log.items():
        try:
            status, scope = columns.OPERATION_STATUS.newest(row), columns.CHUNK_LOCK_SCOPE.key in row
            ours = is_our_end(columns.OPERATION_EXCEPTION.newest(row))
        except CorruptionError:  # it may be half written, so it is listed with the reason
            found.append(i)
            continue
        if scope or (status != OperationStatus.SUCCESS and not (status == OperationStatus.EXCEPTION and ours)):
            found.append(i)
        elif status == OperationStatus.SUCCESS:
            ended = columns.OPERATION_STATUS.cells(row)[0].timestamp / 1000
            recent += [i] if now - ended < RECENT_SECONDS else []
    return found + _holders(table, recent)


def _holders(table: Table, operation_ids: list[int]) -> list[int]:
    """Return those successful operations that still hold the roots that they replaced; takes three requests."""
    if not operation_ids:
        return []
    made, damaged = {}, []
    for key, row in _read_roots(table, operation_ids):
        try:
            made[int(key)] = columns.ROOTS.newest(row)
        except CorruptionError:
            damaged.append(int(key))
    new = np.unique(np.concatenate([np.zeros(0, np.uint64), *(ids for ids in made.values() if ids is not None)]))
    rows = table.read_rows(keys.node_keys(new), [columns.FORMER_PARENTS.key], newest_only=True)
    old = [columns.FORMER_PARENTS.newest(row) for row in rows.values()]
    held = np.unique(np.concatenate([np.zeros(0, np.uint64), *(ids for ids in old if ids is not None)]))
    locks = table.read_rows(keys.node_keys(held), [columns.INDEFINITE_LOCK.key], newest_only=True)
    holders = {columns.INDEFINITE_LOCK.newest(row) or 0 for row in locks.values()}
    return sorted(holders & {*operation_ids}) + damaged


def _read_roots(table: Table, operation_ids: list[int]) -> Iterable[tuple[bytes, RowView]]:
    return table.read_rows(
        keys.node_keys(np.array(operation_ids, np.uint64)), [columns.ROOTS.key], newest_only=True
    ).items()
