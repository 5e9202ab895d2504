"""Growing pauses between attempts: one rule for every place that retries. Retries nothing itself."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

__all__ = ["Backoff"]

MOST_DOUBLINGS = 64
"""The pause stops growing after so many failures at the latest, so that no number of failures overflows a float."""


@dataclass(frozen=True)
class Backoff:
    """How long to pause before the next attempt; each failure in a row makes the pause longer."""

    first: float
    """Seconds of the pause after the first failure."""
    longest: float = math.inf
    """Upper limit of a pause, in seconds."""
    factor: float = 2.0
    """Factor by which each further failure lengthens the pause."""

    def after(self, failures: int) -> float:
        """Return the pause in seconds after ``failures`` failures in a row; 0 after none."""
        return min(self.longest, self.first * self.factor ** min(failures - 1, MOST_DOUBLINGS)) if failures else 0.0

    def jittered(self, failures: int) -> float:
        """Return a random pause between half of :meth:`after` and all of it, so that colliding attempts drift apart."""
        return self.after(failures) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def due(self, failures: int, last_failure: float | None, now: float) -> bool:
        """Whether the next attempt may begin at ``now``; both times are in seconds of the same clock."""
        return last_failure is None or now - last_failure >= self.after(failures)
