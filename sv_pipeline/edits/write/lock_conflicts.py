"""Explains why an edit could not lock a row: the operation that holds it, since when, and the remedy. Reads only."""

from __future__ import annotations

from datetime import UTC, datetime

from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK, NEW_PARENTS
from sv_pipeline.table.interface import Table

__all__ = ["held_by_another"]


def held_by_another(table: Table, key: bytes, name: str, operation_id: int) -> EditRefused:
    """Return the refusal of an operation that gave up waiting for the row ``key`` of the object or chunk ``name``."""
    row = table.read_rows([key], [LOCK.key, INDEFINITE_LOCK.key, NEW_PARENTS.key], newest_only=True).get(key, {})
    if INDEFINITE_LOCK.key in row:
        holder, since = INDEFINITE_LOCK.newest(row), row[INDEFINITE_LOCK.key][0].timestamp
        how = f"is being written by operation {holder}{_user(table, holder)} since {_clock(since)}"
        remedy = "If the process of that operation has died, recover it (sv-pipeline stuck list)."
    elif LOCK.key in row:
        holder, since = LOCK.newest(row), row[LOCK.key][0].timestamp
        how = f"is locked by operation {holder}{_user(table, holder)} since {_clock(since)}"
        remedy = "The lock of an operation that has died expires by itself."
    else:
        how, remedy = "is being edited all the time", None
    said = f"{name} {how}; operation {operation_id} gave up waiting."
    return EditRefused(Reason.LOCKED, said, remedy=remedy, repeat="Try again in a moment.")


def _user(table: Table, operation_id: int | None) -> str:
    if operation_id is None:
        return ""
    key = keys.node_key(operation_id)
    user = columns.USER.newest(table.read_rows([key], [columns.USER.key], newest_only=True).get(key))
    return f" of {user!r}" if user else ""


def _clock(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
