"""What runs every night: at which time (UTC), and for which graphs. The work itself is in the modules of the jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg

from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.ticks import told
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.reports.built import is_made

__all__ = ["BACK_UP_AT", "COLLECT_AT", "REPORT_AT", "VERIFY_AT", "for_each_graph"]

VERIFY_AT, BACK_UP_AT, REPORT_AT, COLLECT_AT = "30 2 * * *", "30 3 * * *", "0 4 * * *", "15 4 * * *"
"""Times of the nightly verification, backup, report on garbage, and collection of garbage, as cron expressions."""


def for_each_graph(
    context: dg.ScheduleEvaluationContext,
    pipeline: PipelineResource,
    request: Callable[[str, str], dg.RunRequest],
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Yield a run for each graph that has been made; those that are only being made are left alone, and named.

    Parameters
    ----------
    request
        Makes the run of a graph from its id and the date of the night.
    """
    night = context.scheduled_execution_time.date().isoformat()
    said, requested = [], 0
    for graph_id, made in ask_every_graph(pipeline.registry, _has_been_made).items():
        if made:  # True, or a text that says why the graph cannot be read, which the run will report
            requested += 1
            yield request(graph_id, night)
        said.append(f"{graph_id}: {'a run is asked for' if made else 'not complete yet'}")
    context.log.info("%s", told(said) or "there are no graphs")
    if not requested:
        yield dg.SkipReason(told(said) or "there are no graphs")


def _has_been_made(registry: Registry, graph_id: str) -> bool:
    dataset = registry.get(graph_id)
    return dataset.existing_table is not None and is_made(dataset)
