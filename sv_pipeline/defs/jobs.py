"""The job with which an operator purges a layer."""

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import UPKEEP
from sv_pipeline.ingest import progress

__all__ = ["purge_layer_job"]


class PurgeConfig(dg.Config):
    """The layer to purge."""

    graph_id: str = Field(description="A registered graph.")
    layer: int = Field(ge=2, description="This layer and all above it are purged; refused if the graph has edits.")


@dg.op
def purge_layer(context: dg.OpExecutionContext, pipeline: PipelineResource, config: PurgeConfig) -> None:
    """Remove the done-markers and rows of a layer and all above it."""
    with explained_failures():
        progress.purge_layer(pipeline.dataset(config.graph_id).graph, config.layer)
    context.log.info("purged layers %d and above of %s", config.layer, config.graph_id)


@dg.job(tags=UPKEEP, executor_def=dg.in_process_executor)
def purge_layer_job() -> None:
    """Remove a layer and all above it, so that they can be built again."""
    purge_layer()
