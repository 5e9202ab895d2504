"""Parsers for the arguments of callers: ids, voxels, users, tokens, numbers, switches. Accesses no storage.

| argument | accepted | refused |
| --- | --- | --- |
| ids | integers below 2^64: one, a list, or an array | floats, strings, booleans, masked entries, tables |
| voxels | rows of three numbers without a fraction | strings, booleans, complex numbers, nan, masked entries |
| user | 1 to 200 characters in one line | blank strings, control characters, strings that UTF-8 cannot encode |
| token | 1 to 200 letters, digits, ``_``, ``.`` and ``-`` | anything else |
| switch | ``True`` and ``False``, those of NumPy as well | everything else that Python treats as true or false |

A refused value raises an InputError that shows the value in one line. Floats are refused as ids because they cannot
represent large ids exactly. A masked array is accepted if its mask hides nothing, and an object array if all its
elements are integers. Times and operation numbers have their own parser, see :mod:`sv_pipeline.moments`.
"""

from __future__ import annotations

import math
import re
import reprlib
import unicodedata
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError
from sv_pipeline.ids import UInt64Array

__all__ = [
    "is_whole",
    "parse_callback",
    "parse_count",
    "parse_flag",
    "parse_gigabytes",
    "parse_ids",
    "parse_line",
    "parse_names",
    "parse_seconds",
    "parse_text",
    "parse_token",
    "parse_user",
    "parse_voxels",
    "plain_array",
    "shown",
]

LARGEST_ID = (1 << 64) - 1
LARGEST_COUNT = (1 << 63) - 1
MOST_AT_ONCE = 1 << 26
"""Largest number of ids or voxels in one call; they take less memory than the voxels of one chunk."""
LONGEST_NAME = 200
"""Largest number of characters of a user's name, and of a token."""
LONGEST_TEXT = 2000
LONGEST_SHOWN = 110
MOST_GIGABYTES = 1e6
_BREAKS_A_LINE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories of control characters, lone surrogates, and separators of lines and paragraphs."""
_TOKEN = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_WHOLE_IDS = "An id is a whole number from 0 to 2^64 - 1: an int, or an array of integers of shape (n,)."
_WHOLE_VOXELS = "A point consists of three whole numbers x, y, z, in voxels of mip 0."
_Called = TypeVar("_Called", bound=Callable[..., Any])


def shown(value: Any) -> str:
    """Format any value for a message: short, and in one line."""
    try:
        text = reprlib.repr(value)
    except (ValueError, RecursionError):  # an int can have more digits than Python converts
        text = f"a value of type {type(value).__name__} that is too large to show"
    text = _ADDRESS.sub("", " ".join(text.split()))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, but not a boolean or a duration."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


# -- arrays -----------------------------------------------------------------------------------------------------------


def parse_ids(value: Any, name: str = "ids") -> UInt64Array:
    """Parse ids of nodes into an array of shape (n,); a single id becomes an array of one.

    Parameters
    ----------
    value
        The caller's argument.
    name
        Name of the argument, for the message.

    Raises
    ------
    InputError
        If the value does not consist of ids.
    """
    array = plain_array(value)
    if array is not None and array.ndim <= 1:
        if not array.size and array.ndim:
            return np.zeros(0, np.uint64)
        flat = array.reshape(-1)
        if flat.dtype.kind == "u" or (flat.dtype.kind == "i" and flat.min() >= 0):
            return flat.astype(np.uint64, copy=False)
        if flat.dtype.kind == "O" and all(is_whole(one) and 0 <= one <= LARGEST_ID for one in flat):
            return np.array([int(one) for one in flat], np.uint64)
    raise InputError(f"cannot use {shown(value)} as {name}.", remedy=_WHOLE_IDS)


def parse_voxels(value: Any, name: str = "points", *, floor: bool = False) -> npt.NDArray[np.int64]:
    """Parse voxel coordinates into an array of shape (n, 3), axes (x, y, z); a single voxel becomes an array of one.

    Parameters
    ----------
    value
        The caller's argument.
    name
        Name of the argument, for the message.
    floor
        Whether a coordinate with a fraction is rounded down to the voxel that contains it. Otherwise it is refused.

    Raises
    ------
    InputError
        If the value does not consist of voxel coordinates.
    """
    array = plain_array(value)
    if array is not None and not array.size and array.ndim:
        return np.zeros((0, 3), np.int64)
    if array is not None and array.shape == (3,):
        array = array[None]
    if array is not None and array.ndim == 2 and array.shape[1] == 3:
        whole = _whole(array, floor=floor)
        if whole is not None:
            return whole
    raise InputError(f"cannot use {shown(value)} as {name}.", remedy=_WHOLE_VOXELS)


def plain_array(value: Any) -> npt.NDArray[Any] | None:
    """Convert a value to an array without losing information; None if it is masked or not array-like.

    Lists become object arrays, because NumPy would convert booleans to numbers and large ids to floats.
    """
    try:
        if isinstance(value, np.ma.MaskedArray):
            array: npt.NDArray[Any] | None = None if np.ma.is_masked(value) else np.ma.getdata(value)
        elif isinstance(value, list | tuple | range):
            array = None if len(value) > MOST_AT_ONCE or _has_masked(value) else np.array(value, dtype=object)
        elif isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
            array = np.asarray(value)
        else:
            array = np.array(value, dtype=object) if is_whole(value) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return None if array is None or array.size > MOST_AT_ONCE else array


def _has_masked(rows: list[Any] | tuple[Any, ...] | range) -> bool:
    return any(isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row) for row in rows)


def _whole(array: npt.NDArray[Any], *, floor: bool) -> npt.NDArray[np.int64] | None:
    """Convert an array to int64; None if an entry is not a number, or does not fit."""
    kind = array.dtype.kind
    if kind == "O":
        flat = array.reshape(-1).tolist()
        if not all(is_whole(one) or isinstance(one, float | np.floating) for one in flat):
            return None
        if not all(math.isfinite(one) for one in flat if isinstance(one, float | np.floating)):
            return None
        down = [math.floor(one) for one in flat]
        if not floor and down != flat:
            return None
        if any(not -LARGEST_COUNT <= one <= LARGEST_COUNT for one in down):
            return None
        return np.array(down, np.int64).reshape(array.shape)
    if kind in "iu":
        return None if kind == "u" and int(array.max()) > LARGEST_COUNT else array.astype(np.int64, copy=False)
    if kind != "f" or not np.isfinite(array).all() or not (np.abs(array) < float(1 << 63)).all():
        return None
    down = np.floor(array)
    return down.astype(np.int64) if floor or (down == array).all() else None


# -- one value --------------------------------------------------------------------------------------------------------


def parse_user(value: Any) -> str:
    """Parse the name of an edit's author; InputError if it cannot be used."""
    return parse_line(value, "user name", longest=LONGEST_NAME)


