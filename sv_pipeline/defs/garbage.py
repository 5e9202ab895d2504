"""The files of each fork as an asset that shows them over time, with a job and a schedule that clean them up."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.assets import fork
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import OWNERS, RETRIES, UPKEEP
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.upkeep.garbage import clean_up, garbage_of

__all__ = ["collect_garbage_job", "collect_garbage_schedule", "fork_files"]

NIGHTLY = "15 4 * * *"


class GarbageConfig(dg.Config):
    """Whether files are only measured, or also deleted."""

    collect: bool = Field(
        default=False, description="Prune the history by the graph's retention policy, and delete unused files."
    )


@dg.asset(
    partitions_def=graphs,
    deps=[fork],
    group_name="edits",
    kinds={"tensorstore"},
    owners=OWNERS,
    retry_policy=RETRIES,
)
def fork_files(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, config: GarbageConfig
) -> dg.MaterializeResult:
    """The files of a fork: what is stored, what its generations use, and what can be deleted.

    Nothing is deleted unless `collect` is set in the configuration of the run.
    """
    with explained_failures():
        dataset = pipeline.dataset(context.partition_key)
        if dataset.config.ingest.mode is IngestMode.GRAPH:
            return dg.MaterializeResult(metadata={"note": "ingested without voxels (mode graph): no fork"})
        report = (clean_up if config.collect else garbage_of)(dataset)
    for line in report.lines():
        context.log.info(line)
    return dg.MaterializeResult(
        metadata={**report.numbers, "policy": report.usage.policy, "report": dg.MetadataValue.json(report.to_dict())}
    )


collect_garbage_job = dg.define_asset_job(
    "collect_garbage_job",
    selection=dg.AssetSelection.assets(fork_files),
    config=dg.RunConfig(ops={"fork_files": GarbageConfig(collect=True)}),
    description="Prune the history of a graph by its retention policy, and delete files that nothing uses. It may run "
    "beside edits and readers.",
    tags=UPKEEP,
)


@dg.schedule(job=collect_garbage_job, cron_schedule=NIGHTLY, default_status=dg.DefaultScheduleStatus.STOPPED)
def collect_garbage_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Clean up the fork of each graph every night; start the schedule if that is what you want."""
    night = context.scheduled_execution_time.date().isoformat()
    asked = ask_every_graph(pipeline.registry, _has_fork)
    there = [graph_id for graph_id, answer in asked.items() if answer is True]
    for graph_id in there:
        yield dg.RunRequest(run_key=f"garbage:{graph_id}:{night}", partition_key=graph_id)
    if not there:
        said = [f"{graph_id}: {answer}" for graph_id, answer in asked.items() if isinstance(answer, str)]
        yield dg.SkipReason("; ".join(said) or "no graph has a fork of its own")


def _has_fork(registry: Registry, graph_id: str) -> bool:
    found = registry.get(graph_id).fork
    return found.exists() and not found.is_in_place()
