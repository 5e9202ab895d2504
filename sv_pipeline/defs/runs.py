"""Runs in the Dagster instance: which count as unfinished, and when a run that failed is tried again."""

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
"""Between runs that make coarser mips; they are tried for ever."""
RECOVERY_BACKOFF = Backoff(60.0)
"""Between recoveries of one operation."""
MOST_RECOVERIES = 4
"""Recoveries of one operation that may fail; then a person has to look."""
