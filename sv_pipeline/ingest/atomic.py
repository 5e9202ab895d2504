"""Building layer 2: supervoxels joined by active edges inside a chunk become nodes, many chunks at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import ConflictError, InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import (
    ChunkEdges,
    Components,
    components_key,
    edges_key,
    read_components_many,
    read_edges_many,
)
from sv_pipeline.graph.layers import LayeredEdges, NewParents, atomic_parents
from sv_pipeline.graph.rows import child_rows, edge_cells, parent_rows
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.isolated import supervoxels_in_voxels
from sv_pipeline.ingest.layer_tasks import ChunkReport, ChunkTasks, Counts, open_chunk_tasks
from sv_pipeline.ingest.reservations import describe_chunk, read_task_rows
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, COUNTER, atomic_cross_edges
from sv_pipeline.table.interface import RowMutation

__all__ = ["ChunkReport", "active_edges", "build_atomic_chunks"]

IntArray = npt.NDArray[np.int64]


def build_atomic_chunks(
    graph: ChunkedGraph,
    coordinates: npt.ArrayLike,
    config: DatasetConfig | None = None,
    *,
    read_isolated_supervoxels: bool | None = None,
    again: bool = False,
) -> list[ChunkReport]:
    """Make the layer 2 nodes of chunks; chunks with a done-marker are skipped.

    Parameters
    ----------
    graph
        The graph; its meta says where the edge and component files are.
    coordinates
        Layer 2 chunk coordinates, shape (n, 3).
    config
        The dataset's configuration; only ``ingest.read_isolated_supervoxels`` in it can change the result.
    read_isolated_supervoxels
        Whether to search the voxels for supervoxels that no file names. Default: the value in ``config``, or True
        without one.
    again
        Whether to write chunks that are done once more, with exactly the same cells.

    Returns
    -------
    list[ChunkReport]
        One report per chunk, ordered by coordinate.

    Raises
    ------
    InputError
        If a file is broken, or names supervoxels that do not belong to its chunk.
    ConflictError
        If other software has built a chunk, or a chunk was begun with another input.
    """
    batch = open_chunk_tasks(graph, 2, coordinates, again=again)
    if not len(batch.todo):
        return batch.reports({})
    _refuse_foreign_nodes(batch)
    if read_isolated_supervoxels is None:
        read_isolated_supervoxels = config is None or config.ingest.read_isolated_supervoxels
    atoms = _read_atoms(batch, look_into_voxels=read_isolated_supervoxels)
    parents = atomic_parents(graph.layout, batch.task_chunks, atoms.supervoxels, atoms.inner)
    _raise_counters(graph, atoms.supervoxels)

    owners = atoms.outer.edges[:, 0]
    outer_tasks = _tasks_of(batch, owners)
    edge_order = np.argsort(outer_tasks, kind="stable")
    bounds = np.searchsorted(outer_tasks[edge_order], np.arange(1, len(batch.todo)))
    edge_bytes = [part.tobytes() for part in np.split(atoms.outer.edges[edge_order], bounds)]

    def rows(ids: UInt64Array, timestamps: IntArray) -> Iterator[RowMutation]:
        yield from _rows(parents, ids, timestamps, atoms.outer)

    n = len(batch.todo)
    supervoxel_counts = np.bincount(_tasks_of(batch, atoms.supervoxels), minlength=n)
    edge_counts = np.bincount(np.r_[_tasks_of(batch, atoms.inner[:, 0]), outer_tasks], minlength=n)
    return batch.write(parents, np.zeros(n, np.int64), edge_bytes, rows, Counts(supervoxel_counts, edge_counts))


def _tasks_of(batch: ChunkTasks, supervoxels: UInt64Array) -> IntArray:
    layout = batch.graph.layout
    return find(batch.task_chunks, layout.chunk_ids(2, layout.coordinates(supervoxels)))


def _rows(parents: NewParents, ids: UInt64Array, timestamps: IntArray, outer: LayeredEdges) -> Iterator[RowMutation]:
    supervoxels, of_supervoxels = parents.children.values, parents.of_children(ids)
    order = np.argsort(supervoxels)
    edge_owners = of_supervoxels[order[find(supervoxels[order], outer.edges[:, 0])]]
    node_times = timestamps[parents.tasks]
    cells = edge_cells(atomic_cross_edges, ids, node_times, outer, edge_owners)
    yield from parent_rows(ids, parents.children, node_times, cells)
    yield from child_rows(supervoxels, of_supervoxels, timestamps[parents.child_tasks])


# -- input ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Atoms:
    """Supervoxels and active atomic edges of a batch."""

    supervoxels: UInt64Array
    """Distinct supervoxel ids, ascending."""
    inner: UInt64Array
    """Active edges inside chunks, shape (n, 2)."""
    outer: LayeredEdges
    """Active edges that leave a chunk, each once for every chunk of the batch, with the first end inside it."""


def _read_atoms(batch: ChunkTasks, *, look_into_voxels: bool) -> _Atoms:
    graph, coordinates = batch.graph, batch.task_coordinates
    edges = read_edges_many(graph.edges_url, coordinates, layout=graph.layout)
    components = read_components_many(graph.components_url, coordinates)
    seen = supervoxels_in_voxels(graph, coordinates) if look_into_voxels else None
    _refuse_strangers(graph, coordinates, edges, components, seen)
    supervoxels, inner, outer = list(seen or []), [], []
    for chunk_edges, chunk_components, coordinate in zip(edges, components, coordinates, strict=True):
        active = active_edges(chunk_edges, chunk_components)
        inner.append(active.in_.pairs)
        outer += [active.between.pairs, active.cross.pairs]
        named = np.concatenate([np.zeros(0, np.uint64), *chunk_components])
        here = named[graph.layout.chunks(named) == graph.layout.chunk_ids(1, coordinate)]
        every = chunk_edges.in_, chunk_edges.between, chunk_edges.cross
        supervoxels += [here, chunk_edges.in_.node_ids2, *(e.node_ids1 for e in every)]
    leaving = np.concatenate(outer)
    layers = graph.layout.cross_layers(leaving[:, 0], leaving[:, 1])
    ids = np.unique(np.concatenate(supervoxels))
    return _Atoms(ids[graph.layout.segments(ids) != 0], np.concatenate(inner), LayeredEdges(layers, leaving).distinct())


def _refuse_strangers(
    graph: ChunkedGraph,
    coordinates: IntArray,
    edges: list[ChunkEdges],
    components: list[Components],
    seen: list[UInt64Array] | None,
) -> None:
    """Raise InputError if a file names a supervoxel outside the volume, or one that its chunk's voxels do not hold."""
    shape = np.asarray(graph.grid.shape(2))
    for i, (coordinate, chunk_edges, groups) in enumerate(zip(coordinates, edges, components, strict=True)):
        parts = (chunk_edges.in_, chunk_edges.between, chunk_edges.cross)
        pairs = np.concatenate([part.pairs for part in parts])
        named = np.concatenate([pairs.ravel(), *groups])
        outside = np.asarray((graph.layout.coordinates(named) >= shape).any(axis=1))
        here = graph.layout.chunks(named) == graph.layout.chunk_ids(1, coordinate)
        unseen = here & ~np.isin(named, seen[i]) if seen is not None else np.zeros(len(named), np.bool_)
        strange = np.flatnonzero(outside | (unseen & (graph.layout.segments(named) != 0)))
        if not len(strange):
            continue
        first = int(strange[0])
        in_edges = first < pairs.size
        key = edges_key(coordinate) if in_edges else components_key(coordinate)
        url = graph.edges_url if in_edges else graph.components_url
        edge = "" if not in_edges else " of edge {} - {}".format(*pairs[first // 2].tolist())
        where = "outside the volume" if outside[first] else f"not in the voxels of chunk {tuple(coordinate.tolist())}"
        raise InputError(
            f"{url}{key}: supervoxel {int(named[first])}{edge} is {where}.",
            remedy="Check that the edge and component files belong to this watershed volume, or make them again.",
        )


def active_edges(edges: ChunkEdges, components: Components) -> ChunkEdges:
    """Select the active edges of a chunk: those with both ends in one component, and all cross edges."""
    ids = np.concatenate([np.zeros(0, np.uint64), *components])
    labels = np.repeat(np.arange(len(components)), [len(c) for c in components])
    ids, first = np.unique(ids, return_index=True)
    labels = labels[first]

    def same(part: Edges) -> Edges:
        one, other = find(ids, part.node_ids1), find(ids, part.node_ids2)
        keep = (one >= 0) & (other >= 0)
        keep[keep] = labels[one[keep]] == labels[other[keep]]
        return part.take(keep)

    return ChunkEdges(same(edges.in_), same(edges.between), edges.cross)


# -- counters and guards ----------------------------------------------------------------------------------------------


def _raise_counters(graph: ChunkedGraph, supervoxels: UInt64Array) -> None:
    """Raise each chunk's counter of supervoxels to the highest in use, so that splits never give out an existing id."""
    if not len(supervoxels):
        return
    chunks = graph.layout.chunks(supervoxels)
    last = np.flatnonzero(np.r_[chunks[1:] != chunks[:-1], True])
    highest, row_keys = graph.layout.segments(supervoxels[last]).tolist(), keys.counter_keys(chunks[last])
    rows = graph.table.read_rows(row_keys, [COUNTER.key], newest_only=True)
    behind = [
        (key, segment - current)
        for key, segment in zip(row_keys, highest, strict=True)
        if (current := COUNTER.newest(rows.get(key)) or 0) < segment
    ]
    graph.table.side_by_side(lambda item: graph.table.increment(item[0], COUNTER.key, item[1]), behind)


def _refuse_foreign_nodes(batch: ChunkTasks) -> None:
    """Raise ConflictError if other software has built one of the chunks, which would get a second set of nodes."""
    graph = batch.graph
    unreserved = batch.task_chunks[[batch.rows[i].reservation is None for i in batch.todo.tolist()]]
    ranges = keys.chunk_ranges(graph.layout, unreserved)
    nodes = keys.node_ids(key for key, _ in graph.table.scan(ranges, [CHILDREN.key], newest_only=True))
    if not len(nodes):
        return
    # Another worker may have reserved and written since the ingest rows were read.
    occupied = np.unique(graph.layout.chunks(nodes))
    for chunk_id, row in zip(occupied.tolist(), read_task_rows(graph, 2, occupied), strict=True):
        if row.reservation is None:
            raise ConflictError(
                f"{describe_chunk(graph, chunk_id)} has nodes already, made by other software.",
                remedy="A graph that PyChunkedGraph ingested needs no ingest; to build anew choose another graph_id.",
            )
