"""Growing pauses between tries of what has failed: one rule for all that wait and try again. Tries nothing itself."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

__all__ = ["Backoff"]

MOST_DOUBLINGS = 64
"""Growth ends here at the latest, so that no number of failures overflows a float."""


@dataclass(frozen=True)
class Backoff:
    """How long to pause before the next try; each failure in a row makes the pause longer."""

    first: float
    """Seconds of the pause after the first failure."""
    longest: float = math.inf
    """Seconds that no pause exceeds."""
    factor: float = 2.0
    """Growth of the pause with each further failure."""

    def after(self, failures: int) -> float:
        """Seconds of the pause after so many failures in a row; 0 after none."""
        return min(self.longest, self.first * self.factor ** min(failures - 1, MOST_DOUBLINGS)) if failures else 0.0

    def jittered(self, failures: int) -> float:
        """Seconds between half of :meth:`after` and all of it, so that tries that collided do not collide again."""
        return self.after(failures) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def due(self, failures: int, last_failure: float | None, now: float) -> bool:
        """Whether the next try may begin at ``now``; both times in seconds of one clock."""
        return last_failure is None or now - last_failure >= self.after(failures)
