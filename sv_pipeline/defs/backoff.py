"""When to try again what failed: at once, then ever later, for ever."""

from __future__ import annotations

__all__ = ["FIRST_WAIT", "LONGEST_WAIT", "wait_after"]

FIRST_WAIT = 30.0
LONGEST_WAIT = 3600.0


def wait_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row; doubled by each, up to an hour."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (min(failures, 30) - 1)) if failures else 0.0
