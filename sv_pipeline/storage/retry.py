"""Retries of storage requests that got no answer, within a time limit, with log messages. Knows no store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import UnavailableError
from sv_pipeline.patience import PATIENCE_VARIABLE, patience, waiting_for
from sv_pipeline.storage.wall import TRANSPORT_CODES, in_one_line, status_code, storage_error

__all__ = ["TRANSPORT_CODES", "retry_transport", "status_code"]

MAX_DELAY = 10.0

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def retry_transport(
    function: Callable[[], _Result],
    *,
    attempts: int | None = None,
    base_delay: float = 0.4,
    what: str = "storage request",
) -> _Result:
    """Call ``function`` until it does not fail with a transport error, or the time limit (`patience`) is reached.

    Parameters
    ----------
    function
        The request; it must be safe to repeat.
    attempts
        Largest number of calls; default: as many as the time limit allows.
    base_delay
        Upper limit of the pause before the second call, in seconds; it doubles each time up to 10 s. The actual pause
        is random, between half of the limit and all of it.
    what
        Description of the request, for messages.

    Raises
    ------
    UnavailableError
        If the last attempt fails with a transport error (UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, INTERNAL), or there
        is no space left (RESOURCE_EXHAUSTED).
    ConfigError
        If access is denied (PERMISSION_DENIED, UNAUTHENTICATED), or the operating system refuses a path.
    DamagedError
        If something is missing or cannot be decoded; the message names the file.

    Errors that the storage did not raise are passed on at once.
    """
    if attempts is not None and attempts < 1:
        raise ValueError(f"attempts must be positive, not {attempts}")
    limit = patience()
    with waiting_for(what) as wait:
        attempt = 0
        while True:
            attempt += 1
            try:
                return function()
            except Exception as error:
                code = status_code(error)
                if code not in TRANSPORT_CODES:
                    if (ours := storage_error(error, what)) is not None:
                        raise ours from error
                    raise
                delay = Backoff(base_delay, MAX_DELAY).jittered(attempt)
                wait.reason = in_one_line(error)
                if attempt == attempts or wait.seconds + delay > limit:
                    raise UnavailableError(
                        f"{what}: no success after {attempt} attempts in {wait.seconds:.0f} s, "
                        f"last error: {wait.reason}.",
                        remedy="Check that the storage (and the coordinator, if one is used) can be reached; "
                        f"{PATIENCE_VARIABLE} sets the time limit in seconds.",
                        repeat="Then run it again.",
                    ) from error
                _logger.log(
                    logging.INFO if attempt < 3 else logging.WARNING,
                    "%s: %s; attempt %d in %.1f s",
                    what,
                    wait.reason,
                    attempt + 1,
                    delay,
                )
                time.sleep(delay)
