"""How many examples a Hypothesis property is tried with: a number for each, scaled by the profile of the run."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

__all__ = ["PROFILE", "examples"]

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
QUICK_EXAMPLES = 10
SOAK_EXAMPLES = 1000


def examples(number: int, **options: Any) -> settings:
    """Settings of one property. An explicit ``max_examples`` would override the profile, so it is scaled here.

    Parameters
    ----------
    number
        Examples in CI and by default. ``quick`` tries at most ten; ``soak`` tries at least a thousand.
    """
    if PROFILE == "quick":
        number = min(number, QUICK_EXAMPLES)
    if PROFILE == "soak":
        number = max(number, SOAK_EXAMPLES)
    return settings(max_examples=number, deadline=None, **options)
