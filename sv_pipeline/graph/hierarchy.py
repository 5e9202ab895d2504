"""Batched reads of the hierarchy: parents, children, ancestors, cross edges.

Each function sends one request per layer, whatever the number of ids. Functions take and return arrays, and raise no
error about ids that do not exist. The queries of users are in ``queries``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from sv_pipeline import moments
from sv_pipeline.algorithms.components import find
from sv_pipeline.arguments import is_whole, parse_count
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.layers import LayeredEdges, newest_of_reruns
from sv_pipeline.graph.parent_hints import hints_of
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    CHILDREN,
    PARENT,
    ArrayColumn,
    Ragged,
    newest_arrays,
    newest_ids,
    newest_timestamps,
)
from sv_pipeline.table.interface import RowView

__all__ = [
    "Ancestors",
    "KnownParents",
    "StoredNodes",
    "Time",
    "find_ancestors",
    "milliseconds",
    "read_ancestor_matrix",
    "read_children",
    "read_layered_edges",
    "read_parents",
    "scan_nodes",
    "take",
]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
EdgeColumn = Callable[[int], ArrayColumn[np.uint64]]

ROWS_AT_ONCE = 1 << 12
"""Number of rows in memory at a time, when many are read to make arrays of them."""

Time = int | moments.Time
"""Milliseconds since the epoch, or a time that :mod:`sv_pipeline.moments` can parse."""


def milliseconds(at: Time | None) -> int | None:
    """Convert a time to the last table timestamp that is visible at it (inclusive, rounded up); None stays None.

    Raises
    ------
    InputError
        If the value is not a time.
    """
    if at is None:
        return None
    if is_whole(at):
        return parse_count(at, "time in milliseconds")
    return moments.epoch_milliseconds(moments.parse_time(at))


def take(ragged: Ragged, rows: npt.ArrayLike) -> Ragged:
    """Select rows of a ragged array, in the given order."""
    index = np.asarray(rows, np.int64)
    lengths = ragged.lengths[index]
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Ragged(ragged.values[np.repeat(ragged.offsets[index], lengths) + within], offsets)


# -- one step ---------------------------------------------------------------------------------------------------------


def read_parents(graph: ChunkedGraph, ids: npt.ArrayLike, *, until: int | None = None) -> UInt64Array:
    """Read the parent of each node, shape (n,); 0 for a root and for a node that does not exist."""
    parts = [np.zeros(0, np.uint64)]
    for row_keys in _key_blocks(ids):
        rows = graph.table.read_rows(row_keys, [PARENT.key], until=until, newest_only=True)
        parts.append(newest_ids(PARENT, rows, row_keys))
    parents = np.concatenate(parts)
    if until is None:
        hints_of(graph.table).note(np.asarray(ids, np.uint64), parents)
    return parents


def read_children(graph: ChunkedGraph, ids: npt.ArrayLike, *, until: int | None = None) -> Ragged:
    """Read the children of each node; a supervoxel, or a node that does not exist, has none."""
    row_keys = keys.node_keys(ids)
    rows = graph.table.read_rows(row_keys, [CHILDREN.key], until=until, newest_only=True)
    return newest_arrays(CHILDREN, rows, row_keys)


def read_layered_edges(
    graph: ChunkedGraph, ids: npt.ArrayLike, column: EdgeColumn, layers: Sequence[int]
) -> LayeredEdges:
    """Read the newest edge cells of nodes, in the columns of several cross layers."""
    wanted = [column(layer).key for layer in layers]
    parts = []
    for row_keys in _key_blocks(ids):
        rows = graph.table.read_rows(row_keys, wanted, newest_only=True)
        parts.append(_layered_edges(rows, row_keys, column, layers)[0])
    return LayeredEdges.join(parts)


def _key_blocks(ids: npt.ArrayLike) -> Iterator[list[bytes]]:
    """Yield the row keys of nodes in blocks; a row takes many times the memory of the array that is made of it."""
    nodes = np.asarray(ids)
    return (keys.node_keys(nodes[start : start + ROWS_AT_ONCE]) for start in range(0, len(nodes), ROWS_AT_ONCE))


def _layered_edges(
    rows: dict[bytes, RowView], row_keys: list[bytes], column: EdgeColumn, layers: Sequence[int]
) -> tuple[LayeredEdges, IntArray]:
    """Return the edges in some columns of rows, and the index of the row that stores each edge, shape (n,)."""
    if not layers:
        return LayeredEdges.empty(), np.zeros(0, np.int64)
    parts = [newest_arrays(column(layer), rows, row_keys) for layer in layers]
    sizes = [len(part.values) for part in parts]
    owners = np.concatenate([np.repeat(np.arange(len(row_keys)), part.lengths) for part in parts])
    edges = np.concatenate([part.values for part in parts])
    return LayeredEdges(np.repeat(np.asarray(layers, np.int64), sizes), edges), owners


# -- chunks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredNodes:
    """All nodes of some chunks of one layer, sorted by id."""

    ids: UInt64Array
    children: Ragged
    created: IntArray
    """Creation time of each node in milliseconds, shape (n,)."""
    edges: LayeredEdges
    """Edges in the requested columns."""

    @classmethod
    def empty(cls) -> StoredNodes:
        """Return no nodes."""
        none = np.zeros(0, np.uint64)
        return cls(none, Ragged(none, np.zeros(1, np.int64)), np.zeros(0, np.int64), LayeredEdges.empty())


def scan_nodes(
    graph: ChunkedGraph, chunk_ids: UInt64Array, column: EdgeColumn | None = None, layers: Sequence[int] = ()
) -> StoredNodes:
    """Read the nodes of chunks of one layer >= 2 in one scan, without leftovers of repeated builds by other software.

    Parameters
    ----------
    chunk_ids
        Ids of the chunks.
    column, layers
        Edge columns to read as well.
    """
    wanted = [CHILDREN.key, *(column(layer).key for layer in layers if column)]
    found = graph.table.scan(keys.chunk_ranges(graph.layout, chunk_ids), wanted, newest_only=True)
    parts, edges, edge_rows, n = [StoredNodes.empty()], [LayeredEdges.empty()], [np.zeros(0, np.int64)], 0
    while rows := dict(islice(found, ROWS_AT_ONCE)):
        row_keys = [key for key, row in rows.items() if CHILDREN.key in row]
        children, created = newest_arrays(CHILDREN, rows, row_keys), newest_timestamps(CHILDREN, rows, row_keys)
        parts.append(StoredNodes(keys.node_ids(row_keys), children, created, LayeredEdges.empty()))
        if column:
            here, owners = _layered_edges(rows, row_keys, column, layers)
            edges.append(here)
            edge_rows.append(owners + n)
        n += len(row_keys)
    ids, children = np.concatenate([part.ids for part in parts]), Ragged.join([part.children for part in parts])
    created, joined = np.concatenate([part.created for part in parts]), LayeredEdges.join(edges)
    counts = newest_of_reruns(ids, children)
    if not counts.all():
        keep = np.flatnonzero(counts[np.concatenate(edge_rows)])
        joined = LayeredEdges(joined.layers[keep], joined.edges[keep])
        valid = np.flatnonzero(counts)
        ids, children, created = ids[valid], take(children, valid), created[valid]
    return StoredNodes(ids, children, created, joined)


# -- ancestors --------------------------------------------------------------------------------------------------------


class KnownParents:
    """Parents that need not be read, because they are known from the children of other nodes."""

    def __init__(self, nodes: UInt64Array, children: Ragged) -> None:
        order = np.argsort(children.values)
        self._children = children.values[order]
        self._parents = np.repeat(nodes, children.lengths)[order]

    def look_up(self, ids: UInt64Array) -> UInt64Array:
        """Return the parent of each id, shape (n,); 0 where it is not known."""
        parents = np.zeros(len(ids), np.uint64)
        index = find(self._children, ids)
        parents[index >= 0] = self._parents[index[index >= 0]]
        return parents


@dataclass(frozen=True)
class Ancestors:
    """Highest ancestors up to a layer."""

    ids: UInt64Array
    """Ancestor of each node, or the node itself if it has none, shape (n,)."""
    ends: BoolArray
    """Whether the chain ends below the layer because a node has no parent, shape (n,)."""


def find_ancestors(
    graph: ChunkedGraph,
    ids: npt.ArrayLike,
    layer: int,
    *,
    until: int | None = None,
    known: KnownParents | None = None,
) -> Ancestors:
    """Find the highest ancestor of each node whose layer is at most ``layer``; reads no more layers than needed."""
    nodes, inverse = np.unique(np.asarray(ids, np.uint64), return_inverse=True)
    tops, ends = nodes.copy(), np.zeros(len(nodes), np.bool_)
    climbing = np.flatnonzero(graph.layout.layers(nodes) < layer)
    while len(climbing):
        here, where = np.unique(tops[climbing], return_inverse=True)
        above = known.look_up(here) if known else np.zeros(len(here), np.uint64)
        unknown = np.flatnonzero(above == 0)
        if len(unknown):
            above[unknown] = read_parents(graph, here[unknown], until=until)
        parents = above[where]
        parent_layers = graph.layout.layers(parents)
        ends[climbing[parents == 0]] = True
        fits = (parents != 0) & (parent_layers <= layer)
        tops[climbing[fits]] = parents[fits]
        climbing = climbing[fits & (parent_layers < layer)]
    return Ancestors(tops[inverse], ends[inverse])


def read_ancestor_matrix(graph: ChunkedGraph, ids: npt.ArrayLike, *, until: int | None = None) -> UInt64Array:
    """Read, for each node, the highest ancestor at or below every layer, shape (n, layers + 1).

    Column ``l`` is the result of :func:`find_ancestors` for layer ``l``; columns below a node's own layer hold 0.
    """
    nodes, inverse = np.unique(np.asarray(ids, np.uint64), return_inverse=True)
    matrix = np.zeros((len(nodes), graph.n_layers + 1), np.uint64)
    columns = np.arange(graph.n_layers + 1)
    current, rows = nodes, np.arange(len(nodes))
    while len(rows):
        layers = graph.layout.layers(current)
        matrix[rows] = np.where(columns >= layers[:, None], current[:, None], matrix[rows])
        rows, current = rows[layers < graph.n_layers], current[layers < graph.n_layers]
        if not len(rows):
            break
        here, where = np.unique(current, return_inverse=True)
        current = read_parents(graph, here, until=until)[where]
        rows, current = rows[current != 0], current[current != 0]
    return matrix[inverse]
