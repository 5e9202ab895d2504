"""Partitions: graphs (added at run time) and, for the layers of a graph, (graph, layer)."""

from __future__ import annotations

import re

import dagster as dg

__all__ = ["MAX_LAYER", "graph_layers", "graphs", "layer_key", "layer_number", "partition_of"]

MAX_LAYER = 13
"""Highest layer offered: 2^11 chunks of 256 voxels exceed any volume known. Layers that a graph lacks do nothing."""


def layer_key(layer: int) -> str:
    """Partition key of a layer; sorts in the order of layers."""
    return f"L{layer:02d}"


def layer_number(key: str) -> int:
    """Layer of a partition key."""
    match = re.fullmatch(r"L(\d{2})", key)
    if match is None:
        raise ValueError(f"{key!r} is not a layer")
    return int(match[1])


graphs = dg.DynamicPartitionsDefinition(name="graphs")
graph_layers = dg.MultiPartitionsDefinition(
    {
        "graph": graphs,
        "layer": dg.StaticPartitionsDefinition([layer_key(layer) for layer in range(2, MAX_LAYER + 1)]),
    }
)


def partition_of(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> tuple[str, int]:
    """Graph id and layer of the partition that a step runs for."""
    key = context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        graph_id, layer = str(key).split("|")
        return graph_id, layer_number(layer)
    return key.keys_by_dimension["graph"], layer_number(key.keys_by_dimension["layer"])
