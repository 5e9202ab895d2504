"""The chunks of a batch in groups that fit the memory budget; each group is durable before the next begins.

::

    batch of any length ─► slices of SLICE chunks: their ingest rows are read, finished chunks are left out
                             └─► groups of chunks, read one by one until the budget or the time is used
                                   └─► rows and done-markers of the group are written

So memory does not depend on the number of chunks of a batch, a worker that is killed loses one group, and progress is
seen every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.layer_tasks import ChunkReport, ChunkTasks, open_chunk_tasks
from sv_pipeline.ingest.progress import mark_failed
from sv_pipeline.memory import grouped
from sv_pipeline.storage.error_dump import add_details

__all__ = ["SLICE", "build_in_groups"]

Item = TypeVar("Item")

SHOWN = 64
"""Number of chunks of a failed group that a dump lists."""
FIRST_GROUP = 16
"""Largest number of chunks of a group while it is not known how long a chunk takes."""
SECONDS_PER_GROUP = 5.0
"""Time after which a group should be durable, about; a group that fits into it is as large as memory permits."""
_SECONDS_PER_CHUNK: dict[tuple[str, int], float] = {}
"""Seconds that a chunk took in the last group of a graph and layer in this process."""
SLICE = 256
"""Number of chunks whose ingest rows are in memory at a time, which is also the largest number of chunks of a group."""


def build_in_groups(
    graph: ChunkedGraph,
    layer: int,
    coordinates: npt.ArrayLike,
    read: Callable[[ChunkTasks], Iterable[Item]],
    cost: Callable[[Item], int],
    build: Callable[[ChunkTasks, list[Item]], list[ChunkReport]],
    *,
    budget: int,
    again: bool = False,
) -> Iterator[list[ChunkReport]]:
    """Build chunks group by group, and yield the reports of each group when its done-markers are durable.

    Parameters
    ----------
    coordinates
        Chunk coordinates at ``layer``, shape (n, 3), in any order.
    read
        Yields one item per chunk that must be built, in the order of its argument, and reads each when asked for it.
    cost
        Returns the bytes that the work on an item takes.
    build
        Builds the chunks of a group from their items, and returns one report per chunk.
    budget
        Largest sum of the costs of a group, in bytes; a single chunk may exceed it.
    again
        Whether to write chunks that are done once more, with exactly the same cells.

    Raises
    ------
    SvPipelineError
        The first failure. It is stored in the ingest rows of the chunks of its group; finished groups stay finished.
    """
    coords, pace = np.unique(np.asarray(coordinates, np.int64).reshape(-1, 3), axis=0), (graph.graph_id, layer)

    def share(item: Item) -> int:
        return max(cost(item), budget // _most_chunks(pace))

    for start in range(0, len(coords), SLICE):
        tasks = open_chunk_tasks(graph, layer, coords[start : start + SLICE], again=again)
        if skipped := tasks.skipped_reports():
            yield skipped
        first = seen = 0

        def watched(tasks: ChunkTasks = tasks) -> Iterator[Item]:
            nonlocal seen
            for item in read(tasks):
                seen += 1
                yield item

        try:
            began = time.monotonic()
            for group in grouped(watched() if len(tasks.todo) else [], share, budget):
                yield build(tasks.part(first, first + len(group)), group)
                first += len(group)
                reach("group of chunks done")
                _SECONDS_PER_CHUNK[pace] = (time.monotonic() - began) / len(group)
                began = time.monotonic()
        except SvPipelineError as error:
            # The chunks of the group, and the one that was being read.
            failed = tasks.task_coordinates[first : seen + 1]
            name = "_".join(map(str, [f"graph_L{layer:02d}", *failed[:1].ravel()]))
            add_details(error, name, partial(_details, graph, failed))
            mark_failed(graph, layer, failed, error)
            raise


def _most_chunks(pace: tuple[str, int]) -> int:
    """Return the number of chunks that take about SECONDS_PER_GROUP, as far as that is known."""
    seconds = _SECONDS_PER_CHUNK.get(pace)
    return FIRST_GROUP if seconds is None else int(min(max(SECONDS_PER_GROUP / max(seconds, 1e-6), 1), SLICE))


def _details(graph: ChunkedGraph, failed: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {"graph": graph.graph_id, "group": {"count": len(failed), "coordinates": failed[:SHOWN].tolist()}}
