"""Partitions: graphs (added at run time), the layers of a graph as (graph, layer), its coarser mips as (graph, mip)."""

from __future__ import annotations

import re

import dagster as dg

__all__ = [
    "MAX_LAYER",
    "MAX_MIP",
    "graph_layers",
    "graph_mips",
    "graphs",
    "layer_key",
    "layer_number",
    "mip_key",
    "mip_partition_of",
    "partition_of",
]

MAX_LAYER = 13
"""Highest layer with a partition: no known volume exceeds 2^11 chunks of 256 voxels. Layers that a graph lacks do
nothing."""

MAX_MIP = 15
"""Coarsest mip with a partition, of factor 32768. Mips that a graph lacks do nothing."""


def layer_key(layer: int) -> str:
    """Return the partition key of a layer; keys sort in the order of layers."""
    return f"L{layer:02d}"


def layer_number(key: str) -> int:
    """Return the layer of a partition key."""
    match = re.fullmatch(r"L(\d{2})", key)
    if match is None:
        raise ValueError(f"{key!r} is not a layer")
    return int(match[1])


def mip_key(mip: int) -> str:
    """Return the partition key of a mip; keys sort in the order of mips."""
    return f"M{mip:02d}"


graphs = dg.DynamicPartitionsDefinition(name="graphs")
graph_layers = dg.MultiPartitionsDefinition(
    {
        "graph": graphs,
        "layer": dg.StaticPartitionsDefinition([layer_key(layer) for layer in range(2, MAX_LAYER + 1)]),
    }
)
graph_mips = dg.MultiPartitionsDefinition(
    {"graph": graphs, "mip": dg.StaticPartitionsDefinition([mip_key(mip) for mip in range(1, MAX_MIP + 1)])}
)


def partition_of(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> tuple[str, int]:
    """Return graph id and layer of the partition that a step runs for."""
    graph_id, layer = _both(context)
    return graph_id, layer_number(layer)


def mip_partition_of(context: dg.OpExecutionContext) -> tuple[str, int]:
    """Return graph id and mip of the partition that a step runs for."""
    graph_id, mip = _both(context)
    return graph_id, int(mip.removeprefix("M"))


def _both(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> tuple[str, str]:
    key = context.partition_key
    if isinstance(key, dg.MultiPartitionKey):
        (graph_id,) = (value for name, value in key.keys_by_dimension.items() if name == "graph")
        (other,) = (value for name, value in key.keys_by_dimension.items() if name != "graph")
        return graph_id, other
    graph_id, other = str(key).split("|")
    return graph_id, other
