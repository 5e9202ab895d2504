"""Steps that need what another run is still building wait for it, instead of failing.

Runs of one graph may be asked for together, in the order in which they depend on one another: layer after layer, or all
assets in one backfill. They may start together, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import dagster as dg

from sv_pipeline.defs.runs import UNFINISHED_RUNS
from sv_pipeline.errors import NotFoundError, NotReadyError

__all__ = ["PARTITION_TAGS", "after_earlier_runs", "graphs_of_run"]

PARTITION_TAGS = ("dagster/partition", "dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
BACKFILL_TAG = "dagster/backfill"
WAIT_SECONDS = 10
MOST_WAITS = 50_000


@contextmanager
def after_earlier_runs(context: dg.OpExecutionContext, graph_ids: Collection[str]) -> Iterator[None]:
    """Let a step that is not ready wait while another run works on one of its graphs.

    The other run was asked for earlier, or belongs to the same backfill and builds lower layers. So no two runs ever
    wait for one another.
    """
    try:
        yield
    except (NotReadyError, NotFoundError) as error:
        run_id = _other_run(context, graph_ids)
        if run_id is None:
            raise
        context.log.info("waiting for run %s: %s", run_id, error)
        raise dg.RetryRequested(MOST_WAITS, WAIT_SECONDS) from error


def graphs_of_run(run: dg.DagsterRun) -> set[str]:
    """Return the ids of the graphs that a run's partition, or the ends of its range of partitions, belong to."""
    return {run.tags[tag].split("|")[0] for tag in PARTITION_TAGS if tag in run.tags}


def _other_run(context: dg.OpExecutionContext, graph_ids: Collection[str]) -> str | None:
    mine = context.instance.get_run_record_by_id(context.run_id)
    if mine is None:
        return None
    for record in context.instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED_RUNS)):
        if _goes_first(record, mine) and graphs_of_run(record.dagster_run) & set(graph_ids):
            return record.dagster_run.run_id
    return None


def _goes_first(other: dg.RunRecord, mine: dg.RunRecord) -> bool:
    backfill = mine.dagster_run.tags.get(BACKFILL_TAG)
    if backfill is not None and other.dagster_run.tags.get(BACKFILL_TAG) == backfill:
        # Such runs may start in any order. The id of a graph sorts before the keys of its layers.
        return (_first_partition(other), other.storage_id) < (_first_partition(mine), mine.storage_id)
    return other.storage_id < mine.storage_id


def _first_partition(record: dg.RunRecord) -> str:
    tags = record.dagster_run.tags
    return min((tags[tag] for tag in PARTITION_TAGS if tag in tags), default="")
