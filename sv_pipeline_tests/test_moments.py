"""Moments: a time in any of its types is that time, and whatever is none is refused with one error."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import InputError
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.moments import epoch_milliseconds, parse_moment, parse_time

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(timezone(timedelta(hours=-8))),
        np.datetime64("2026-01-31T12:00:00"),
        np.datetime64("2026-01-31T12", "h"),
        np.datetime64("2026-01-31T12:00:00.000000001", "ns"),
        pd.Timestamp("2026-01-31 12:00"),
        pd.Timestamp("2026-01-31 13:00", tz="Europe/Zurich"),
        "2026-01-31T12:00:00Z",
        "2026-01-31 13:00:00+01:00",
        "2026-01-31T12:00",
    ],
    ids=repr,
)
def test_a_time_is_that_time_in_any_type(value: Any) -> None:
    assert parse_moment(value) == NOON
    assert milliseconds(value) == int(NOON.timestamp() * 1000)


def test_a_date_is_its_first_instant() -> None:
    for value in (date(2026, 1, 31), "2026-01-31", np.datetime64("2026-01-31")):
        assert parse_moment(value) == datetime(2026, 1, 31, tzinfo=UTC)


def test_times_before_the_epoch_are_before_everything() -> None:
    assert epoch_milliseconds(parse_time(datetime.min)) == epoch_milliseconds(parse_time("1969-12-31")) == 0
    assert epoch_milliseconds(parse_time("1970-01-01T00:00:00.0001")) == 1


NONE_OF_THEM = [
    None, float("nan"), 1.0, np.float64(3), True, np.True_, "", "now", "yesterday", "17", "20260131", "2026",
    b"2026-01-31",     0, -1, 1 << 63, 1 << 70, np.int64(-5), np.datetime64("NaT"), np.datetime64("NaT", "s"),
    np.datetime64("12000-01-01"), np.datetime64(1 << 62, "D"), pd.NaT, "2026-13-01", "2026-01-31T25:00", "9999-99-99",
    timedelta(1), np.timedelta64(1, "s"),    (2026, 1, 31), [NOON], np.array([1, 2]), {"a": 1}, "\udcff", 1j,
]  # fmt: skip


@pytest.mark.parametrize("value", NONE_OF_THEM, ids=repr)
def test_what_is_no_moment_is_one_error_that_says_what_is(value: Any) -> None:
    with pytest.raises(InputError, match=r"moment|operation") as error:
        parse_moment(value)
    assert "number of an operation" in str(error.value) or "Operations are numbered" in str(error.value)


@given(st.datetimes(timezones=st.none() | st.just(UTC)) | st.dates() | st.integers() | st.floats() | st.text())
def test_anything_is_a_moment_or_that_error(value: Any) -> None:
    with contextlib.suppress(InputError):
        parse_moment(value)
