"""Populating a base in a test or a benchmark, without an ingest: its tasks in this process, or in some workers."""

from __future__ import annotations

from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import replace

from sv_pipeline.config import PopulateMethod
from sv_pipeline.processes import Workers
from sv_pipeline.segmentation.base.populate import PopulatePlan, TaskReport, populate_task
from sv_pipeline.storage.coordinator import running_coordinator

__all__ = ["populate_missing"]


def populate_missing(
    plan: PopulatePlan, *, workers: int = 0, coordinator_address: str | None = None
) -> list[TaskReport]:
    """Run the tasks that a plan lists as missing; returns their reports, in the order in which they end.

    Parameters
    ----------
    workers
        Processes; 0 = this one.
    coordinator_address
        ``host:port``; where the method is the coordinator's and no address is given, one runs meanwhile.

    Raises
    ------
    SvPipelineError
        The first error of a task, after those that had begun have ended.
    """
    with ExitStack() as stack:
        if plan.method is PopulateMethod.COORDINATOR and coordinator_address is None:
            coordinator_address = stack.enter_context(running_coordinator())
        if not workers:
            return [populate_task(plan, task, coordinator_address=coordinator_address) for task in plan.missing]
        pool = stack.enter_context(Workers(workers))
        light = replace(plan, missing=())  # it goes along with each task
        futures = [
            pool.submit(populate_task, light, task, coordinator_address=coordinator_address) for task in plan.missing
        ]
        return [future.result() for future in as_completed(futures)]
