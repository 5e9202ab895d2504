"""Owns running all tasks of a populate on one machine, in one or several processes. What a task does: `populate`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import replace

from sv_pipeline.config import PopulateMethod
from sv_pipeline.processes import Workers
from sv_pipeline.segmentation.base.populate import PopulatePlan, TaskReport, populate_task
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE, running_coordinator

__all__ = ["populate_missing"]


def populate_missing(
    plan: PopulatePlan,
    *,
    workers: int = 1,
    coordinator_address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TaskReport]:
    """Run the tasks that a plan lists as missing.

    Parameters
    ----------
    workers
        Processes; 1 = this one.
    coordinator_address
        For the coordinator method; without one (here, in the plan, in SV_PIPELINE_COORDINATOR) one is run meanwhile.
    progress
        Called with (tasks done, tasks to do).

    Raises
    ------
    SvPipelineError
        The first error of a task, after those that had begun have ended.
    """
    report = progress or (lambda _done, _total: None)
    total = len(plan.missing)
    reports: list[TaskReport] = []
    with ExitStack() as stack:
        address = coordinator_address or plan.coordinator_address or os.environ.get(ADDRESS_VARIABLE)
        if plan.method is PopulateMethod.COORDINATOR and address is None and total:
            address = stack.enter_context(running_coordinator())
        if workers == 1:
            for task in plan.missing:
                reports.append(populate_task(plan, task, coordinator_address=address))
                report(len(reports), total)
            return reports
        pool = stack.enter_context(Workers(workers))
        light = replace(plan, missing=())  # it goes along with each task
        futures = [pool.submit(populate_task, light, task, coordinator_address=address) for task in plan.missing]
        for future in as_completed(futures):
            reports.append(future.result())
            report(len(reports), total)
    return reports
