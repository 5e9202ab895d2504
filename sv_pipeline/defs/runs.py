"""Runs in the Dagster instance: their slots and pools, which count as unfinished, and when failed ones are repeated."""

from __future__ import annotations

import dagster as dg

from sv_pipeline.backoff import Backoff

__all__ = [
    "INGEST_GROUP",
    "MERGE_POOL",
    "MOST_RECOVERIES",
    "OWNERS",
    "PYRAMID_BACKOFF",
    "RECOVERY_BACKOFF",
    "RETRIES",
    "SLOT_TAG",
    "TABLE_POOL",
    "UNFINISHED_RUNS",
    "UPKEEP",
]

OWNERS = ["team:segmentation"]
INGEST_GROUP = "ingest"
"""Group of the assets that build a graph, in one run: all of it and nothing else."""
RETRIES = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""A step is retried if its process was killed or storage did not answer, but not after a user's mistake."""
SLOT_TAG = "sv/slot"
"""Tag with the kind of a run: edit, recovery, verify or upkeep. dagster.yaml limits each kind by itself."""
UPKEEP = {SLOT_TAG: "upkeep"}
"""Tags of the runs that people start by hand, besides edits: registrations, purges, single chunks."""
TABLE_POOL, MERGE_POOL = "sv_table", "sv_merge"
"""Pools of the steps that write a graph's rows, and of those that merge populated parts into a base."""

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
