"""The job that removes a graph, with its partitions."""

import dagster as dg
from pydantic import Field

from sv_pipeline.defs.metadata import explained_failures
from sv_pipeline.defs.partitions import graph_layers, graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.runs import UPKEEP
from sv_pipeline.upkeep import retirement

__all__ = ["retire_graph_job"]


class RetireConfig(dg.Config):
    """The graph to remove."""

    graph_id: str = Field(description="A registered graph.")
    apply: bool = Field(default=False, description="Remove the graph; otherwise the run only lists what it would do.")


@dg.op
def retire_graph(context: dg.OpExecutionContext, pipeline: PipelineResource, config: RetireConfig) -> None:
    """List what belongs to a graph, or remove it: fork, table, published documents, registry entry and partitions."""
    with explained_failures():
        act = retirement.retire if config.apply else retirement.plan_retirement
        plan = act(pipeline.registry, config.graph_id)
    for line in plan.lines():
        context.log.info(line)
    context.add_output_metadata({"removed": config.apply, "plan": dg.MetadataValue.json(plan.to_dict())})
    if config.apply:
        for partitions in (graph_layers, graphs):
            name = str(partitions.name)
            for key in context.instance.get_dynamic_partitions(name):
                if key.split("|")[0] == config.graph_id:
                    context.instance.delete_dynamic_partition(name, key)


@dg.job(tags=UPKEEP, executor_def=dg.in_process_executor)
def retire_graph_job() -> None:
    """Remove a graph. By default the run only lists what would be removed. If it fails, execute it again."""
    retire_graph()
