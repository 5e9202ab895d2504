"""What a tick of a sensor says about itself: what it looked at, in its log and as the reason why it started nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import dagster as dg

__all__ = ["MOST_TOLD", "ended_tick", "read_cursor", "told"]

MOST_TOLD = 20
"""Number of graphs that a tick says something about; the others are counted."""


def told(said: Sequence[str]) -> str:
    """Join what is said about single graphs; if there are many, the first ones and how many more there are."""
    more = len(said) - MOST_TOLD
    return "; ".join([*said[:MOST_TOLD], *([f"and {more} more"] if more > 0 else [])])


def read_cursor(context: dg.SensorEvaluationContext) -> dict[str, Any]:
    """Return the cursor's value; empty the first time, and if somebody has changed the cursor to something else."""
    try:
        value = json.loads(context.cursor or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def ended_tick(
    context: dg.SensorEvaluationContext,
    said: str,
    *,
    cursor: dict[str, Any] | None = None,
    run_requests: Sequence[dg.RunRequest] = (),
    **results: Any,
) -> dg.SensorResult:
    """Return the result of a tick.

    Parameters
    ----------
    said
        What the tick looked at and found. The log of the tick shows it, and the tick itself if no run is requested.
    cursor
        What the next tick needs to know; shown on the page of the sensor.
    results
        Other results of the tick, by the names that `dagster.SensorResult` has for them.
    """
    context.log.info("%s", said)
    return dg.SensorResult(
        run_requests=list(run_requests),
        skip_reason=None if run_requests else said,
        cursor=None if cursor is None else json.dumps(cursor),
        **results,
    )
