"""The errors that a user can meet: one class per kind of remedy, each with a stable ``kind`` code.

A message names the thing that is wrong and the remedy. Anything that is not an ``SvPipelineError`` is a defect of ours.
"""

from __future__ import annotations

from typing import Any

from sv_pipeline.redaction import redacted

__all__ = [
    "ConfigError",
    "ConflictError",
    "CorruptionError",
    "DamagedError",
    "InputError",
    "NotFoundError",
    "NotReadyError",
    "SvPipelineError",
    "UnavailableError",
    "notes_of",
]


class SvPipelineError(Exception):
    """Root of all errors that sv_pipeline raises on purpose.

    Parameters
    ----------
    message
        What is wrong, naming the thing (a path, a field, a chunk, an id). Secrets in it are masked.
    remedy
        How the reader can repair the cause; appended to the message.
    repeat
        The advice to ask for the same once more, after the repair: "Then run again." Apart from the remedy, since an
        operation that is unfinished must not be asked for again, although its cause has to be repaired.
    """

    kind = "error"

    def __init__(self, message: str, *, remedy: str | None = None, repeat: str | None = None) -> None:
        super().__init__()
        self.message = redacted(message)
        self.operation_id: int | None = None
        """The operation that met the error, once there is one."""
        self.advise(remedy, repeat=repeat)

    @property
    def remedy(self) -> str | None:
        """All that the reader can do about it."""
        return " ".join(part for part in (self.repair, self.repeat) if part) or None

    def advise(self, remedy: str | None, *, repeat: str | None = None) -> None:
        """Replace the remedy: the caller knows better what the reader can do."""
        self.repair = None if remedy is None else redacted(remedy)
        self.repeat = None if repeat is None else redacted(repeat)
        self.args = (" ".join(part for part in (self.message, self.remedy) if part),)

    def __reduce__(self) -> tuple[Any, ...]:
        # An error of a worker process arrives as it was raised, whatever arguments its class takes.
        return _raised_elsewhere, (type(self), self.args), self.__dict__


def _raised_elsewhere(kind: type[SvPipelineError], args: tuple[str, ...]) -> SvPipelineError:
    return kind.__new__(kind, *args)


def notes_of(error: BaseException | None) -> list[str]:
    """What those who know more have added to an error (PEP 678): how the operation stands that it ended."""
    return list(getattr(error, "__notes__", ()))


class ConfigError(SvPipelineError):
    """A configuration that cannot work: fix the named field."""

    kind = "config"


class InputError(SvPipelineError):
    """Input data (a volume, an edge file, a table of labels) that cannot be used: fix or replace it."""

    kind = "input"


class NotFoundError(SvPipelineError):
    """Something that was named does not exist: check the name, or make it first."""

    kind = "not_found"


class NotReadyError(SvPipelineError):
    """A step was asked for before what it builds on is complete: run that first, then retry."""

    kind = "not_ready"


class ConflictError(SvPipelineError):
    """Something exists already, or belongs to somebody else: choose another name, or remove it deliberately."""

    kind = "conflict"


class CorruptionError(SvPipelineError):
    """Stored data breaks an invariant: run ``sv-pipeline verify`` and repair what it names."""

    kind = "corruption"


class DamagedError(CorruptionError):
    """A stored file, or a value in one, is missing or cannot be read back: restore it, or build it again.

    Parameters
    ----------
    message, remedy
        As for every error.
    code
        The storage's own status, such as ``NOT_FOUND``; None where it gave none.
    place
        The file that is meant; None where it is not known.
    """

    def __init__(
        self, message: str, *, remedy: str | None = None, code: str | None = None, place: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
        self.place = place


class UnavailableError(SvPipelineError):
    """Storage or table did not answer after all retries: try again later."""

    kind = "unavailable"
