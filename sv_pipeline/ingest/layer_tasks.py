"""The common part of the tasks of all layers: which chunks of a batch must be built, and the order of writes.

::

    read the ingest rows        a chunk with a done-marker is skipped
    (the layer's own reads and computation)
    reserve ids                 one row per chunk, written if absent
    write all rows              cells at the reserved times, so that a second run writes the same cells;
                                with them the open marks of the chunks' blocks, see `kept_counts`
    write the done-markers      a chunk is done from now on
    count them                  the blocks' counts, with which the open marks are removed
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.layers import NewParents
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.kept_counts import OpenBlocks, SeenBlocks, count_done, open_blocks, read_blocks
from sv_pipeline.ingest.purge import refuse_if_edited
from sv_pipeline.ingest.reservations import (
    TASK_COLUMNS,
    IdNeed,
    TaskRow,
    decode_task_row,
    now,
    reserve_ids,
    worker_name,
)
from sv_pipeline.table import keys
from sv_pipeline.table.columns import INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import DeleteCells, RowMutation

__all__ = ["ChunkReport", "ChunkTasks", "Counts", "open_chunk_tasks"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChunkReport:
    """The result of the task of one chunk."""

    layer: int
    coordinate: tuple[int, int, int]
    nodes: int
    """Number of nodes made, at any layer."""
    supervoxels: int
    edges: int
    seconds: float
    """This chunk's share of the time of its batch, in seconds."""
    skipped: bool = False
    """Whether the chunk had a done-marker already; then the numbers are those of the earlier run."""


@dataclass(frozen=True)
class Counts:
    """Numbers for the done-markers, one per task; both arrays have shape (n,)."""

    supervoxels: IntArray
    edges: IntArray


@dataclass(frozen=True)
class ChunkTasks:
    """The chunks of one layer that one call works on, ascending by chunk id."""

    graph: ChunkedGraph
    layer: int
    coordinates: IntArray
    chunk_ids: UInt64Array
    rows: list[TaskRow]
    todo: IntArray
    """Indices of the chunks that must be built."""
    started: float = field(default_factory=time.monotonic)
    blocks: SeenBlocks | None = None
    """Counts of the blocks of these chunks, as they were before."""

    @property
    def task_chunks(self) -> UInt64Array:
        """Ids of the chunks that must be built, ascending."""
        return self.chunk_ids[self.todo]

    @property
    def task_coordinates(self) -> IntArray:
        """Coordinates of the chunks that must be built, shape (n, 3)."""
        return self.coordinates[self.todo]

    def part(self, start: int, stop: int) -> ChunkTasks:
        """Return some of the chunks that must be built, from position ``start`` to ``stop`` of `task_chunks`."""
        chosen = self.todo[start:stop]
        rows = [self.rows[i] for i in chosen.tolist()]
        todo = np.arange(len(chosen))
        coordinates, chunk_ids = self.coordinates[chosen], self.chunk_ids[chosen]
        return ChunkTasks(self.graph, self.layer, coordinates, chunk_ids, rows, todo, blocks=self.blocks)

    def skipped_reports(self) -> list[ChunkReport]:
        """Make the reports of the chunks that need not be built."""
        todo = set(self.todo.tolist())
        return [report for i, report in enumerate(self.reports({})) if i not in todo]

    def write(
        self,
        parents: NewParents,
        not_before: IntArray,
        edge_bytes: list[bytes],
        rows: Callable[[UInt64Array, IntArray], Iterable[RowMutation]],
        counts: Counts,
    ) -> list[ChunkReport]:
        """Reserve ids, write the rows, then the done-markers.

        Parameters
        ----------
        parents
            The new nodes of all tasks; their tasks are indices into ``task_chunks``.
        not_before
            Lowest timestamp of each task in milliseconds, shape (n,).
        edge_bytes
            For each task, the part of its input besides ``parents``, which enters its digest.
        rows
            Makes the rows from the ids of the new nodes and the timestamps of the tasks.
        counts
            Numbers for the done-markers.
        """
        graph = self.graph
        needs = _needs(self.task_chunks, parents, not_before, edge_bytes)
        busy = [i for i, need in enumerate(needs) if need.counts]
        stored = [self.rows[int(self.todo[i])].reservation for i in busy]
        reservations = reserve_ids(graph, self.layer, [needs[i] for i in busy], stored)
        ids = [reservation.node_ids(graph) for reservation in reservations]
        timestamps = np.zeros(len(needs), np.int64)
        timestamps[busy] = [reservation.timestamp for reservation in reservations]
        indices = graph.grid.index(self.layer, self.task_coordinates)
        opened = open_blocks(self.layer, indices)
        new_rows = rows(np.concatenate(ids) if ids else np.zeros(0, np.uint64), timestamps)
        graph.table.mutate(chain(opened.mutations, new_rows))
        return self._finish(np.bincount(parents.tasks, minlength=len(needs)), counts, opened)

    def _finish(self, nodes: IntArray, counts: Counts, opened: OpenBlocks) -> list[ChunkReport]:
        seconds = time.monotonic() - self.started
        share, started = round(seconds / max(1, len(self.todo)), 4), now() - int(1000 * seconds)
        markers: dict[int, dict[str, Any]] = {}
        changes = []
        for i, position in enumerate(self.todo.tolist()):
            marker = {
                "nodes": int(nodes[i]),
                "supervoxels": int(counts.supervoxels[i]),
                "edges": int(counts.edges[i]),
                "seconds": share,
                "worker": worker_name(),
                "started": started,
                "finished": now(),
            }
            markers[position] = marker
            if self.rows[position].done is None:
                key = keys.ingest_key(self.layer, int(self.chunk_ids[position]))
                changes.append(RowMutation(key, [INGEST_DONE.set(marker), DeleteCells(INGEST_FAILED.key)]))
        self.graph.table.mutate(changes)
        self.count(markers, opened)
        return self.reports(markers)

    def count(self, markers: dict[int, dict[str, Any]], opened: OpenBlocks | None = None) -> None:
        """Take the chunks that are done into the counts of their blocks: new done-markers, and those found before."""
        indices = self.graph.grid.index(self.layer, self.coordinates).tolist()
        found = [row.done or markers.get(position) for position, row in enumerate(self.rows)]
        done = {i: INGEST_DONE.encode(marker) for i, marker in zip(indices, found, strict=True) if marker is not None}
        count_done(self.graph, self.layer, done, opened, self.blocks)

    def reports(self, markers: dict[int, dict[str, Any]]) -> list[ChunkReport]:
        """Make one report per chunk, including the skipped ones, from new or stored done-markers."""
        result = []
        for position, coordinate in enumerate(self.coordinates.tolist()):
            marker = markers.get(position) or self.rows[position].done or {}
            result.append(
                ChunkReport(
                    self.layer,
                    tuple(coordinate),
                    int(marker.get("nodes", 0)),
                    int(marker.get("supervoxels", 0)),
                    int(marker.get("edges", 0)),
                    float(marker.get("seconds", 0.0)),
                    skipped=position not in markers,
                )
            )
        return result


