"""Cross edges of layer 2 nodes that lead to the parent of the partner, as merges of PyChunkedGraph leave some."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sv_pipeline.graph.hierarchy import read_parents
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.testing.worlds import World

__all__ = ["Rows", "raise_all"]

Rows = Literal["smaller", "larger", "both"]
"""The ends of an edge whose rows name the parent of the other end: the smaller id, the larger id, or both."""


def raise_all(world: World, of: Rows = "smaller") -> int:
    """Let cross edges in the rows of layer 2 nodes lead to the parents of their partners; in how many cells."""
    graph, done = world.graph, 0
    for key, row in list(world.table.scan([keys.layer_range(2)])):
        for layer in range(3, graph.n_layers):
            column = columns.cross_edges(layer)
            edges = column.newest(row)
            if edges is None:
                continue
            at_2 = graph.layout.layers(edges[:, 1]) == 2
            parents = np.where(at_2, read_parents(graph, edges[:, 1]), 0).astype(np.uint64)
            fits = (parents > 0) & (graph.layout.layers(parents) <= layer)
            if of != "both":
                fits &= (edges[:, 0] < edges[:, 1]) == (of == "smaller")
            if fits.any():
                raised = np.stack([edges[:, 0], np.where(fits, parents, edges[:, 1])], axis=-1)
                change = column.set(np.unique(raised, axis=0), column.cells(row)[0].timestamp)
                world.table.mutate([RowMutation(key, [change])])
                done += 1
    return done
