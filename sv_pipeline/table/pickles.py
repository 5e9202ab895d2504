"""Pickles in cells: read through an allow-list, so that table content can never run code. Knows no meta, no operation.

PyChunkedGraph stores its meta, operation states and times as pickles; these are the ones we read and write.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from sv_pipeline.errors import CorruptionError

__all__ = ["PROTOCOL", "TIMES", "load"]

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
                f"{self._what} holds a pickle that asks for {module}.{name}, which is not allowed.",
                remedy="Do not trust this table before you know who wrote it.",
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise CorruptionError(f"{self._what} holds a pickle with a reference to something outside of it ({pid!r}).")


def load(data: bytes, allowed: Globals, what: str) -> Any:
    """Unpickle ``data``, calling nothing but the ``allowed`` globals.

    Raises
    ------
    CorruptionError
        Naming ``what`` and the global that is not allowed, or saying why the pickle cannot be read.
    """
    try:
        return _Unpickler(data, allowed, what).load()
    except CorruptionError:
        raise
    except Exception as error:  # a broken pickle can raise anything; all of it means the same
        raise CorruptionError(f"{what} holds a pickle that cannot be read: {error!r}.") from error
