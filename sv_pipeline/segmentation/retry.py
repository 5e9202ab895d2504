"""Owns what counts as a transport error of the storage, and trying again. Knows no store."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from sv_pipeline.errors import UnavailableError

__all__ = ["TRANSPORT_CODES", "retry_transport", "status_code"]

TRANSPORT_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"})
MAX_DELAY = 30.0

_STATUS = re.compile(r"([A-Z][A-Z_]+): ")
_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def status_code(error: BaseException) -> str | None:
    """TensorStore's status code, e.g. ``NOT_FOUND``, of an error it raised; None for any other error."""
    match = _STATUS.match(str(error))
    return match[1] if match else None


def retry_transport(
    function: Callable[[], _Result], *, attempts: int = 5, base_delay: float = 0.2, what: str = "storage request"
) -> _Result:
    """Call ``function`` until it does not fail with a transport error.

    Parameters
    ----------
    function
        What to do; must be safe to repeat.
    attempts
        Calls at most.
    base_delay
        Seconds before the second call; doubled each time up to 30 s, with jitter of up to as much again.
    what
        Names the request in messages.

    Raises
    ------
    UnavailableError
        If the last attempt fails with a transport error (UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, INTERNAL).
        Any other error passes through, at once.
    """
    for attempt in range(1, attempts + 1):
        try:
            return function()
        except Exception as error:
            code = status_code(error)
            if code not in TRANSPORT_CODES:
                raise
            if attempt == attempts:
                raise UnavailableError(
                    f"{what}: no success after {attempts} attempts, last error: {error}",
                    remedy="Check that the storage (and the coordinator, if one is used) can be reached, then retry.",
                ) from error
            delay = min(MAX_DELAY, base_delay * 2 ** (attempt - 1)) * (1 + random.random())  # noqa: S311 - jitter
            _logger.warning("%s: %s; attempt %d of %d in %.1f s", what, error, attempt + 1, attempts, delay)
            time.sleep(delay)
    raise ValueError(f"attempts must be positive, not {attempts}")
