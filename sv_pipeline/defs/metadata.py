"""Conversion of results to Dagster metadata (numbers that can be plotted, pictures), and of errors to failures."""

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

__all__ = ["explained_failures", "numbers", "picture", "pictures", "viewer_links"]

logger = logging.getLogger(__name__)


def picture(png: bytes, name: str = "picture") -> dg.MarkdownMetadataValue:
    """Return a PNG as markdown, which the UI shows without another server."""
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def pictures(**makers: Callable[[], bytes]) -> dict[str, Any]:
    """Draw pictures by name. One that cannot be drawn is logged and left out, so that it does not fail the run."""
    drawn: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            drawn[name] = picture(make(), name)
        except (SvPipelineError, ValueError, OSError) as error:
            logger.warning("the picture %r could not be drawn: %s", name, error)
    return drawn


def viewer_links(make: Callable[[], str | None], name: str = "view it") -> dict[str, Any]:
    """Return a link to a viewer as metadata: an address to click, or a command to copy; nothing if there is none."""
    try:
        link = make()
    except (SvPipelineError, ValueError, OSError) as error:
        logger.warning("the link %r could not be made: %s", name, error)
        return {}
    if link is None:
        return {}
    is_address = link.startswith(("http://", "https://"))
    return {name: dg.MetadataValue.url(link) if is_address else dg.MetadataValue.text(link)}


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values as metadata; lists, and integers too large for JavaScript numbers, become text."""

    def shown(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return dg.MetadataValue.text(", ".join(map(str, value)) or "none")
        return str(value) if isinstance(value, int) and abs(value) >= 1 << 53 else value

    return {name: shown(value) for name, value in values.items()}


@contextlib.contextmanager
def explained_failures() -> Iterator[None]:
    """Turn an error into a Dagster failure with its message, and with its traceback only if that may help.

    The step's retry policy applies only to errors that may pass by themselves: storage that did not answer.
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
    """Metadata of a failure: kind and remedy of the error, and reason and operation of a refused edit."""
    said = {"kind": error.kind, "reason": getattr(error, "reason", None), "remedy": error.remedy}
    operation = getattr(error, "operation_id", None)
    return {name: str(value) for name, value in (said | {"operation": operation}).items() if value}
