"""Single writes of an edit that take more than one mutation, and their removal. `commit` decides on their order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sv_pipeline.errors import UnavailableError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import locks
from sv_pipeline.table.columns import FAKE_EDGES, INDEFINITE_LOCK
from sv_pipeline.table.interface import CellMatch, ConditionalMutation, DeleteCells, RowMutation, SetCell, Table

__all__ = ["ATTEMPTS_TO_PUT_EDGES", "first_attempt", "put_edges", "take_back", "take_back_edges"]

ATTEMPTS_TO_PUT_EDGES = 100
"""Number of attempts to write fake edges. Each attempt is at least a millisecond later than the one before, so their
timestamp may be somewhat later than that of their edit; one beyond this many milliseconds is not taken for its own."""


def put_edges(table: Table, key: bytes, edges: UInt64Array, timestamp: int) -> None:
    """Write fake edges to a row, at the time of the edit (milliseconds) or shortly after.

    The timestamp is moved until no other edit has written its edges to this row at that time or later.

    Raises
    ------
    UnavailableError
        If other edits write to the row all the time.
    """
    for _ in range(ATTEMPTS_TO_PUT_EDGES):
        if not table.check_and_mutate_many([first_attempt(key, edges, timestamp)])[0]:
            return
        history = FAKE_EDGES.history(table.read_rows([key], [FAKE_EDGES.key]).get(key))
        if any(np.array_equal(value, edges) for _, value in history):
            return
        timestamp = max(time_of for time_of, _ in history) + 1
    raise UnavailableError(f"other edits write to row {key!r} all the time.", remedy="Recover the operation.")


def first_attempt(key: bytes, edges: UInt64Array, timestamp: int) -> ConditionalMutation:
    """Return what `put_edges` tries first; the answer is False if it is done."""
    at = CellMatch(FAKE_EDGES.key, since=timestamp)
    return ConditionalMutation(key, [at], if_unmatched=[FAKE_EDGES.set(edges, timestamp)])


def take_back(table: Table, rows: Iterable[RowMutation], timestamp: int, operation_id: int) -> None:
    """Remove the cells that mutations have written at a time (milliseconds), and the locks of their new roots."""
    removals, born_locked = [], []
    for row in rows:
        cells = [change for change in row.changes if isinstance(change, SetCell)]
        removals.append(
            RowMutation(row.key, [DeleteCells(c.column, timestamp) for c in cells if c.timestamp is not None])
        )
        born_locked += [row.key for cell in cells if cell.column == INDEFINITE_LOCK.key]
    table.mutate(removals)
    for key in born_locked:
        locks.unlock_indefinitely(table, key, operation_id)


def take_back_edges(table: Table, key: bytes, edges: UInt64Array, timestamp: int) -> None:
    """Remove edges that `put_edges` has written."""
    history = FAKE_EDGES.history(table.read_rows([key], [FAKE_EDGES.key]).get(key))
    times = [
        at
        for at, value in history
        if timestamp <= at < timestamp + ATTEMPTS_TO_PUT_EDGES and np.array_equal(value, edges)
    ]
    table.mutate([RowMutation(key, [DeleteCells(FAKE_EDGES.key, at) for at in times])])
