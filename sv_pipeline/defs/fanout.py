"""Batches that a step hands to a cluster instead of to further steps, if SV_PIPELINE_FANOUT says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from sv_pipeline.ingest.batches import Batch
from sv_pipeline.ingest.runner import fans_out_to_kubernetes, runner_from_environment
from sv_pipeline.registry import Dataset

__all__ = ["run_elsewhere"]

SECONDS_BETWEEN_REPORTS = 10.0


def run_elsewhere(
    context: Any,
    dataset: Dataset,
    batches: Sequence[Batch],
    address: Callable[[Dataset], str | None] = lambda _: None,
) -> list[Batch]:
    """Run batches in pods, and return when all are done; return the batches themselves if they are to become steps.

    If the step is interrupted, its Job is deleted only if the run is being cancelled. If the step is killed or evicted,
    the Job goes on, and the retry of the step finds it.

    Parameters
    ----------
    context
        Context of the step; progress goes to its log.
    address
        Called for the address of the OCDBT coordinator that pods use.
    """
    if not batches or not fans_out_to_kubernetes():
        return list(batches)
    progress = _StepLog(context.log, sum(batch.stop - batch.first for batch in batches))
    with runner_from_environment(1, is_cancelled=lambda: _is_cancelled(context)) as runner:
        runner.run(dataset, batches, advance=progress.advance, coordinator_address=address(dataset))
    return []


def _is_cancelled(context: Any) -> bool:
    run = context.instance.get_run_by_id(context.run_id)
    return run is None or run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


class _StepLog:
    """Writes the progress into the log of a step, from time to time and at the end."""

    def __init__(self, log: logging.Logger, total: int) -> None:
        self._log, self._total, self._done = log, total, 0
        self._next = time.monotonic() + SECONDS_BETWEEN_REPORTS

    def advance(self, chunks: int) -> None:
        """Count further chunks."""
        self._done += chunks
        if self._done >= self._total or time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_BETWEEN_REPORTS
            self._log.info("%d of %d chunks done in the cluster", self._done, self._total)
