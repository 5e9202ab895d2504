"""The job that backs a graph up, and the schedule that does so every night for all graphs."""

import os
from collections.abc import Iterator
from dataclasses import asdict

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.nights import BACK_UP_AT, for_each_graph
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import SLOT_TAG, UPKEEP
from sv_pipeline.errors import ConfigError
from sv_pipeline.upkeep.backup import back_up

__all__ = ["PLACE_VARIABLE", "backup_job", "backup_schedule"]

PLACE_VARIABLE = "SV_PIPELINE_BACKUPS"
"""Environment variable with the folder of the backups."""


class BackupConfig(dg.Config):
    """The graph to back up."""

    graph_id: str
    place: str = Field(default="", description=f"Folder of the backups; default: {PLACE_VARIABLE}.")


@dg.op
def back_up_graph(context: dg.OpExecutionContext, pipeline: PipelineResource, config: BackupConfig) -> None:
    """Copy a graph, its table and its fork as of one operation, while edits go on."""
    with explained_failures():
        place = config.place or os.environ.get(PLACE_VARIABLE, "")
        if not place:
            raise ConfigError("no place for backups is given.", remedy=f"Give 'place', or set {PLACE_VARIABLE}.")
        done = back_up(pipeline.dataset(config.graph_id), place)
    context.log.info(str(done))
    context.add_output_metadata(asdict(done))


@dg.job(tags=UPKEEP)
def backup_job() -> None:
    """Back a graph up while edits go on. If it fails, execute it again."""
    back_up_graph()


@dg.schedule(
    job=backup_job,
    cron_schedule=BACK_UP_AT,
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Backs up every graph to the folder that SV_PIPELINE_BACKUPS names, every night. It is off until it is "
    "switched on.",
)
def backup_schedule(
    context: dg.ScheduleEvaluationContext, pipeline: PipelineResource
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Back up every graph to the folder that SV_PIPELINE_BACKUPS names, every night."""
    if os.environ.get(PLACE_VARIABLE):
        yield from for_each_graph(context, pipeline, _request)
    else:
        yield dg.SkipReason(f"{PLACE_VARIABLE} is not set")


def _request(graph_id: str, night: str) -> dg.RunRequest:
    config = dg.RunConfig(ops={"back_up_graph": BackupConfig(graph_id=graph_id)})
    tags = {"sv/graph_id": graph_id, SLOT_TAG: UPKEEP[SLOT_TAG]}
    return dg.RunRequest(run_key=f"backup:{graph_id}:{night}", run_config=config, tags=tags)
