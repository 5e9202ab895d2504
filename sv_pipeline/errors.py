"""The errors that a user can meet: one class per kind of remedy, each with a stable ``kind`` code.

A message names what is wrong and the remedy. Any exception that is not an ``SvPipelineError`` is a defect of ours.
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
        What is wrong; it names the thing (a path, a field, a chunk, an id). Secrets in it are masked.
    remedy
        How the reader can repair the cause; it is appended to the message.
    repeat
        The advice to make the same request again after the repair: "Then run again." It is separate from the remedy,
        because an unfinished operation must not be requested again, although its cause has to be repaired.
    """

    kind = "error"

    def __init__(self, message: str, *, remedy: str | None = None, repeat: str | None = None) -> None:
        super().__init__()
        self.message = redacted(message)
        self.operation_id: int | None = None
        """The operation that met the error, if one had begun."""
        self.advise(remedy, repeat=repeat)

    @property
    def remedy(self) -> str | None:
        """The remedy followed by the advice to repeat; None if there is neither."""
        return " ".join(part for part in (self.repair, self.repeat) if part) or None

    def advise(self, remedy: str | None, *, repeat: str | None = None) -> None:
        """Replace the remedy, when the caller knows better what the reader can do."""
        self.repair = None if remedy is None else redacted(remedy)
        self.repeat = None if repeat is None else redacted(repeat)
        self.args = (" ".join(part for part in (self.message, self.remedy) if part),)

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that crosses process boundaries keeps its class and its fields, whatever arguments its class takes.
        return _raised_elsewhere, (type(self), self.args), self.__dict__


def _raised_elsewhere(kind: type[SvPipelineError], args: tuple[str, ...]) -> SvPipelineError:
    return kind.__new__(kind, *args)


def notes_of(error: BaseException | None) -> list[str]:
    """Return the notes that callers have added to an error (PEP 678), such as the state of the failed operation."""
    return list(getattr(error, "__notes__", ()))


class ConfigError(SvPipelineError):
    """A configuration cannot work: fix the named field."""

    kind = "config"


class InputError(SvPipelineError):
    """Input data (a volume, an edge file, a table of labels) cannot be used: fix or replace it."""

    kind = "input"


class NotFoundError(SvPipelineError):
    """A named thing does not exist: check the name, or create it first."""

    kind = "not_found"


class NotReadyError(SvPipelineError):
    """A step was requested before the steps that it builds on are complete: run those first, then retry."""

    kind = "not_ready"


class ConflictError(SvPipelineError):
    """A thing exists already, or belongs to somebody else: choose another name, or remove it deliberately."""

    kind = "conflict"


class CorruptionError(SvPipelineError):
    """Stored data breaks an invariant: run ``sv-pipeline verify`` and repair what it reports."""

    kind = "corruption"


class DamagedError(CorruptionError):
    """A stored file, or a value in it, is missing or unreadable: restore it, or build it again.

    Parameters
    ----------
    message, remedy
        See `SvPipelineError`.
    code
        Status code of the storage, such as ``NOT_FOUND``; None if it gave none.
    place
        The damaged file; None if it is not known.
    """

    def __init__(
        self, message: str, *, remedy: str | None = None, code: str | None = None, place: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
        self.place = place


class UnavailableError(SvPipelineError):
    """A storage or a table did not answer after all retries: try again later."""

    kind = "unavailable"
