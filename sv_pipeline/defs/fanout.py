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
from sv_pipeline.wording import counted

__all__ = ["StepLog", "run_elsewhere"]

SECONDS_BETWEEN_REPORTS = 10.0


def run_elsewhere(
    context: Any,
    dataset: Dataset,
    batches: Sequence[Batch],
    progress: StepLog,
    address: Callable[[Dataset], str | None] = lambda _: None,
) -> list[Batch]:
    """Run batches in pods, and return when all are done; return the batches themselves if they are to become steps.

    If the step is interrupted, its Job is deleted only if the run is being cancelled. If the step is killed or evicted,
    the Job goes on, and the retry of the step finds it.

    Parameters
    ----------
    context
        Context of the step.
    progress
        Receives the number of chunks that are done.
    address
        Called for the address of the OCDBT coordinator that pods use.
    """
    if not batches or not fans_out_to_kubernetes():
        return list(batches)
    with runner_from_environment(1, is_cancelled=lambda: _is_cancelled(context)) as runner:
        runner.run(dataset, batches, advance=progress.advance, coordinator_address=address(dataset))
    context.log.info("%s: %s done in the cluster", progress.name, counted(len(batches), "batch", "batches"))
    return []


def _is_cancelled(context: Any) -> bool:
    run = context.instance.get_run_by_id(context.run_id)
    return run is None or run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


class StepLog:
    """Writes the progress of batches into the log of a step, from time to time, and at the end of longer work.

    Parameters
    ----------
    log
        Log of the step.
    name
        What the batches build, for the log: ``layer 3 of my_graph``.
    batches
        The batches.
    """

    def __init__(self, log: logging.Logger, name: str, batches: Sequence[Batch]) -> None:
        self._log, self.name = log, name
        self._total, self._done = sum(batch.stop - batch.first for batch in batches), 0
        self._next = time.monotonic() + SECONDS_BETWEEN_REPORTS
        self._has_said = False

    def advance(self, chunks: int) -> None:
        """Count further chunks."""
        self._done += chunks
        now = time.monotonic()
        if now >= self._next or (self._has_said and self._done >= self._total):
            self._next, self._has_said = now + SECONDS_BETWEEN_REPORTS, True
            self._log.info("%s: %d of %d chunks are done", self.name, self._done, self._total)
