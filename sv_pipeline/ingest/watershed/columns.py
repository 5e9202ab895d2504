"""Columns of tables that users provide, as ``.csv`` or ``.npz``: how they are read, and which are rejected.

pandas guesses if a file is not what it expects: a row that is too long makes the first column an index, a repeated
column gets another name, and one wrong value turns a whole column into texts or floats. The guesses are therefore
checked, and the message names the row of the file that caused them.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError
from sv_pipeline.ingest.watershed.array_files import read_array
from sv_pipeline.ingest.watershed.source import split_key
from sv_pipeline.redaction import redacted

__all__ = ["read_columns"]

_WHOLE = re.compile(r"\s*\d+\s*")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_LARGEST = 2**64 - 1
SHOWN = 60
"""Maximum number of characters of a line that a message shows."""


def read_columns(path: str, types: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """Read columns of a table, each of shape (n,).

    Parameters
    ----------
    path
        Path of a ``.csv``, or of an ``.npz`` with an array for each column.
    types
        Name and type of each wanted column; other columns are ignored.

    Raises
    ------
    InputError
        If the table cannot be read, or a value does not have its column's type; the message names the row.
    """
    remedy = f"Give the columns {', '.join(types)}."
    file = Path(split_key(path)[0])
    if not file.is_file():
        fault = "is not a file" if file.exists() else "does not exist"
        raise InputError(f"{path} {fault}.", remedy="Check the paths in source.")
    try:
        columns = _npz(file, types) if file.suffix == ".npz" else _csv(file, types)
        arrays = {name: _numbers(name, columns[name], np.dtype(dtype)) for name, dtype in types.items()}
    except (ValueError, OSError, KeyError, OverflowError) as error:
        fault = str(error).strip().rstrip(".")
        raise InputError(f"{path} cannot be read as a table: {fault}.", remedy=remedy) from error
    if len({array.shape for array in arrays.values()}) > 1 or next(iter(arrays.values())).ndim != 1:
        raise InputError(f"{path}: columns differ in length or shape.", remedy=remedy)
    return arrays


def _npz(file: Path, types: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    return {name: read_array(str(file), name) for name in types}


def _csv(file: Path, types: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    import pandas as pd  # takes a quarter of a second to load, and most ingests read no table

    _check_header(file, types)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(file, skipinitialspace=True, index_col=False, encoding="utf-8-sig")
    except pd.errors.ParserWarning as error:
        raise ValueError("its rows have more fields than its first line has names") from error
    found = {}
    for name, dtype in types.items():
        values = frame[name].to_numpy()
        if values.size and values.dtype.kind not in _kinds(np.dtype(dtype)):
            raise ValueError(_first_wrong(file, name, np.dtype(dtype)) or _wrong_kind(name, values, np.dtype(dtype)))
        found[name] = values
    return found


def _check_header(file: Path, types: Mapping[str, str]) -> None:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines, skipinitialspace=True), [])
    twice = [name for name in types if names.count(name) > 1]
    if twice:
        raise ValueError(f"the column {twice[0]} occurs twice in its first line")
    if missing := [name for name in types if name not in names]:
        fault = f"its first line, {_shown(','.join(names))}, does not name {' and '.join(missing)}, separated by commas"
        raise ValueError(fault if names else "it is empty")


def _first_wrong(file: Path, name: str, dtype: np.dtype[Any]) -> str | None:
    """Describe the first row whose value does not have its column's type; None if there is none."""
    form, kind = (_WHOLE, "whole number") if dtype.kind == "u" else (_NUMBER, "number")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, skipinitialspace=True)
        at = next(rows).index(name)
        for number, row in enumerate((row for row in rows if row), 1):
            value = row[at] if at < len(row) else ""
            if form.fullmatch(value) is None or (dtype.kind == "u" and int(value) > _LARGEST):
                room = f" of at most {_LARGEST}" if form.fullmatch(value) else ""
                return f"row {number}: {name} is {_shown(value)}, which is not a {kind}{room}"
    return None


def _shown(text: str) -> str:
    return repr(redacted(text if len(text) <= SHOWN else f"{text[:SHOWN]}…"))


def _kinds(dtype: np.dtype[Any]) -> str:
    return "iu" if dtype.kind == "u" else "iuf"


def _wrong_kind(name: str, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> str:
    return f"{name} holds {values.dtype} where {'integers' if dtype.kind == 'u' else 'numbers'} belong"


def _numbers(name: str, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert a column to its type, after checking its own, since NumPy would silently wrap -1 and truncate 1.5."""
    if values.size and values.dtype.kind not in _kinds(dtype):
        raise ValueError(_wrong_kind(name, values, dtype))
    if values.size and dtype.kind == "u" and int(values.min()) < 0:
        row = int(values.argmin())
        raise ValueError(f"row {row + 1}: {name} is {values.flat[row]}, but labels are at least 0")
    return values.astype(dtype)
