"""Reads small files that the package has written: JSON of a known form, and archives of arrays. Names damaged ones."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar, cast

import pydantic

from sv_pipeline.errors import DamagedError
from sv_pipeline.storage.wall import RESTORE

__all__ = ["parse_stored", "readable_file"]

_Form = TypeVar("_Form")


@lru_cache(maxsize=32)
def _adapter(form: Hashable) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(cast("type[Any]", form))


def parse_stored(raw: bytes, form: type[_Form], where: str, *, remedy: str = RESTORE) -> _Form:
    """Parse a JSON file that the package has written.

    Parameters
    ----------
    raw
        Content of the file.
    form
        Expected form: a dataclass, or a type such as ``dict[str, int]``.
    where
        URL of the file, for the error.

    Raises
    ------
    DamagedError
        If it does not have this form; the message names the file and the field.
    """
    try:
        content: _Form = _adapter(cast("Hashable", form)).validate_json(raw)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise DamagedError(f"{where} is damaged ({reason}).", remedy=remedy, place=where) from error
    return content


@contextmanager
def readable_file(where: str, *, remedy: str = RESTORE) -> Iterator[None]:
    """Convert errors of NumPy and zipfile about a damaged archive to a DamagedError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(f"{where} is damaged ({error}).", remedy=remedy, place=where) from error
