"""Pickles in cells, read through an allow-list, so that the content of a table can never run code.

PyChunkedGraph stores its meta, operation states and times as pickles. Knows no meta and no operation.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np

from sv_pipeline.errors import CorruptionError

__all__ = ["NUMBERS", "PROTOCOL", "TIMES", "load"]

PROTOCOL = 4

Globals = Mapping[tuple[str, str], Callable[..., Any]]


def _utc(*_: object) -> timezone:
    return UTC


def _datetime(*arguments: Any) -> datetime:
    return datetime(*arguments)


TIMES: Globals = {
    ("datetime", "datetime"): datetime,
    ("datetime", "timedelta"): timedelta,
    ("datetime", "timezone"): timezone,
    ("pytz", "_UTC"): _utc,  # older rows
    ("google.api_core.datetime_helpers", "DatetimeWithNanoseconds"): _datetime,  # older rows
    ("proto.datetime_helpers", "DatetimeWithNanoseconds"): _datetime,
}
"""Globals that a stored time may use."""


# -- numbers of NumPy -------------------------------------------------------------------------------------------------
# These are rebuilt by our own functions, since NumPy's would also accept dtypes of objects.


def _scalar(dtype: Any, data: Any = None) -> Any:
    """Rebuild a NumPy scalar from a pickle; only plain numbers are allowed."""
    return np.frombuffer(data, _plain(dtype))[0].item()


def _array(*_: Any) -> Any:
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str = "C") -> Any:
    return np.frombuffer(data, _plain(dtype)).reshape(shape, order="F" if order == "F" else "C").tolist()


class _Array(list[Any]):
    """An array of plain numbers from a pickle, as nested lists; its content arrives as a state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self[:] = np.frombuffer(data, _plain(dtype)).reshape(shape, order="F" if is_fortran else "C").tolist()


class _Dtype:
    """A NumPy dtype from a pickle: its name and byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _plain(dtype: Any) -> np.dtype[Any]:
    plain = np.dtype(str(dtype.name)) if isinstance(dtype, _Dtype) else None
    if plain is None or plain.kind not in "iufb":
        raise CorruptionError("a pickle holds a NumPy value that is not numeric.")
    return plain.newbyteorder(dtype.order if dtype.order in "<>" else "=")


def _reconstructed_class(*_: Any) -> None:
    raise CorruptionError("a pickle creates a NumPy array in an unexpected way.")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise CorruptionError("a pickle encodes text in an unexpected way.")
    return text.encode("latin1")


NUMBERS: Globals = {
    ("_codecs", "encode"): _latin1,  # pickles of protocol 2 store bytes in this way
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _reconstructed_class,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "scalar", _scalar),
            ("multiarray", "_reconstruct", _array),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}
"""Globals that stored NumPy numbers and arrays may use; they become plain numbers and lists."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, allowed: Globals, what: str) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._what = what

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise CorruptionError(
                f"{self._what} holds a pickle that requests {module}.{name}, which is not allowed.",
                remedy="Do not trust this table before you know who wrote it.",
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise CorruptionError(f"{self._what} holds a pickle with a reference to an external object ({pid!r}).")


def load(data: bytes, allowed: Globals, what: str) -> Any:
    """Unpickle ``data`` without calling anything but the ``allowed`` globals.

    Raises
    ------
    CorruptionError
        If a global is not allowed, or the pickle cannot be read; the message contains ``what``.
    """
    try:
        return _Unpickler(data, allowed, what).load()
    except CorruptionError:
        raise
    except Exception as error:  # a damaged pickle can raise any error
        raise CorruptionError(f"{what} holds a pickle that cannot be read: {error!r}.") from error
