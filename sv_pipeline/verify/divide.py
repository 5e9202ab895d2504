"""Divides a graph into parts that are verified within a memory budget. Reads the id counters only."""

from __future__ import annotations

import numpy as np

from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.table import columns, keys
from sv_pipeline.table.counters import ROOT_SHARDS
from sv_pipeline.table.interface import Table
from sv_pipeline.verify.part import SHIFT, Division

__all__ = ["BYTES_PER_NODE", "divide"]

BYTES_PER_NODE = 1200
"""Memory that the verification of a part takes at its peak for each id that was given out in the part."""
STEP = 3
"""Largest number of layers of a part of upper layers."""


def divide(table: Table, layout: IdLayout, grid: ChunkGrid, budget: int) -> Division:
    """Choose the largest parts that fit a budget.

    The counters tell how many ids each chunk has given out, which is at least the number of its rows.

    Parameters
    ----------
    budget
        Memory for one part in bytes.
    """
    most = max(budget // BYTES_PER_NODE, 1)
    top = layout.n_layers
    nodes, roots = _ids_given(table, layout, grid)
    if top == 2 or nodes.sum() + roots.sum() <= most:
        return Division(layout, grid)
    first = top - 1
    while first > 2 and _largest(nodes, first) > most:
        first -= 1
    layers = list(range(first, top - 1, STEP))
    layers = [*layers, top - 1] if layers[-1:] != [top - 1] else layers
    pieces = -(-int(roots.sum()) // most)
    start, span = top << SHIFT, (int(roots.max(initial=0)) + 1) * ROOT_SHARDS
    cuts = sorted({start + span * k // pieces for k in range(1, pieces)})
    return Division(layout, grid, tuple(layers), tuple(cuts))


def _ids_given(table: Table, layout: IdLayout, grid: ChunkGrid) -> tuple[np.ndarray, np.ndarray]:
    """Number of ids that the chunks of all layers below the roots gave out, added up for each layer 2 chunk; of roots,
    for each of their counters."""
    shape = grid.shape(2)
    nodes = np.zeros(shape, np.int64)
    roots = [0]
    for key, row in table.scan([keys.prefix_range(b"i")], [columns.COUNTER.key], newest_only=True):
        chunk, _, _ = key[1:].partition(b"_")
        if not chunk.isdigit():
            continue
        try:
            given = columns.COUNTER.newest(row) or 0
        except CorruptionError:
            continue  # the check `ids` names it
        layer = int(layout.layers(np.uint64(int(chunk))))
        if layer >= layout.n_layers:
            roots.append(given)
            continue
        at = layout.coordinates(np.uint64(int(chunk))) << max(layer - 2, 0)
        if layer >= 1 and (at < shape).all():
            nodes[tuple(at)] += given
    return nodes, np.array(roots, np.int64)


def _largest(nodes: np.ndarray, layer: int) -> int:
    """Largest number of ids in a chunk of a layer."""
    side = 1 << (layer - 2)
    for axis in range(3):
        nodes = np.add.reduceat(nodes, np.arange(0, nodes.shape[axis], side), axis=axis)
    return int(nodes.max(initial=0))
