"""Results of the engine as Dagster metadata: numbers that plot, tables, pictures; and its errors as failures."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from sv_pipeline.defects import DefectError
from sv_pipeline.errors import CorruptionError, SvPipelineError, UnavailableError, notes_of
from sv_pipeline.redaction import scrub
from sv_pipeline.storage.wall import wall

__all__ = ["explained_failures", "numbers", "picture", "pictures"]

logger = logging.getLogger(__name__)


def picture(png: bytes, name: str = "picture") -> dg.MarkdownMetadataValue:
    """A PNG as markdown that the UI shows without any other server."""
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def pictures(**makers: Callable[[], bytes]) -> dict[str, Any]:
    """Pictures by name. One that cannot be drawn is named in the log and left out: a picture never fails a run."""
    drawn: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            drawn[name] = picture(make(), name)
        except (SvPipelineError, ValueError, OSError) as error:
            logger.warning("the picture %r could not be drawn: %s", name, error)
    return drawn


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as metadata: numbers that plot; lists, and ids that no JavaScript number can hold, as text."""

    def shown(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return dg.MetadataValue.text(", ".join(map(str, value)) or "none")
        return str(value) if isinstance(value, int) and abs(value) >= 1 << 53 else value

    return {name: shown(value) for name, value in values.items()}


@contextlib.contextmanager
def explained_failures() -> Iterator[None]:
    """Turn an error of ours into a Dagster failure with its message alone; where it came from only if that may help.

    Only what may pass by itself (storage that did not answer) is retried by the step's retry policy.
    """
    try:
        with wall():
            yield
    except (dg.Failure, dg.RetryRequested, dg.DagsterError):
        raise
    except SvPipelineError as error:
        scrub(error)
        raise dg.Failure(
            description=str(error),
            metadata=_explanation(error),
            allow_retries=isinstance(error, UnavailableError),
        ) from (error if isinstance(error, CorruptionError | UnavailableError) else None)
    except Exception as error:
        scrub(error)
        raise dg.Failure(
            description=" ".join([str(DefectError(error)), *notes_of(error)]), metadata={"kind": DefectError.kind}
        ) from error


def _explanation(error: SvPipelineError) -> dict[str, str]:
    """What a failure says beside its message: kind, reason and operation of a refused edit, remedy."""
    said = {"kind": error.kind, "reason": getattr(error, "reason", None), "remedy": error.remedy}
    operation = getattr(error, "operation_id", None)
    return {name: str(value) for name, value in (said | {"operation": operation}).items() if value}
