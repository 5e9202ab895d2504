"""Translates errors of storages into errors of this package, which have a remedy that a person understands.

`wall` surrounds everything that a person calls: commands, Dagster's ops, methods of an open graph, checks. Inside,
`retry_transport` translates errors of storage requests, so that the code in between handles errors of this package too.

::

    UnavailableError  TensorStore: UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, INTERNAL, RESOURCE_EXHAUSTED; gRPC;
                      SQLite locked or without space; a full disk; no answer in time
    ConfigError       TensorStore: PERMISSION_DENIED, UNAUTHENTICATED; a path that the operating system refuses
    DamagedError      TensorStore: NOT_FOUND, DATA_LOSS, OUT_OF_RANGE, FAILED_PRECONDITION, or no code;
                      SQLite malformed; JSON, zlib, zip, zstd or pickles that cannot be read. Names the file.

Any other error is a defect and passes; the entry points report it as one (`sv_pipeline.cli.main`, `defs.metadata`).
"""

from __future__ import annotations

import errno
import functools
import json
import pickle
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import ParamSpec, TypeVar

import zstandard

from sv_pipeline.errors import ConfigError, DamagedError, SvPipelineError, UnavailableError
from sv_pipeline.redaction import redacted, scrub
from sv_pipeline.storage.damage import damage_of

__all__ = [
    "TRANSPORT_CODES",
    "behind_the_wall",
    "in_one_line",
    "methods_behind_the_wall",
    "our_error",
    "status_code",
    "steps_behind_the_wall",
    "storage_error",
    "wall",
]

TRANSPORT_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"})
DENIED_CODES = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
RESTORE = "Restore it from a copy, or build it again; 'sv-pipeline verify' says whether anything else is damaged."
RESTORE_SOURCE = (
    "Restore the version of that file that was there when the base was made; 'sv-pipeline verify' says what else has "
    "changed in the watershed."
)

_STATUS = re.compile(r"([A-Z][A-Z_]+): ")
_TENSORSTORE = re.compile(
    r"\[(?:tensorstore_spec|source locations)="
    r"|^(?:[A-Z_]+: )?Error (?:opening|reading|writing|decoding|parsing|listing)"
)
_NOISE = re.compile(r"\s*\[(?:tensorstore_spec|source locations|http_response_body)=.*", re.S)
_UNREADABLE = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    zlib.error,
    zipfile.BadZipFile,
    zstandard.ZstdError,
    pickle.UnpicklingError,
    EOFError,
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE})

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Class = TypeVar("_Class")


def status_code(error: BaseException) -> str | None:
    """Return the status code of an error that TensorStore raised, e.g. ``NOT_FOUND``; None for any other error."""
    if isinstance(error, DamagedError):
        return error.code
    match = _STATUS.match(str(error))
    return match[1] if match else None


def in_one_line(error: BaseException) -> str:
    """Return the message of a storage error, without the specs that TensorStore adds, and without secrets."""
    return redacted(" ".join(_NOISE.sub("", str(error)).split())).rstrip(".")


def storage_error(error: BaseException, what: str = "") -> SvPipelineError | None:
    """Translate an error of TensorStore; None if TensorStore has not raised it.

    Parameters
    ----------
    error
        The exception.
    what
        Description of the request, for the message; may be empty.
    """
    if isinstance(error, SvPipelineError) or not isinstance(error, ValueError):
        return None
    code, text, lead = status_code(error), str(error), f"{what}: " if what else ""
    if code is None and not _TENSORSTORE.search(text):
        return None
    scrub(error)
    if code in DENIED_CODES:
        return ConfigError(
            f"{lead}access denied ({in_one_line(error)}).",
            remedy="Check the place, its permissions, and (for gs://) GOOGLE_APPLICATION_CREDENTIALS or "
            "'gcloud auth application-default login'.",
        )
    if code == "RESOURCE_EXHAUSTED":
        return UnavailableError(
            f"{lead}no space left ({in_one_line(error)}).", remedy="Free some space or quota.", repeat="Then run again."
        )
    if code in TRANSPORT_CODES:
        return UnavailableError(
            f"{lead}the storage did not answer ({in_one_line(error)}).",
            remedy="Check that it can be reached.",
            repeat="Then try again.",
        )
    if "[os_error_code=" in text and (code == "FAILED_PRECONDITION" or "Failed to create directory" in text):
        return ConfigError(f"{lead}not possible ({in_one_line(error)}).", remedy="Check the place and its content.")
    damage = damage_of(text)
    if damage.place is None:
        return DamagedError(f"{lead}stored data cannot be read ({damage.reason}).", remedy=RESTORE, code=code)
    if damage.of_watershed:
        return DamagedError(
            f"{lead}{damage.place} has changed or is missing ({damage.reason}). The base refers to this file of the "
            "watershed.",
            remedy=RESTORE_SOURCE,
            code=code,
            place=damage.place,
        )
    return DamagedError(
        f"{lead}{damage.place} is damaged or missing ({damage.reason}).", remedy=RESTORE, code=code, place=damage.place
    )


def our_error(error: BaseException, what: str = "") -> SvPipelineError | None:
    """Translate an error of a storage, a table or a stored value; None if it is none of these."""
    if isinstance(error, SvPipelineError):
        return error
    if (ours := storage_error(error, what)) is not None:
        return ours
    lead = f"{what}: " if what else ""
    said = in_one_line(error) or type(error).__name__
    if isinstance(error, sqlite3.OperationalError):
        return UnavailableError(
            f"{lead}the table did not answer ({said}).", remedy="Check the disk.", repeat="Then try again."
        )
    if isinstance(error, sqlite3.Error):
        return DamagedError(f"{lead}the table cannot be read ({said}).", remedy=RESTORE)
    if isinstance(error, _UNREADABLE):
        return DamagedError(f"{lead}stored data cannot be read ({said}).", remedy=RESTORE)
    if type(error).__module__.partition(".")[0] == "grpc" or "RpcError" in {c.__name__ for c in type(error).__mro__}:
        return UnavailableError(
            f"{lead}the server did not answer ({said}).",
            remedy="Check that it can be reached.",
            repeat="Then try again.",
        )
    if isinstance(error, TimeoutError):
        return UnavailableError(f"{lead}no answer in time ({said}).", repeat="Try again later.")
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        if error.errno in _NO_ROOM:
            return UnavailableError(
                f"{lead}{said}.", remedy="Check the disk and its free space.", repeat="Then run again."
            )
        return ConfigError(f"{lead}{said}.", remedy="Check the path and its permissions.")
    return None


@contextmanager
def wall(what: str = "") -> Iterator[None]:
    """Translate errors of storages, tables and stored values in the block; a defect passes unchanged.

    Parameters
    ----------
    what
        Description of what is being done, for the beginning of the message; may be empty.
    """
    try:
        yield
    except SvPipelineError:
        raise
    except Exception as error:
        if (ours := our_error(error, what)) is None:
            raise
        scrub(error)
        raise ours from error


def behind_the_wall(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Apply `wall` to every call of a function."""

    @functools.wraps(function)
    def guarded(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        with wall():
            return function(*arguments, **options)

    return guarded


def steps_behind_the_wall(items: Iterator[_Result]) -> Iterator[_Result]:
    """Apply `wall` to every step of an iterator, which does its work while it is consumed."""
    while True:
        with wall():
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def methods_behind_the_wall(of: type[_Class]) -> type[_Class]:
    """Apply `wall` to every call of a public method of a class."""
    for name, value in list(vars(of).items()):
        if isinstance(value, FunctionType) and not name.startswith("_"):
            setattr(of, name, behind_the_wall(value))
    return of
