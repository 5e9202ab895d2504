"""Jobs that an operator launches by hand: register a graph, purge a layer."""

from typing import Any

import dagster as dg
from pydantic import Field

from sv_pipeline.config import load_config, parse_config
from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import add_partitions
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import UPKEEP
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest import progress, stages

__all__ = ["purge_layer_job", "register_graph_job"]


class RegisterConfig(dg.Config):
    """The dataset to register: either a YAML file or its content."""

    path: str = Field(default="", description="Path of a dataset YAML that the worker can read.")
    dataset: dict[str, Any] = Field(default_factory=dict, description="Content of a dataset YAML, instead of a path.")


class PurgeConfig(dg.Config):
    """The layer to purge."""

    graph_id: str
    layer: int = Field(ge=2, description="This layer and all above it are purged; refused if the graph has edits.")


@dg.op
def register_graph(context: dg.OpExecutionContext, pipeline: PipelineResource, config: RegisterConfig) -> None:
    """Check a dataset configuration against its source, and add the graph as a partition."""
    with explained_failures():
        if bool(config.path) == bool(config.dataset):
            raise ConfigError("give either 'path' or 'dataset'.")
        parsed = load_config(config.path) if config.path else parse_config(config.dataset, where="dataset")
        dataset = stages.register(parsed, pipeline.home)
    add_partitions(context.instance, [dataset])
    context.log.info("registered %s; materialize its partitions to ingest it", dataset.graph_id)


@dg.op
def purge_layer(context: dg.OpExecutionContext, pipeline: PipelineResource, config: PurgeConfig) -> None:
    """Remove the done-markers and rows of a layer and all above it."""
    with explained_failures():
        progress.purge_layer(pipeline.dataset(config.graph_id).graph, config.layer)
    context.log.info("purged layers %d and above of %s", config.layer, config.graph_id)


@dg.job(tags=UPKEEP)
def register_graph_job() -> None:
    """Register a graph. Its configuration is checked against its source before anything is written."""
    register_graph()


@dg.job(tags=UPKEEP)
def purge_layer_job() -> None:
    """Remove a layer and all above it, so that they can be built again."""
    purge_layer()
