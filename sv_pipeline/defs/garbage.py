"""The files of each fork as an asset that shows them over time, with a job and a schedule that clean them up."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from sv_pipeline.config import IngestMode
from sv_pipeline.defs.assets import fork
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.nights import COLLECT_AT, REPORT_AT
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import OWNERS, RETRIES, UPKEEP
from sv_pipeline.defs.ticks import told
from sv_pipeline.registry import Registry, ask_every_graph
from sv_pipeline.upkeep.garbage import clean_up, garbage_of

__all__ = [
    "collect_garbage_job",
    "collect_garbage_schedule",
    "fork_files",
    "garbage_report_job",
    "garbage_report_schedule",
]


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


garbage_report_job = dg.define_asset_job(
    "garbage_report_job",
    selection=dg.AssetSelection.assets(fork_files),
    description="Measure the files of a fork: what is stored, what its generations use, and what can be deleted. "
    "Nothing is deleted.",
    tags=UPKEEP,
)


@dg.schedule(
    job=garbage_report_job,
    cron_schedule=REPORT_AT,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Measures the files of each fork every night, so that the asset fork_files shows how they grow, and "
    "what can be deleted. Nothing is deleted.",
)
def garbage_report_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Measure the fork of each graph every night."""
    yield from _for_each_fork(context, pipeline, "report")


@dg.schedule(
    job=collect_garbage_job,
    cron_schedule=COLLECT_AT,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Prunes the history of each graph by its retention policy every night, and deletes files that nothing "
    "uses. It is off until it is switched on.",
)
def collect_garbage_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Clean up the fork of each graph every night; start the schedule if that is what you want."""
    yield from _for_each_fork(context, pipeline, "garbage")


def _for_each_fork(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource, what: str
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    night = context.scheduled_execution_time.date().isoformat()
    said, requested = [], 0
    for graph_id, answer in ask_every_graph(pipeline.registry, _has_fork).items():
        if answer is True:
            requested += 1
            yield dg.RunRequest(run_key=f"{what}:{graph_id}:{night}", partition_key=graph_id)
        said.append(f"{graph_id}: {'a run is asked for' if answer is True else answer or 'no fork of its own'}")
    context.log.info("%s", told(said) or "there are no graphs")
    if not requested:
        yield dg.SkipReason(told(said) or "there are no graphs")


def _has_fork(registry: Registry, graph_id: str) -> bool:
    found = registry.get(graph_id).fork
    return found.exists() and not found.is_in_place()
