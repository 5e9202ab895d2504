"""Building layers 3 and above: the nodes of child chunks are joined by their cross edges, many chunks at a time.

A task writes its new nodes and, into the rows of their children, the parent and the cross edges. Both are final: once
the layer below the task is complete, the partners of all cross edges exist up to the children's own layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.errors import CorruptionError, InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import KnownParents, StoredNodes, find_ancestors, read_layered_edges, scan_nodes
from sv_pipeline.graph.layers import LayeredEdges, layer_parents, parent_chunks
from sv_pipeline.graph.rows import child_rows, edge_cells, parent_rows
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.layer_tasks import ChunkReport, ChunkTasks, Counts, open_chunk_tasks
from sv_pipeline.ingest.progress import require_neighbourhood_complete
from sv_pipeline.ingest.reservations import describe_chunk
from sv_pipeline.table.columns import atomic_cross_edges, cross_edges
from sv_pipeline.table.interface import RowMutation

__all__ = ["ChunkReport", "build_parent_chunks"]

IntArray = npt.NDArray[np.int64]


def build_parent_chunks(
    graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, *, again: bool = False
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
    batch = open_chunk_tasks(graph, layer, coordinates, again=again)
    if not len(batch.todo):
        return batch.reports({})
    below = np.concatenate([graph.grid.children(layer, c) for c in batch.task_coordinates])
    require_neighbourhood_complete(graph, layer - 1, below)
    nodes, edges = _read_below(graph, layer, below)
    _check_both_sides(graph, layer, edges)
    parents = layer_parents(graph.layout, layer, batch.task_chunks, nodes.ids, edges)

    def rows(ids: UInt64Array, timestamps: IntArray) -> Iterator[RowMutation]:
        children, child_times = parents.children.values, timestamps[parents.child_tasks]
        cells = edge_cells(cross_edges, children, child_times, edges, edges.edges[:, 0])
        yield from parent_rows(ids, parents.children, timestamps[parents.tasks])
        yield from child_rows(children, parents.of_children(ids), child_times, cells)

    tasks = _tasks_of(batch, nodes.ids)
    not_before = np.zeros(len(batch.todo), np.int64)
    np.maximum.at(not_before, tasks, nodes.created + 1)
    n = len(batch.todo)
    edge_counts = np.bincount(_tasks_of(batch, edges.edges[:, 0]), minlength=n)
    counts = Counts(np.zeros(n, np.int64), edge_counts)
    return batch.write(parents, not_before, [b""] * n, rows, counts)


def _tasks_of(batch: ChunkTasks, nodes: UInt64Array) -> IntArray:
    layout, layer = batch.graph.layout, batch.layer
    return find(batch.task_chunks, parent_chunks(layout, layout.coordinates(nodes), layer - 1, layer))


def _read_below(graph: ChunkedGraph, layer: int, coordinates: IntArray) -> tuple[StoredNodes, LayeredEdges]:
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
    return nodes, LayeredEdges(lower.layers, np.stack([owners, partners.ids], axis=1)).distinct()


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
