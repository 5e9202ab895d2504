"""The sensor that adds registered graphs and their layers as partitions.

It is level-triggered: each tick adds all that are missing.
"""

import dagster as dg

from sv_pipeline.defs.partitions import graph_layers, graphs, layer_partitions
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.registry import ask_every_graph

__all__ = ["registered_graphs_sensor"]


@dg.sensor(minimum_interval_seconds=10, default_status=dg.DefaultSensorStatus.RUNNING)
def registered_graphs_sensor(
    context: dg.SensorEvaluationContext, pipeline: PipelineResource
) -> dg.SensorResult | dg.SkipReason:
    """Add graphs that were registered from a terminal as partitions, and their layers."""
    known = {str(d.name): set(context.instance.get_dynamic_partitions(str(d.name))) for d in (graphs, graph_layers)}
    registered = pipeline.registry.graph_ids()
    wanted = {str(graphs.name): registered, str(graph_layers.name): _layers(pipeline, registered, known)}
    fresh = {name: [key for key in keys if key not in known[name]] for name, keys in wanted.items()}
    if not any(fresh.values()):
        return dg.SkipReason(f"{len(registered)} registered graphs, all of them partitions already")
    return dg.SensorResult(
        dynamic_partitions_requests=[
            d.build_add_request(keys) for d in (graphs, graph_layers) if (keys := fresh[str(d.name)])
        ]
    )


def _layers(pipeline: PipelineResource, registered: list[str], known: dict[str, set[str]]) -> list[str]:
    """Return the keys of the layers of all graphs that have no layer among the partitions yet."""
    seen = {key.split("|")[0] for key in known[str(graph_layers.name)]}
    asked = [graph_id for graph_id in registered if graph_id not in seen]
    found = ask_every_graph(pipeline.registry, lambda registry, name: layer_partitions(registry.get(name)), asked)
    return [key for keys in found.values() if not isinstance(keys, str) for key in keys]
