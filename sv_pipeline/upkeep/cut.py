"""The cut of a backup: the operations that are in it, a generation of the fork that has exactly their voxels, and the
rows without the cells of all others.

Operations go on while the rows are copied, so the copy contains parts of operations that are not in the cut. An
operation adds cells at its logical time, and removes nothing but its own cells and locks. So the cells at the times of
operations that are not in the cut are left out when the copy is restored.

========================  ============================================================================================
kept                      nodes, edges, id counters, the ingest's bookkeeping, and the log of operations in the cut
without                   locks; open rows; the edit feed and its receivers; tokens of requests; what recovery has noted
========================  ============================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS
from sv_pipeline.operations.writing import OWN_PREFIX
from sv_pipeline.recovery.scan import all_unfinished
from sv_pipeline.segmentation.fork.records import records_in, store_at
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import RowView, Table

__all__ = ["BackupCut", "TimesCollideError", "find_cut", "kept_rows", "times_of_others"]

NEWEST_IDS = 1_000
"""Number of last ids in the log among which ids without a row are taken for operations that are just beginning."""
PATIENCE = 120.0
BACKOFF = Backoff(0.02, 1.0)
_LOCKS = (columns.LOCK.key, columns.INDEFINITE_LOCK.key)
_ENDED = (int(OperationStatus.SUCCESS), int(OperationStatus.EXCEPTION))
_OWN_ROWS = b"sv_pipeline:"
_KEPT_OWN_ROWS = (b"sv_pipeline:ingest:", b"sv_pipeline:counts")
_FIRST_NODE = 1 << 56
_LOCK_KEYS = (10, 26)
"""Lengths of the keys of rows that hold locks of chunks and cells, which are binary."""


Row = tuple[bytes, RowView]


class TimesCollideError(Exception):
    """Raised if an operation in the cut and another one have the same logical time; another cut has to be found."""


@dataclass(frozen=True)
class BackupCut:
    """The operations of a backup."""

    last: int
    """Number of the last operation that may be in it."""
    without: frozenset[int]
    """Numbers up to that of operations that are not in it, because they had not ended."""
    generation: int | None
    """Generation of the fork with their voxels; None if there is no fork."""

    def holds(self, operation_id: int) -> bool:
        """Return whether an operation is in the backup."""
        return operation_id <= self.last and operation_id not in self.without


def find_cut(graph: ChunkedGraph) -> BackupCut:
    """Find a moment at which no operation is between its voxels and its end; edits may go on.

    Raises
    ------
    ConflictError
        If there is no such moment for a long time, mostly because an operation's process has died.
    """
    attempt, deadline, table = 0, time.monotonic() + PATIENCE, graph.table
    all_unfinished(graph, seconds=60.0)  # so that operations of other software are known
    while True:
        attempt += 1
        last = counters.last_operation_id(table)
        unfinished = {one.id: one for one in all_unfinished(graph)}
        without = {*unfinished} | _without_row(table, last)
        if not graph.fork.exists():
            return BackupCut(last, frozenset(i for i in without if i <= last), None)
        generation = graph.fork.generation()
        found = records_in(store_at(graph.fork.store(), generation).kv)
        cut = BackupCut(last, frozenset(i for i in without if i <= last), generation)
        early = sorted(record.operation_id for record in found if not cut.holds(record.operation_id))
        # Other software makes no records, so one of its operations may have written voxels since the first look.
        looks = (*unfinished.values(), *all_unfinished(graph))
        if not early and not any(one.foreign and one.scope is not None for one in looks):
            return cut
        if time.monotonic() > deadline:
            named = ", ".join(map(str, early or unfinished))
            raise ConflictError(
                f"operations of graph {graph.graph_id!r} are between their voxels and their end ({named}).",
                remedy=f"If their process has died, recover them: 'sv-pipeline stuck list {graph.graph_id}'.",
            )
        time.sleep(BACKOFF.jittered(attempt))


def _without_row(table: Table, last: int) -> set[int]:
    """Return new ids without an entry in the log, or with one that has not ended."""
    ids = range(max(1, last - NEWEST_IDS), last + 1)
    rows = table.read_rows([keys.node_key(i) for i in ids], [columns.OPERATION_STATUS.key], newest_only=True)
    return {i for i in ids if columns.OPERATION_STATUS.readable(rows.get(keys.node_key(i))) not in (*_ENDED, 4)}


def times_of_others(table: Table, cut: BackupCut) -> set[int]:
    """Return the times, in milliseconds, of all attempts at operations that are not in the cut; after the copy."""
    opened = {int(key.removeprefix(OPEN_PREFIX)) for key, _ in table.scan([OPEN_ROWS], newest_only=True)}
    ids = {*cut.without, *opened, *range(cut.last + 1, counters.last_operation_id(table) + 1)}
    rows = table.read_rows(
        [keys.node_key(i) for i in sorted(ids) if not cut.holds(i)], [columns.OPERATION_TIMESTAMP.key]
    )
    return {time for row in rows.values() for time in _times(row)}


def _times(row: RowView) -> set[int]:
    return {_milliseconds(moment) for _, moment in columns.OPERATION_TIMESTAMP.history(row)}


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000 + 0.5)


def kept_rows(
    rows: Iterable[tuple[bytes, RowView]], cut: BackupCut, others: set[int]
) -> Iterator[tuple[bytes, RowView]]:
    """Yield the copied rows as they are restored; the rows must be in the order of their keys.

    Parameters
    ----------
    others
        Result of `times_of_others`.

    Raises
    ------
    TimesCollideError
        If an operation in the cut has the same logical time as another one.
    """
    for key, row in rows:
        if key.isdigit() and len(key) == keys.DIGITS and int(key) < _FIRST_NODE:
            if cut.holds(int(key)):
                newest = columns.OPERATION_TIMESTAMP.readable(row)
                ended = columns.OPERATION_STATUS.readable(row) == int(OperationStatus.SUCCESS)
                if ended and newest is not None and _milliseconds(newest) in others:
                    raise TimesCollideError(int(key))
                yield key, row
        elif key.startswith(_OWN_ROWS):
            if key.startswith(_KEPT_OWN_ROWS) or (
                key.startswith(OWN_PREFIX) and cut.holds(int(key.removeprefix(OWN_PREFIX)))
            ):
                yield key, row
        elif len(key) not in _LOCK_KEYS:
            kept = {
                column: cells
                for column, found in row.items()
                if column not in _LOCKS and (cells := _before(found, others) if key[:1] in b"0123456789f" else found)
            }
            if kept:
                yield key, kept


def _before(cells: list, others: set[int]) -> list:  # type: ignore[type-arg]
    return [cell for cell in cells if cell.timestamp not in others]
