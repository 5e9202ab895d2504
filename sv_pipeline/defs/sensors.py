"""The sensor that makes registered graphs and their layers partitions, and those of no other graph.

It is level-triggered: each tick adds all that are missing, and removes those of graphs that are no longer registered.
What Dagster knows of a removed partition is kept, and shown again if the graph is registered again.
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
    """Add graphs that were registered from a terminal as partitions, and their layers; remove those that are gone."""
    known = {str(d.name): set(context.instance.get_dynamic_partitions(str(d.name))) for d in (graphs, graph_layers)}
    registered = pipeline.registry.graph_ids()
    wanted = {str(graphs.name): registered, str(graph_layers.name): _layers(pipeline, registered, known)}
    fresh = {name: [key for key in keys if key not in known[name]] for name, keys in wanted.items()}
    # If nothing is registered, the home folder is more likely to be a wrong one than to be empty.
    gone = {
        name: sorted(key for key in keys if registered and key.split("|")[0] not in registered)
        for name, keys in known.items()
    }
    if not any(fresh.values()) and not any(gone.values()):
        return dg.SkipReason(f"{len(registered)} registered graphs, all of them partitions already")
    both = (graphs, graph_layers)
    return dg.SensorResult(
        dynamic_partitions_requests=[
            *(d.build_add_request(keys) for d in both if (keys := fresh[str(d.name)])),
            *(d.build_delete_request(keys) for d in both if (keys := gone[str(d.name)])),
        ]
    )


def _layers(pipeline: PipelineResource, registered: list[str], known: dict[str, set[str]]) -> list[str]:
    """Return the keys of the layers of all graphs that have no layer among the partitions yet."""
    seen = {key.split("|")[0] for key in known[str(graph_layers.name)]}
    asked = [graph_id for graph_id in registered if graph_id not in seen]
    found = ask_every_graph(pipeline.registry, lambda registry, name: layer_partitions(registry.get(name)), asked)
    return [key for keys in found.values() if not isinstance(keys, str) for key in keys]