def parse_text(value: Any, name: str, *, longest: int = LONGEST_TEXT) -> str:
    """Parse a text for the operation log; runs of white space become single blanks.

    Parameters
    ----------
    value
        The caller's argument.
    name
        Name of the argument, for the message.
    longest
        Largest number of characters.

    Raises
    ------
    InputError
        If the text is blank or too long, or the value is not a string.
    """
    return parse_line(" ".join(value.split()) if isinstance(value, str) else value, name, longest=longest)


def parse_line(value: Any, name: str, *, longest: int = LONGEST_TEXT) -> str:
    """Parse a text of one line; InputError if it is blank, longer than ``longest`` characters, or not a string."""
    if (
        isinstance(value, str)
        and value.strip()
        and len(value) <= longest
        and _BREAKS_A_LINE.isdisjoint(map(unicodedata.category, value))
    ):
        return str(value)
    raise InputError(
        f"cannot use {shown(value)} as {name}.",
        remedy=f"Give 1 to {longest:,} characters, none of them a control character.",
    )


def parse_token(value: Any) -> str:
    """Parse the idempotency token of a request; InputError if it cannot be used."""
    if isinstance(value, str) and _TOKEN.fullmatch(value):
        return str(value)
    raise InputError(
        f"cannot use {shown(value)} as token of a request.",
        remedy=f"A token consists of 1 to {LONGEST_NAME} letters, digits, _ . and -.",
    )


def parse_count(value: Any, name: str, *, least: int = 0) -> int:
    """Parse a whole number; InputError if the value is not one, or is less than ``least``."""
    if is_whole(value) and least <= int(value) <= LARGEST_COUNT:
        return int(value)
    raise InputError(f"cannot use {shown(value)} as {name}.", remedy=f"Give a whole number, {least} or more.")


def parse_seconds(value: Any, name: str) -> float:
    """Parse a duration in seconds; InputError if the value is not a number, negative, or infinite."""
    is_number = is_whole(value) or isinstance(value, float | np.floating)
    if is_number and 0 <= value <= LARGEST_COUNT:
        return float(value)
    raise InputError(f"cannot use {shown(value)} as {name}.", remedy="Give a number of seconds, 0 or more.")


def parse_gigabytes(value: Any, name: str) -> int:
    """Convert an amount of memory from GB to bytes; InputError if the value is not a number from 0 to a million."""
    is_number = is_whole(value) or isinstance(value, float | np.floating)
    if is_number and 0 <= value <= MOST_GIGABYTES:
        return int(float(value) * 1e9)
    raise InputError(
        f"cannot use {shown(value)} as {name}.", remedy=f"Give a number of GB, from 0 to {MOST_GIGABYTES:,.0f}."
    )


def parse_flag(value: Any, name: str) -> bool:
    """Parse a switch; InputError unless it is True or False, because any non-empty string would count as True."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name} must be True or False, not {shown(value)}.", remedy="Give one of the two.")


def parse_names(value: Any, name: str) -> list[str]:
    """Parse a list of names; InputError if it is anything else, including a single name."""
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(one, str) for one in value):
        return list(value)
    raise InputError(f"cannot use {shown(value)} as {name}.", remedy="Give a list of names.")


def parse_callback(value: _Called | None, name: str) -> _Called | None:
    """Parse a function to call, or None; InputError if the value is not callable."""
    if value is None or callable(value):
        return value
    raise InputError(f"{name} must be a function, not {shown(value)}.", remedy="Give a function, or leave it out.")
