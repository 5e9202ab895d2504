"""Building layers 3 and above: the nodes of child chunks are joined by their cross edges, a group of chunks at a time.

A task writes its new nodes and, into the rows of their children, the parent and the cross edges. Both are final: once
the layer below the task is complete, the partners of all cross edges exist up to the children's own layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.errors import CorruptionError, InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import KnownParents, StoredNodes, find_ancestors, read_layered_edges, scan_nodes
from sv_pipeline.graph.layers import LayeredEdges, layer_parents, parent_chunks
from sv_pipeline.graph.rows import blocks, child_rows, edge_blocks, edge_cells, parent_rows
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.chunk_groups import build_in_groups
from sv_pipeline.ingest.layer_tasks import ChunkReport, ChunkTasks, Counts
from sv_pipeline.ingest.progress import require_neighbourhood_complete
from sv_pipeline.ingest.reservations import describe_chunk
from sv_pipeline.memory import memory_budget
from sv_pipeline.table import keys
from sv_pipeline.table.columns import COUNTER, atomic_cross_edges, cross_edges
from sv_pipeline.table.interface import RowMutation

__all__ = ["ChunkReport", "build_parent_chunks", "parent_groups"]

IntArray = npt.NDArray[np.int64]

# Memory of a group at its peak, as measured by benchmarks/scale_ingest.py, rounded up.
BYTES_PER_CHUNK = 20_000
BYTES_PER_NODE = 250
BYTES_PER_CHILD = 100
BYTES_PER_EDGE = 120


def build_parent_chunks(
    graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, *, again: bool = False, budget: int | None = None
) -> list[ChunkReport]:
    """Make the parents of all nodes below chunks of ``layer``; chunks with a done-marker are skipped.

    Parameters
    ----------
    layer
        Layer to build, from 3 to the number of layers.
    coordinates
        Chunk coordinates at ``layer``, shape (n, 3).
    again
        Whether to write chunks that are done once more, with exactly the same cells.
    budget
        Memory for the work in bytes. Default: that of the environment (`memory_budget`).

    Returns
    -------
    list[ChunkReport]
        One report per chunk, ordered by coordinate.

    Raises
    ------
    NotReadyError
        If the layer below is not complete in these chunks and their neighbours.
    InputError
        If an edge is active on one side only.
    ConflictError
        If a chunk was begun with another input.
    """
    if not 3 <= layer <= graph.n_layers:
        raise ValueError(f"layer {layer} is outside 3..{graph.n_layers}")
    groups = parent_groups(graph, layer, coordinates, again=again, budget=budget)
    return sorted(itertools.chain.from_iterable(groups), key=lambda report: report.coordinate)


def parent_groups(
    graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, *, again: bool = False, budget: int | None = None
) -> Iterator[list[ChunkReport]]:
    """Do the same as `build_parent_chunks`, but yield the reports group by group, as the chunks become durable.

    Parameters
    ----------
    budget
        Memory for the work in bytes. Default: that of the environment (`memory_budget`).
    """
    limit = memory_budget() if budget is None else budget
    expected = _Expectation()

    def build(tasks: ChunkTasks, numbers: list[int]) -> list[ChunkReport]:
        below = _read_below(graph, layer, _children(tasks))
        expected.learn(sum(numbers), below)
        if below.cost > limit and len(numbers) > 1:
            # More than was expected: the rows of all these nodes would not fit.
            half, n = len(numbers) // 2, len(numbers)
            del below
            return build(tasks.part(0, half), numbers[:half]) + build(tasks.part(half, n), numbers[half:])
        return _build(tasks, below)

    def read(tasks: ChunkTasks) -> Iterator[int]:
        require_neighbourhood_complete(graph, layer - 1, _children(tasks))
        yield from _count_nodes_below(tasks)

    return build_in_groups(graph, layer, coordinates, read, expected.cost, build, budget=limit, again=again)


def _build(tasks: ChunkTasks, below: _LayerBelow) -> list[ChunkReport]:
    graph, layer, nodes, edges, n = tasks.graph, tasks.layer, below.nodes, below.edges, len(tasks.todo)
    _check_both_sides(graph, layer, edges)
    parents = layer_parents(graph.layout, layer, tasks.task_chunks, nodes.ids, edges)

    def rows(ids: UInt64Array, timestamps: IntArray) -> Iterator[RowMutation]:
        for block in blocks(len(ids)):
            yield from parent_rows(ids[block], parents.children.part(block), timestamps[parents.tasks[block]])
        children, of_children = parents.children.values, parents.of_children(ids)
        child_times = timestamps[parents.child_tasks]
        for block, here, owners in edge_blocks(children, edges, edges.edges[:, 0]):
            cells = edge_cells(cross_edges, children[block], child_times[block], here, owners)
            yield from child_rows(children[block], of_children[block], child_times[block], cells)

    not_before = np.zeros(n, np.int64)
    np.maximum.at(not_before, _tasks_of(tasks, nodes.ids), nodes.created + 1)
    counts = Counts(np.zeros(n, np.int64), np.bincount(_tasks_of(tasks, edges.edges[:, 0]), minlength=n))
    return tasks.write(parents, not_before, [b""] * n, rows, counts)


# -- sizes ------------------------------------------------------------------------------------------------------------


class _Expectation:
    """What the chunks that come next will cost: the numbers of their nodes are known, their edges are not."""

    def __init__(self) -> None:
        self._per_node = BYTES_PER_NODE + 3 * BYTES_PER_CHILD + 6 * BYTES_PER_EDGE

    def cost(self, n_nodes: int) -> int:
        """Memory in bytes that a chunk with so many nodes below it takes."""
        return BYTES_PER_CHUNK + self._per_node * n_nodes

    def learn(self, n_nodes: int, found: _LayerBelow) -> None:
        """Correct the expectation by a group that was read, and was expected to have so many nodes."""
        if n_nodes:
            self._per_node = max(BYTES_PER_NODE, -(-found.cost // n_nodes))


def _count_nodes_below(tasks: ChunkTasks) -> list[int]:
    """Return a limit of the number of nodes below each chunk: the counters of ids, which rise with each node."""
    graph, layer = tasks.graph, tasks.layer
    below = [graph.grid.children(layer, c) for c in tasks.task_coordinates]
    row_keys = keys.counter_keys(graph.layout.chunk_ids(layer - 1, np.concatenate(below)))
    rows = graph.table.read_rows(row_keys, [COUNTER.key], newest_only=True)
    numbers = [COUNTER.newest(rows.get(key)) or 0 for key in row_keys]
    starts = np.cumsum([0, *map(len, below)])
    return [sum(numbers[a:b]) for a, b in itertools.pairwise(starts.tolist())]


def _children(tasks: ChunkTasks) -> IntArray:
    return np.concatenate([tasks.graph.grid.children(tasks.layer, c) for c in tasks.task_coordinates])


# -- input ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerBelow:
    """What a group of chunks is built from: all nodes of the layer below, and their edges."""

    nodes: StoredNodes
    edges: LayeredEdges
    n_stored_edges: int
    """Number of edges that were read; those that join the same two nodes are one of ``edges``."""

    @property
    def cost(self) -> int:
        """Memory in bytes that the group takes until its done-markers are written."""
        n_children, n_edges = len(self.nodes.children.values), len(self.edges) + self.n_stored_edges
        return BYTES_PER_NODE * len(self.nodes.ids) + BYTES_PER_CHILD * n_children + BYTES_PER_EDGE * n_edges


def _tasks_of(tasks: ChunkTasks, nodes: UInt64Array) -> IntArray:
    layout, layer = tasks.graph.layout, tasks.layer
    return find(tasks.task_chunks, parent_chunks(layout, layout.coordinates(nodes), layer - 1, layer))


def _read_below(graph: ChunkedGraph, layer: int, coordinates: IntArray) -> _LayerBelow:
    """Read all nodes at ``layer - 1`` in chunks of that layer, and their cross edges at that layer and above."""
    own = layer - 1
    cross_layers = range(own, graph.n_layers)
    chunks = graph.layout.chunk_ids(own, coordinates)
    if layer == 3:
        nodes = scan_nodes(graph, chunks, atomic_cross_edges, cross_layers)
        lower = nodes.edges
    else:
        nodes = scan_nodes(graph, chunks)
        lower = read_layered_edges(graph, nodes.children.values, cross_edges, cross_layers)
    known = KnownParents(nodes.ids, nodes.children)
    owners = known.look_up(lower.edges[:, 0])
    partners = find_ancestors(graph, lower.edges[:, 1], own, known=known)
    unknown = (owners == 0) | partners.ends
    if unknown.any():
        a, b = lower.edges[unknown][0].tolist()
        raise CorruptionError(
            f"the cross edge from {a} to {b} leads to a node without a parent, although layer {own} is complete.",
            remedy="Check that the edge files of both chunks belong together, then purge and rebuild from layer 2.",
        )
    edges = LayeredEdges(lower.layers, np.stack([owners, partners.ids], axis=1)).distinct()
    return _LayerBelow(nodes, edges, len(lower))


def _check_both_sides(graph: ChunkedGraph, layer: int, edges: LayeredEdges) -> None:
    """Raise InputError if only one end lists an edge inside a chunk: the other might have skipped this layer."""
    inner = edges.edges[edges.layers == layer - 1]
    ids, index = np.unique(inner, return_inverse=True)
    pairs = index.reshape(-1, 2) @ np.array([[len(ids), 1], [1, len(ids)]])
    one_sided = ~np.isin(pairs[:, 0], pairs[:, 1])
    if one_sided.any():
        a, b = inner[one_sided][0].tolist()
        places = " and ".join(describe_chunk(graph, int(graph.layout.chunks(np.uint64(node)))) for node in (a, b))
        raise InputError(
            f"nodes {a} and {b}, in {places}, are joined by an edge that is active on the first side only.",
            remedy="Make the edge and component files of these chunks again: both must list the edge and agree on it.",
        )
