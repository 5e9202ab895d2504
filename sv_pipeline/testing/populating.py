"""Populates a base in a test or benchmark, without an ingest, in this process or in worker processes."""

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
    """Run the tasks that a plan lists as missing; return their reports in the order in which they end.

    Parameters
    ----------
    workers
        Number of worker processes; 0 runs the tasks in this process.
    coordinator_address
        ``host:port`` of a coordinator. If that method is chosen and no address is given, one is started meanwhile.

    Raises
    ------
    SvPipelineError
        The first error of a task, raised after all running tasks have ended.
    """
    with ExitStack() as stack:
        if plan.method is PopulateMethod.COORDINATOR and coordinator_address is None:
            coordinator_address = stack.enter_context(running_coordinator())
        if not workers:
            return [populate_task(plan, task, coordinator_address=coordinator_address) for task in plan.missing]
        pool = stack.enter_context(Workers(workers))
        light = replace(plan, missing=())  # the plan is sent with each task, so it should be small
        futures = [
            pool.submit(populate_task, light, task, coordinator_address=coordinator_address) for task in plan.missing
        ]
        return [future.result() for future in as_completed(futures)]
