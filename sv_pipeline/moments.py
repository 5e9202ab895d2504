"""Moments as users name them: times in any notation, or the number of an operation. Accesses no storage."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from sv_pipeline.arguments import is_whole, shown
from sv_pipeline.errors import InputError

__all__ = [
    "MEANINGS",
    "Moment",
    "Time",
    "as_date",
    "epoch_milliseconds",
    "parse_moment",
    "parse_operation",
    "parse_time",
]

Time = datetime | date | np.datetime64 | str
"""A time, in UTC unless it names a zone; a date means its first instant; a text is ISO 8601, with or without a zone."""
Moment = Time | int
"""A time, or the number of an operation, which means the moment just after that operation."""

MEANINGS = (
    "A moment is a time (datetime, date, numpy.datetime64 or pandas.Timestamp; or ISO text such as "
    "2026-01-31T12:00:00+01:00; UTC where it names no zone), or the number of an operation."
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ISO = re.compile(r"\d{4}-\d\d.*")
"""The dashes distinguish a date from the number of an operation: ``20260131`` is never read as a time."""
_MAX_OPERATION = 1 << 63


def parse_moment(value: Any) -> datetime | int:
    """Parse a moment into a time with its zone, or the number of an operation.

    Raises
    ------
    InputError
        If the value is neither; the message explains what a moment is.
    """
    if is_whole(value):
        return parse_operation(value)
    return parse_time(value)


def parse_operation(value: Any) -> int:
    """Parse the number of an operation; InputError if the value is not one."""
    if not is_whole(value) or not 0 < int(value) < _MAX_OPERATION:
        raise InputError(
            f"{shown(value)} is not the number of an operation.",
            remedy="Operations are numbered from 1; 'sv-pipeline ops GRAPH' lists them.",
        )
    return int(value)


def parse_time(value: Any) -> datetime:
    """Parse a time; the result is in UTC.

    Raises
    ------
    InputError
        If the value is not a time, or lies outside the years 1 to 9999; the message explains what a moment is.
    """
    try:
        found = _time(value)
        if found is not None and found == found:  # pandas.NaT is a datetime that does not equal itself
            aware = found if found.utcoffset() is not None else found.replace(tzinfo=UTC)
            return aware.astimezone(UTC)
    except (ValueError, OverflowError, TypeError):
        pass
    raise InputError(f"{shown(value)} is not a moment.", remedy=MEANINGS)


def epoch_milliseconds(time: datetime) -> int:
    """Convert a time to milliseconds since the epoch, rounded up; times before the epoch become 0."""
    aware = time if time.utcoffset() is not None else time.replace(tzinfo=UTC)
    return max(0, -((_EPOCH - aware) // _MILLISECOND))


def as_date(milliseconds: int) -> str:
    """Format the timestamp of a cell (milliseconds since the epoch) as a date and time in UTC."""
    try:
        return (_EPOCH + milliseconds * _MILLISECOND).isoformat(sep=" ", timespec="milliseconds")
    except OverflowError:
        return f"{milliseconds} ms after 1970"


def _time(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, np.datetime64):
        year = int(value.astype("datetime64[Y]").astype(np.int64)) + 1970
        # For years outside this range the conversion overflows to another time. NaT is far outside.
        found: datetime = value.astype("datetime64[us]").item()
        return found if 1 <= year <= 9999 else None
    if isinstance(value, str) and _ISO.fullmatch(value.strip()):
        return datetime.fromisoformat(value.strip())
    return None
