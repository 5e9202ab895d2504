"""Building layer 2: supervoxels joined by active edges inside a chunk become nodes, a group of chunks at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.layers import LayeredEdges, NewParents, atomic_parents
from sv_pipeline.graph.rows import blocks, child_rows, edge_blocks, edge_cells, parent_rows
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.atoms import ChunkAtoms, active_edges, read_atoms
from sv_pipeline.ingest.chunk_groups import build_in_groups
from sv_pipeline.ingest.layer_tasks import ChunkReport, ChunkTasks, Counts
from sv_pipeline.ingest.reservations import describe_chunk, read_task_rows
from sv_pipeline.memory import memory_budget
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, COUNTER, atomic_cross_edges
from sv_pipeline.table.interface import RowMutation

__all__ = ["ChunkReport", "active_edges", "atomic_groups", "build_atomic_chunks"]

IntArray = npt.NDArray[np.int64]

# Memory of a group at its peak, as measured by benchmarks/scale_ingest.py, rounded up.
BYTES_PER_CHUNK = 20_000
BYTES_PER_SUPERVOXEL = 250
BYTES_PER_EDGE = 120


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
    groups = atomic_groups(graph, coordinates, config, read_isolated_supervoxels=read_isolated_supervoxels, again=again)
    return sorted(itertools.chain.from_iterable(groups), key=lambda report: report.coordinate)


def atomic_groups(
    graph: ChunkedGraph,
    coordinates: npt.ArrayLike,
    config: DatasetConfig | None = None,
    *,
    read_isolated_supervoxels: bool | None = None,
    again: bool = False,
    budget: int | None = None,
) -> Iterator[list[ChunkReport]]:
    """Do the same as `build_atomic_chunks`, but yield the reports group by group, as the chunks become durable.

    Parameters
    ----------
    budget
        Memory for the work in bytes. Default: that of the configuration, or of the environment (`memory_budget`).
    """
    if read_isolated_supervoxels is None:
        read_isolated_supervoxels = config is None or config.ingest.read_isolated_supervoxels
    if budget is None:
        budget = memory_budget(None if config is None else config.ingest.worker_memory_mb)

    def read(tasks: ChunkTasks) -> Iterator[ChunkAtoms]:
        _refuse_foreign_nodes(tasks)
        return read_atoms(graph, tasks.task_coordinates, look_into_voxels=read_isolated_supervoxels, budget=budget)

    return build_in_groups(graph, 2, coordinates, read, _cost, _build, budget=budget, again=again)


def _cost(atoms: ChunkAtoms) -> int:
    """Memory in bytes that a chunk takes in its group, from its reading to its done-marker."""
    n_edges = len(atoms.inner) + len(atoms.outer)
    return BYTES_PER_CHUNK + BYTES_PER_SUPERVOXEL * len(atoms.supervoxels) + BYTES_PER_EDGE * n_edges


def _build(tasks: ChunkTasks, group: list[ChunkAtoms]) -> list[ChunkReport]:
    """Make the nodes of some chunks together: components of different chunks never touch."""
    layout, n = tasks.graph.layout, len(group)
    supervoxels = np.concatenate([atoms.supervoxels for atoms in group])
    inner = np.concatenate([atoms.inner for atoms in group])
    leaving = np.concatenate([atoms.outer for atoms in group])
    outer = LayeredEdges(layout.cross_layers(leaving[:, 0], leaving[:, 1]), leaving).distinct()
    parents = atomic_parents(layout, tasks.task_chunks, supervoxels, inner)
    _raise_counters(tasks.graph, supervoxels)

    outer_tasks = _tasks_of(tasks, outer.edges[:, 0])
    edge_order = np.argsort(outer_tasks, kind="stable")
    bounds = np.searchsorted(outer_tasks[edge_order], np.arange(1, n))
    edge_bytes = [part.tobytes() for part in np.split(outer.edges[edge_order], bounds)]

    def rows(ids: UInt64Array, timestamps: IntArray) -> Iterator[RowMutation]:
        yield from _rows(parents, ids, timestamps, outer)

    edge_counts = np.bincount(np.r_[_tasks_of(tasks, inner[:, 0]), outer_tasks], minlength=n)
    counts = Counts(np.array([len(atoms.supervoxels) for atoms in group]), edge_counts)
    return tasks.write(parents, np.zeros(n, np.int64), edge_bytes, rows, counts)


def _tasks_of(batch: ChunkTasks, supervoxels: UInt64Array) -> IntArray:
    layout = batch.graph.layout
    return find(batch.task_chunks, layout.chunk_ids(2, layout.coordinates(supervoxels)))


def _rows(parents: NewParents, ids: UInt64Array, timestamps: IntArray, outer: LayeredEdges) -> Iterator[RowMutation]:
    supervoxels, of_supervoxels = parents.children.values, parents.of_children(ids)
    order = np.argsort(supervoxels)
    edge_owners = of_supervoxels[order[find(supervoxels[order], outer.edges[:, 0])]]
    node_times = timestamps[parents.tasks]
    for block, edges, owners in edge_blocks(ids, outer, edge_owners):
        cells = edge_cells(atomic_cross_edges, ids[block], node_times[block], edges, owners)
        yield from parent_rows(ids[block], parents.children.part(block), node_times[block], cells)
    child_times = timestamps[parents.child_tasks]
    for block in blocks(len(supervoxels)):
        yield from child_rows(supervoxels[block], of_supervoxels[block], child_times[block])


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


def _refuse_foreign_nodes(tasks: ChunkTasks) -> None:
    """Raise ConflictError if other software has built one of the chunks, which would get a second set of nodes."""
    graph = tasks.graph
    unreserved = tasks.task_chunks[[tasks.rows[i].reservation is None for i in tasks.todo.tolist()]]
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
