"""Runs in the Dagster instance: which of them count as unfinished, and when a failed run is tried again."""

from __future__ import annotations

import dagster as dg

from sv_pipeline.backoff import Backoff

__all__ = ["MOST_RECOVERIES", "PYRAMID_BACKOFF", "RECOVERY_BACKOFF", "UNFINISHED_RUNS"]

UNFINISHED_RUNS = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
PYRAMID_BACKOFF = Backoff(30.0, 3600.0)
"""Time between failed runs that make coarser mips; these are tried for ever."""
RECOVERY_BACKOFF = Backoff(60.0)
"""Time between failed recoveries of one operation."""
MOST_RECOVERIES = 4
"""Number of failed recoveries of one operation, after which a person has to look."""
