"""Partitions: graphs and their layers, both added at run time, and the coarser mips of a graph as (graph, mip).

The key of a layer is ``graph|L02``. Only layers that a graph has are partitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from sv_pipeline.errors import NotFoundError, SvPipelineError
from sv_pipeline.ingest import stages
from sv_pipeline.registry import Dataset

__all__ = [
    "MAX_MIP",
    "add_partitions",
    "graph_layers",
    "graph_mips",
    "graphs",
    "layer_partition",
    "layer_partitions",
    "layers_named",
    "layers_of_partition",
    "mip_key",
    "mip_partition_of",
]

MAX_MIP = 15
"""Coarsest mip with a partition, of factor 32768. A rebuild of a mip that a graph lacks is refused."""


def layer_partition(graph_id: str, layer: int) -> str:
    """Return the partition key of a layer; the keys of a graph sort in the order of its layers."""
    return f"{graph_id}|L{layer:02d}"


def layers_of_partition(dataset: Dataset, key: str) -> list[int]:
    """Return the layers that a partition key names: one for the key of a layer, all for the id of the graph.

    Raises NotFoundError if the graph has no such layer: the key was typed by hand.
    """
    layers = stages.layers_of(dataset)
    if "|" not in key:
        return layers
    for layer in layers:
        if key == layer_partition(dataset.graph_id, layer):
            return [layer]
    raise NotFoundError(
        f"graph {dataset.graph_id} has no layer {key!r}; it has {layers_named(layers[0], layers[-1])}.",
        remedy=f"Choose a partition such as {layer_partition(dataset.graph_id, layers[0])}.",
    )


def layers_named(lowest: int, highest: int) -> str:
    """Return the layers of a graph as text."""
    return f"layers {lowest} to {highest}"


def layer_partitions(dataset: Dataset) -> list[str]:
    """Return the partition keys of all layers of a graph; none while its volume cannot be read."""
    try:
        return [layer_partition(dataset.graph_id, layer) for layer in stages.layers_of(dataset)]
    except (SvPipelineError, OSError, ValueError):
        return []


def mip_key(mip: int) -> str:
    """Return the partition key of a mip; keys sort in the order of mips."""
    return f"M{mip:02d}"


graphs = dg.DynamicPartitionsDefinition(name="graphs")
graph_layers = dg.DynamicPartitionsDefinition(name="graph_layers")
graph_mips = dg.MultiPartitionsDefinition(
    {"graph": graphs, "mip": dg.StaticPartitionsDefinition([mip_key(mip) for mip in range(1, MAX_MIP + 1)])}
)


def add_partitions(instance: dg.DagsterInstance, datasets: Sequence[Dataset]) -> None:
    """Add graphs and their layers as partitions. Partitions that exist already stay as they are."""
    instance.add_dynamic_partitions(str(graphs.name), [dataset.graph_id for dataset in datasets])
    layers = [key for dataset in datasets for key in layer_partitions(dataset)]
    instance.add_dynamic_partitions(str(graph_layers.name), layers)


def mip_partition_of(context: dg.OpExecutionContext) -> tuple[str, int]:
    """Return graph id and mip of the partition that a step runs for."""
    graph_id, mip = str(context.partition_key).split("|")
    return graph_id, int(mip.removeprefix("M"))
