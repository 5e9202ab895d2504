"""Nodes as mutations of rows: what is written for new parents and for their children. Writes nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.graph.layers import LayeredEdges
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, PARENT, ArrayColumn, Ragged
from sv_pipeline.table.interface import RowMutation, SetCell

__all__ = ["blocks", "child_rows", "edge_blocks", "edge_cells", "parent_rows"]

BLOCK = 4096
"""Number of nodes whose rows are in memory at a time, if the rows of many nodes are made block by block."""

IntArray = npt.NDArray[np.int64]
EdgeColumn = Callable[[int], ArrayColumn[np.uint64]]


def parent_rows(
    parents: UInt64Array, children: Ragged, timestamps: IntArray, edges: list[list[SetCell]] | None = None
) -> Iterator[RowMutation]:
    """Yield the rows of new nodes with their children and optional edge cells (:func:`edge_cells`); arrays (n,)."""
    bounds = children.offsets.tolist()
    for i, (key, timestamp) in enumerate(zip(keys.node_keys(parents), timestamps.tolist(), strict=True)):
        cell = CHILDREN.set(children.values[bounds[i] : bounds[i + 1]], timestamp)
        yield RowMutation(key, [cell, *edges[i]] if edges else [cell])


def child_rows(
    children: UInt64Array, parents: UInt64Array, timestamps: IntArray, edges: list[list[SetCell]] | None = None
) -> Iterator[RowMutation]:
    """Yield the additions to the rows of nodes that get a parent, with optional edge cells; arrays of shape (n,)."""
    values = np.ascontiguousarray(parents, "<u8").tobytes()
    for i, (key, timestamp) in enumerate(zip(keys.node_keys(children), timestamps.tolist(), strict=True)):
        cell = SetCell(PARENT.key, values[8 * i : 8 * i + 8], timestamp)
        yield RowMutation(key, [cell, *edges[i]] if edges else [cell])


def edge_cells(
    column: EdgeColumn, owners: UInt64Array, timestamps: IntArray, edges: LayeredEdges, edge_owners: UInt64Array
) -> list[list[SetCell]]:
    """Return the cells of edges, for each owner.

    Parameters
    ----------
    column
        Returns the column of a cross layer.
    owners, timestamps
        Nodes and the times of their cells, shape (n,), in any order.
    edges, edge_owners
        Edges, and the node whose row stores each of them, shape (m,). Edges keep their order in a cell.
    """
    cells: list[list[SetCell]] = [[] for _ in range(len(owners))]
    if not len(edges):
        return cells
    order = np.argsort(owners)
    at = order[find(owners[order], edge_owners)]
    sequence = np.lexsort((edges.layers, at))
    at, layers, pairs = at[sequence], edges.layers[sequence], edges.edges[sequence]
    starts = np.flatnonzero(np.r_[True, (at[1:] != at[:-1]) | (layers[1:] != layers[:-1])])
    stops = np.r_[starts[1:], len(at)]
    blocks = zip(at[starts].tolist(), layers[starts].tolist(), starts.tolist(), stops.tolist(), strict=True)
    times = timestamps.tolist()
    for owner, layer, start, stop in blocks:
        cells[owner].append(column(layer).set(pairs[start:stop], times[owner]))
    return cells


def blocks(n: int) -> Iterator[slice]:
    """Divide ``n`` nodes into blocks, whose rows are made and written one block after the other."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def edge_blocks(
    owners: UInt64Array, edges: LayeredEdges, edge_owners: UInt64Array
) -> Iterator[tuple[slice, LayeredEdges, UInt64Array]]:
    """Divide nodes into blocks; yield the slice of each block, its edges and their owners, as `edge_cells` takes them.

    Parameters
    ----------
    owners
        Nodes, shape (n,), in any order.
    edges, edge_owners
        Edges, and the node whose row stores each of them, shape (m,).
    """
    order = np.argsort(owners)
    at = order[find(owners[order], edge_owners)]
    sequence = np.argsort(at, kind="stable")
    at = at[sequence]
    for block in blocks(len(owners)):
        here = sequence[np.searchsorted(at, block.start) : np.searchsorted(at, block.stop)]
        yield block, LayeredEdges(edges.layers[here], edges.edges[here]), edge_owners[here]
