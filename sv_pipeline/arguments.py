"""What callers hand in: ids, voxels, users, tokens, numbers, switches. One parser each; looks nothing up.

| argument | taken | refused |
| --- | --- | --- |
| ids | whole numbers below 2^64: one, a list, or an array | floats, text, truth values, masked entries, tables |
| voxels | rows of three numbers without a fraction | text, truth values, complex numbers, nan, masked entries |
| user | 1 to 200 characters in one line | what is blank, control characters, what UTF-8 cannot encode |
| token | 1 to 200 letters, digits, ``_``, ``.`` and ``-`` | anything else |
| switch | ``True`` and ``False``, those of NumPy as well | everything else that Python takes for true or false |

What is refused is an InputError that shows the value in one line. Floating point cannot hold ids; an array whose mask
hides nothing is taken, and so is one of objects if all of them are whole numbers. Moments and numbers of operations
have a parser of their own, see :mod:`sv_pipeline.moments`.
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
"""Ids or voxels of one call: what they take in memory is still below that of one chunk's voxels."""
LONGEST_NAME = 200
"""Characters of a user's name, and of a token."""
LONGEST_TEXT = 2000
LONGEST_SHOWN = 110
MOST_GIGABYTES = 1e6
_BREAKS_A_LINE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories of control characters, lone surrogates, and separators of lines and paragraphs."""
_TOKEN = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_WHOLE_IDS = "An id is a whole number from 0 to 2^64 - 1: an int, or an array of integers of shape (n,)."
_WHOLE_VOXELS = "A point is three whole numbers x, y, z, in voxels of mip 0."
_Called = TypeVar("_Called", bound=Callable[..., Any])


def shown(value: Any) -> str:
    """A value for a message: short, in one line, whatever it is."""
    try:
        text = reprlib.repr(value)
    except (ValueError, RecursionError):  # int has more digits than Python converts
        text = f"a value of type {type(value).__name__} that is too large to be shown"
    text = _ADDRESS.sub("", " ".join(text.split()))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 4]} ..."


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy: no truth value, and no duration."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


# -- arrays -----------------------------------------------------------------------------------------------------------


def parse_ids(value: Any, name: str = "ids") -> UInt64Array:
    """Ids of nodes, shape (n,); one id alone is an array of one.

    Parameters
    ----------
    value
        What the caller gave.
    name
        What the ids are, for the message.

    Raises
    ------
    InputError
        If it is anything else.
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
    raise InputError(f"the {name} are no ids: {shown(value)}.", remedy=_WHOLE_IDS)


def parse_voxels(value: Any, name: str = "points", *, floor: bool = False) -> npt.NDArray[np.int64]:
    """Voxels, shape (n, 3); one voxel alone is an array of one.

    Parameters
    ----------
    value
        What the caller gave.
    name
        What the voxels are, for the message.
    floor
        Whether a fraction is taken for the voxel that it lies in; otherwise it is refused.

    Raises
    ------
    InputError
        If it is anything else.
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
    raise InputError(f"the {name} are not voxels: {shown(value)}.", remedy=_WHOLE_VOXELS)


def plain_array(value: Any) -> npt.NDArray[Any] | None:
    """A value as an array that still has all that the value has; None for what is masked, or not an array at all.

    Lists become arrays of objects: NumPy would make numbers out of truth values, and floating point out of large ids.
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
    """Numbers as int64; None if they are none, or too large for it."""
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
    """The name of the author of an edit, as the log keeps it; InputError if it is none."""
    return parse_line(value, "name of a user", longest=LONGEST_NAME)


def parse_text(value: Any, name: str, *, longest: int = LONGEST_TEXT) -> str:
    """A text for the log, its white space made single blanks; InputError if it is blank, too long, or no text.

    Parameters
    ----------
    value
        What the caller gave.
    name
        What the text is, for the message.
    longest
        Characters that it may have.
    """
    return parse_line(" ".join(value.split()) if isinstance(value, str) else value, name, longest=longest)


def parse_line(value: Any, name: str, *, longest: int = LONGEST_TEXT) -> str:
    """A text of one line; InputError if it is blank, longer than ``longest`` characters, or no text."""
    if (
        isinstance(value, str)
        and value.strip()
        and len(value) <= longest
        and _BREAKS_A_LINE.isdisjoint(map(unicodedata.category, value))
    ):
        return str(value)
    raise InputError(
        f"{shown(value)} is no {name}.", remedy=f"Give 1 to {longest:,} characters, none of them a control character."
    )


def parse_token(value: Any) -> str:
    """The token of a request; InputError if it is none."""
    if isinstance(value, str) and _TOKEN.fullmatch(value):
        return str(value)
    raise InputError(
        f"{shown(value)} is no token of a request.",
        remedy=f"A token has 1 to {LONGEST_NAME} letters, digits, _ . and -.",
    )


def parse_count(value: Any, name: str, *, least: int = 0) -> int:
    """A number of something; InputError if it is no whole number, or less than ``least``."""
    if is_whole(value) and least <= int(value) <= LARGEST_COUNT:
        return int(value)
    raise InputError(f"{shown(value)} is no {name}.", remedy=f"Give a whole number, {least} or more.")


def parse_seconds(value: Any, name: str) -> float:
    """A duration in seconds; InputError if it is no number, negative, or without end."""
    is_number = is_whole(value) or isinstance(value, float | np.floating)
    if is_number and 0 <= value <= LARGEST_COUNT:
        return float(value)
    raise InputError(f"{shown(value)} is no {name}.", remedy="Give a number of seconds, 0 or more.")


def parse_gigabytes(value: Any, name: str) -> int:
    """An amount of memory, given in GB, in bytes; InputError if it is no number from 0 to a million."""
    is_number = is_whole(value) or isinstance(value, float | np.floating)
    if is_number and 0 <= value <= MOST_GIGABYTES:
        return int(float(value) * 1e9)
    raise InputError(f"{shown(value)} is no {name}.", remedy=f"Give a number of GB, from 0 to {MOST_GIGABYTES:,.0f}.")


def parse_flag(value: Any, name: str) -> bool:
    """A switch; InputError if it is neither True nor False: any text would count as True."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name} is True or False, not {shown(value)}.", remedy="Give one of the two.")


def parse_names(value: Any, name: str) -> list[str]:
    """Names in a list; InputError if it is anything else, one name alone as well."""
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(one, str) for one in value):
        return list(value)
    raise InputError(f"{shown(value)} are no {name}.", remedy="Give a list of names.")


def parse_callback(value: _Called | None, name: str) -> _Called | None:
    """A function to call, or None; InputError if it cannot be called."""
    if value is None or callable(value):
        return value
    raise InputError(f"{name} is a function, not {shown(value)}.", remedy="Give a function, or leave it out.")