def open_chunk_tasks(graph: ChunkedGraph, layer: int, coordinates: npt.ArrayLike, *, again: bool = False) -> ChunkTasks:
    """Find out which chunks must be built.

    Parameters
    ----------
    coordinates
        Chunk coordinates at ``layer``, shape (n, 3), in any order.
    again
        Whether to include chunks that are done; exactly the same cells are then written again.

    Raises
    ------
    ConflictError
        If ``again`` is true and edits were made, since edits change cells of the ingest in place.
    ValueError
        If a coordinate is outside the grid.
    """
    coords = np.unique(np.asarray(coordinates, np.int64).reshape(-1, 3), axis=0)
    if ((coords < 0) | (coords >= graph.grid.shape(layer))).any():
        raise ValueError(f"a chunk is outside the grid of layer {layer}, {graph.grid.shape(layer)}")
    if again:
        refuse_if_edited(graph, f"Writing layer {layer} again")
    chunk_ids = graph.layout.chunk_ids(layer, coords)
    row_keys = keys.ingest_keys(layer, chunk_ids)
    blocks, found = read_blocks(graph, layer, graph.grid.index(layer, coords), row_keys, TASK_COLUMNS)
    rows = [decode_task_row(found.get(key)) for key in row_keys]
    todo = np.flatnonzero([again or row.done is None for row in rows])
    tasks = ChunkTasks(graph, layer, coords, chunk_ids, rows, todo, blocks=blocks)
    # Chunks that workers of earlier versions have built are not counted; nor are those of a killed worker.
    tasks.count({})
    return tasks


def _needs(
    task_chunks: UInt64Array, parents: NewParents, not_before: IntArray, edge_bytes: list[bytes]
) -> list[IdNeed]:
    first = np.searchsorted(parents.tasks, np.arange(len(task_chunks) + 1))
    needs = []
    for i, chunk_id in enumerate(task_chunks.tolist()):
        a, b = int(first[i]), int(first[i + 1])
        chunks, counts = np.unique(parents.chunks[a:b], return_counts=True)
        offsets = parents.children.offsets[a : b + 1]
        digest = hashlib.blake2b(parents.chunks[a:b].tobytes(), digest_size=8)
        digest.update((offsets - offsets[0]).tobytes())
        digest.update(parents.children.values[offsets[0] : offsets[-1]].tobytes())
        digest.update(edge_bytes[i])
        pairs = tuple(zip(chunks.tolist(), counts.tolist(), strict=True))
        needs.append(IdNeed(chunk_id, pairs, int(not_before[i]), digest.hexdigest()))
    return needs
