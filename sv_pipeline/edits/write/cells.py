"""Single writes of an edit that are more than a mutation, and taking cells out again. Knows no order of steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sv_pipeline.errors import UnavailableError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import locks
from sv_pipeline.table.columns import FAKE_EDGES, INDEFINITE_LOCK
from sv_pipeline.table.interface import CellMatch, DeleteCells, RowMutation, SetCell, Table

__all__ = ["ATTEMPTS_TO_PUT_EDGES", "put_edges", "take_back", "take_back_edges"]

ATTEMPTS_TO_PUT_EDGES = 100
"""Milliseconds, too, that edges can be later than the edit that put them."""


def put_edges(table: Table, key: bytes, edges: UInt64Array, timestamp: int) -> None:
    """Put fake edges at the time of the edit, or as soon after it as no other edit has put its own in this row."""
    for _ in range(ATTEMPTS_TO_PUT_EDGES):
        at = CellMatch(FAKE_EDGES.key, since=timestamp)
        if not table.check_and_mutate(key, [at], if_unmatched=[FAKE_EDGES.set(edges, timestamp)]):
            return
        history = FAKE_EDGES.history(table.read_rows([key], [FAKE_EDGES.key]).get(key))
        if any(np.array_equal(value, edges) for _, value in history):
            return
        timestamp = max(time_of for time_of, _ in history) + 1
    raise UnavailableError(f"row {key!r} is being written all the time.", remedy="Recover the operation.")


def take_back(table: Table, rows: Iterable[RowMutation], timestamp: int, operation_id: int) -> None:
    """Remove the cells of mutations that are of one time, and the locks that new roots were born with."""
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
    """Remove edges that `put_edges` put."""
    history = FAKE_EDGES.history(table.read_rows([key], [FAKE_EDGES.key]).get(key))
    times = [
        at
        for at, value in history
        if timestamp <= at < timestamp + ATTEMPTS_TO_PUT_EDGES and np.array_equal(value, edges)
    ]
    table.mutate([RowMutation(key, [DeleteCells(FAKE_EDGES.key, at) for at in times])])
