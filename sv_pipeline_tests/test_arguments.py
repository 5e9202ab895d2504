"""Arguments: what is taken is what was given, number by number; everything else is one error in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.arguments import (
    parse_count,
    parse_flag,
    parse_gigabytes,
    parse_ids,
    parse_line,
    parse_names,
    parse_seconds,
    parse_text,
    parse_token,
    parse_user,
    parse_voxels,
    shown,
)
from sv_pipeline.errors import InputError

IDS = st.integers(0, (1 << 64) - 1)
PARSERS: list[Any] = [parse_ids, parse_voxels, parse_user, parse_token]
NAMED: list[Any] = [parse_count, parse_flag, parse_gigabytes, parse_line, parse_names, parse_seconds, parse_text]
ODD = [np.True_, np.uint64(7), np.float32(1), np.timedelta64(1, "s"), np.ma.masked, pd.NA, object()]
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
    | st.sampled_from(range(len(ODD))).map(ODD.__getitem__) | st.builds(pow, st.just(10), st.just(5000))
)  # fmt: skip
anything = st.recursive(scalars, lambda some: st.lists(some) | st.tuples(some, some, some))


@given(st.lists(IDS, max_size=20))
def test_ids_are_exact_in_any_form(ids: list[int]) -> None:
    array = np.array(ids, np.uint64)
    small = [i >> 1 for i in ids]
    assert parse_ids(ids).tolist() == parse_ids(tuple(ids)).tolist() == parse_ids(array).tolist() == ids
    assert parse_ids(np.array(ids, object)).tolist() == parse_ids(pd.Series(array)).tolist() == ids
    assert parse_ids(np.array(small, ">i8")).tolist() == parse_ids([np.int64(i) for i in small]).tolist() == small
    assert parse_ids(np.ma.array(array, mask=False)).tolist() == ids


@given(st.lists(st.tuples(*[st.integers(-(1 << 53), 1 << 53)] * 3), min_size=1, max_size=20))
def test_voxels_are_exact_in_any_form(voxels: list[tuple[int, int, int]]) -> None:
    rows = [list(voxel) for voxel in voxels]
    for form in (
        voxels,
        rows,
        np.array(voxels),
        np.array(voxels, float),
        np.array(voxels, object),
        pd.DataFrame(voxels),
    ):
        assert parse_voxels(form).tolist() == rows
    assert parse_voxels([np.array(voxel) for voxel in voxels]).tolist() == rows
    assert parse_voxels(voxels[0]).tolist() == rows[:1]


@given(anything)
def test_anything_is_taken_or_is_one_error_in_one_line(value: Any) -> None:
    for parse, *name in [*((parse,) for parse in PARSERS), *((parse, "thing") for parse in NAMED)]:
        said = refusal(parse, value, *name)
        assert "\n" not in said
        assert len(said) < 300


def refusal(parse: Any, *arguments: Any) -> str:
    try:
        parse(*arguments)
    except InputError as error:
        return str(error) if error.remedy else "no remedy\n"
    return ""


HIDDEN: dict[str, Any] = {
    "a mask": np.ma.array([1, 2, 3], mask=[True, False, False]),
    "a mask in a list": [np.ma.array([1, 2, 3], mask=[True, False, False])],
    "truths among numbers": [True, 2, 3],
    "digits": ["1", "2", "3"],
    "complex numbers": np.array([1 + 0j, 2, 3]),
    "missing values": pd.Series([1, None, 3], dtype="UInt64"),
    "durations": np.array([1, 2, 3], "m8[s]"),
    "bytes": b"abc",
}
"""Values of three parts that NumPy would make numbers of."""


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("parse", [parse_ids, parse_voxels])
def test_what_numpy_would_make_numbers_of_is_refused(parse: Any, name: str) -> None:
    with pytest.raises(InputError):
        parse(HIDDEN[name])


@pytest.mark.parametrize(
    "user", ["ada", "Ada Lovelace", "ada@example.org", "山田　太郎", "علی‌رضا", "x" * 200, np.str_("ada")]
)
def test_people_have_names_of_many_kinds(user: str) -> None:
    assert parse_user(user) == user


def test_what_is_shown_is_short_and_has_no_address() -> None:
    for value in (object(), 10**5000, np.zeros((9, 9)), pd.DataFrame({"a": [1, 2]}), "\ud800", [[[[[[[[]]]]]]]]):
        text = shown(value)
        assert len(text) < 120
        assert "0x" not in text
        assert "\n" not in text
        text.encode()
