"""The sensor that adds registered graphs as partitions. It is level-triggered: each tick adds all that are missing."""

import dagster as dg

from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource

__all__ = ["registered_graphs_sensor"]


@dg.sensor(minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def registered_graphs_sensor(
    context: dg.SensorEvaluationContext, pipeline: PipelineResource
) -> dg.SensorResult | dg.SkipReason:
    """Add graphs that were registered from a terminal as partitions."""
    known = set(context.instance.get_dynamic_partitions(str(graphs.name)))
    registered = pipeline.registry.graph_ids()
    fresh = [graph_id for graph_id in registered if graph_id not in known]
    if not fresh:
        return dg.SkipReason(f"{len(registered)} registered graphs, all of them partitions already")
    return dg.SensorResult(dynamic_partitions_requests=[graphs.build_add_request(fresh)])
