"""The list of operations of other software that have not ended, and what was found out about each. One row each::

    sv_pipeline:watch:%020d      1:since      seconds when it was found
                                 1:notes      {"roots": [...], "written": number of cells, or null,
                                               "judged_by": signature when its cells were searched for}

Which roots an operation edits follows from its log and from the graph of that moment, so it is worked out once. That it
has written nothing is valid only as long as its row and its locks are the same: a worker that plans for longer than its
locks are valid may write later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.table import codecs, keys
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import ColumnKey, DeleteCells, RowMutation, RowView, Table

__all__ = ["Notes", "added", "noted", "read_notes", "removed", "watched"]

SINCE: Column[Any] = Column(ColumnKey("1", b"since"), codecs.JsonCodec())
NOTES: Column[Any] = Column(ColumnKey("1", b"notes"), codecs.JsonCodec())
WATCH_PREFIX = b"sv_pipeline:watch:"
WATCH_ROWS = keys.prefix_range(WATCH_PREFIX)


@dataclass(frozen=True)
class Notes:
    """The findings about one operation."""

    roots: tuple[int, ...]
    """Roots of the objects that it edits, as of the moment before."""
    written: int | None = None
    """Number of cells that it had left when they were searched for; None before that."""
    judged_by: str = ""
    """The signature of its standing at that time, see `other_software.Standing`; empty if it is not known."""


def watched(table: Table) -> dict[int, tuple[float, Notes | None]]:
    """Operations on the list: since when, and what is known of each."""
    return {
        int(key.removeprefix(WATCH_PREFIX)): (float(SINCE.newest(row) or 0.0), _notes(row))
        for key, row in table.scan([WATCH_ROWS], newest_only=True)
    }


def read_notes(table: Table, operation_ids: Iterable[int]) -> dict[int, Notes]:
    """Return the findings about some operations, without those that are not listed or not examined yet."""
    row_keys = {_watch_key(i): i for i in operation_ids}
    rows = table.read_rows(row_keys, [NOTES.key], newest_only=True)
    found = {i: _notes(rows.get(key)) for key, i in row_keys.items()}
    return {i: notes for i, notes in found.items() if notes is not None}


def added(operation_id: int, now: float) -> RowMutation:
    """The change that puts an operation on the list."""
    return RowMutation(_watch_key(operation_id), [SINCE.set(now, FIXED_TIME)])


def noted(operation_id: int, notes: Notes) -> RowMutation:
    """The change that writes down what is known of it."""
    value = {"roots": [str(root) for root in notes.roots], "written": notes.written, "judged_by": notes.judged_by}
    return RowMutation(_watch_key(operation_id), [NOTES.set(value, FIXED_TIME)])


def removed(operation_id: int) -> RowMutation:
    """The change that takes it off the list."""
    return RowMutation(_watch_key(operation_id), [DeleteCells()])


def _watch_key(operation_id: int) -> bytes:
    return WATCH_PREFIX + b"%020d" % operation_id


def _notes(row: RowView | None) -> Notes | None:
    value = NOTES.newest(row)
    if not isinstance(value, dict):
        return None
    written = value.get("written")
    roots = tuple(int(root) for root in value.get("roots", []))
    return Notes(roots, None if written is None else int(written), str(value.get("judged_by", "")))
