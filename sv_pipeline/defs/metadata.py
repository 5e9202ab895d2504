"""Results of the engine as Dagster metadata: numbers that plot, tables, pictures; and its errors as failures."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from sv_pipeline.errors import NotReadyError, SvPipelineError, UnavailableError

__all__ = ["explained_failures", "picture", "pictures"]

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


@contextlib.contextmanager
def explained_failures() -> Iterator[None]:
    """Turn an error of ours into a Dagster failure with its message alone.

    Only what may pass by itself (storage that did not answer) is retried by the step's retry policy.
    """
    try:
        yield
    except SvPipelineError as error:
        raise dg.Failure(
            description=str(error),
            metadata={"kind": error.kind, **({"remedy": error.remedy} if error.remedy else {})},
            allow_retries=isinstance(error, UnavailableError),
        ) from (None if isinstance(error, NotReadyError) else error)
