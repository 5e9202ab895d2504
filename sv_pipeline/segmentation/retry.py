"""Owns what counts as a transport error of the storage, and trying again. Knows no store."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError

__all__ = ["TRANSPORT_CODES", "retry_transport", "status_code"]

TRANSPORT_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"})
DENIED_CODES = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED"})
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
        If the last attempt fails with a transport error (UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, INTERNAL), or there
        is no room left (RESOURCE_EXHAUSTED).
    ConfigError
        If access is denied (PERMISSION_DENIED, UNAUTHENTICATED), or the operating system refuses a path.

    Any other error passes through, at once.
    """
    for attempt in range(1, attempts + 1):
        try:
            return function()
        except Exception as error:
            code = status_code(error)
            if (refusal := _refusal(code, what, error)) is not None:
                raise refusal from error
            if code not in TRANSPORT_CODES:
                raise
            if attempt == attempts:
                raise UnavailableError(
                    f"{what}: no success after {attempts} attempts, last error: {error}.",
                    remedy="Check that the storage (and the coordinator, if one is used) can be reached, then retry.",
                ) from error
            delay = min(MAX_DELAY, base_delay * 2 ** (attempt - 1)) * (1 + random.random())  # noqa: S311 - jitter
            _logger.warning("%s: %s; attempt %d of %d in %.1f s", what, error, attempt + 1, attempts, delay)
            time.sleep(delay)
    raise ValueError(f"attempts must be positive, not {attempts}")


def _refusal(code: str | None, what: str, error: BaseException) -> SvPipelineError | None:
    """What a user can do something about, and trying again cannot."""
    if code in DENIED_CODES:
        return ConfigError(
            f"{what}: access denied ({error}).",
            remedy="Check the place, its permissions, and (for gs://) GOOGLE_APPLICATION_CREDENTIALS or "
            "'gcloud auth application-default login'.",
        )
    if code == "RESOURCE_EXHAUSTED":
        return UnavailableError(f"{what}: no room left ({error}).", remedy="Free some space or quota, then run again.")
    if code == "FAILED_PRECONDITION" and "[os_error_code=" in str(error):
        return ConfigError(f"{what}: not possible ({error}).", remedy="Check the place and what is there.")
    return None
