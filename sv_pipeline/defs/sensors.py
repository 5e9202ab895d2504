"""The sensor that makes registered graphs and their layers partitions, and those of no other graph.

It is level-triggered: each tick adds all that are missing, and removes all that no registered graph has, such as those
that somebody has typed in the dialog *Materialize*. What Dagster knows of a removed partition is kept, and shown again
if the graph is registered again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import dagster as dg

from sv_pipeline.defs.partitions import graph_layers, graphs, layer_partition, layers_named
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.defs.ticks import ended_tick, read_cursor, told
from sv_pipeline.ingest import stages
from sv_pipeline.redaction import redacted
from sv_pipeline.registry import Registry, ask_every_graph

__all__ = ["registered_graphs_sensor"]

ASSETS_OF_GRAPHS = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract", "ingest_plan", "pyramid")


@dg.sensor(
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes registered graphs and their layers partitions, and removes partitions that no registered graph "
    "has. The cursor holds the layers of each graph.",
)
def registered_graphs_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Add graphs that were registered from a terminal as partitions, and their layers; remove all others."""
    registered = pipeline.registry.graph_ids()
    layers, unreadable = _layers(pipeline, registered, read_cursor(context))
    requests, changes = [], []
    wanted = {
        graphs: set(registered),
        graph_layers: {layer_partition(graph_id, n) for graph_id, (a, b) in layers.items() for n in range(a, b + 1)},
    }
    for definition, keys in wanted.items():
        known = set(context.instance.get_dynamic_partitions(str(definition.name)))
        gone = {key for key in known - keys if key.split("|")[0] not in unreadable}
        if not registered:
            # The home folder may be a wrong one, so only what nothing is known of is removed.
            gone -= _materialized(context.instance, definition)
        for name, found, request in (
            ("added", keys - known, definition.build_add_request),
            ("removed, as no registered graph has it:", gone, definition.build_delete_request),
        ):
            if found:
                requests.append(request(sorted(found)))
                changes.append(f"{name} {told(sorted(found))}")
    looked = [f"{graph_id} ({layers_named(*layers[graph_id])})" for graph_id in registered if graph_id in layers]
    looked += [f"{graph_id}: {text}" for graph_id, text in unreadable.items()]
    place = redacted(pipeline.home)
    said = f"{len(registered)} registered graphs in {place}: {told(looked)}" if registered else f"no graph in {place}"
    cursor = {graph_id: layers_named(*both) for graph_id, both in layers.items()}
    return ended_tick(
        context,
        f"{said}; {'; '.join(changes) or 'their partitions are as they should be'}",
        cursor=cursor,
        dynamic_partitions_requests=requests,
    )


def _layers(
    pipeline: PipelineResource, registered: Collection[str], cursor: dict[str, Any]
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return the lowest and the highest layer of each graph, and of the others why these are not known.

    The layers of a graph do not change, so that only graphs that the cursor does not name are asked.
    """
    known = {graph_id: _parsed(cursor.get(graph_id)) for graph_id in registered}

    def ask(registry: Registry, graph_id: str) -> tuple[int, int]:
        layers = stages.layers_of(registry.get(graph_id))
        return layers[0], layers[-1]

    asked = ask_every_graph(pipeline.registry, ask, [graph_id for graph_id, both in known.items() if both is None])
    found = {graph_id: both for graph_id, both in known.items() if both is not None}
    found |= {graph_id: answer for graph_id, answer in asked.items() if not isinstance(answer, str)}
    return found, {graph_id: answer for graph_id, answer in asked.items() if isinstance(answer, str)}


def _parsed(text: object) -> tuple[int, int] | None:
    numbers = [int(word) for word in str(text).split() if word.isdecimal()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _materialized(instance: dg.DagsterInstance, definition: dg.DynamicPartitionsDefinition) -> set[str]:
    """Return the partitions that some asset is materialized for."""
    names = ("layer",) if definition is graph_layers else ASSETS_OF_GRAPHS
    return {key for name in names for key in instance.get_materialized_partitions(dg.AssetKey(name))}
