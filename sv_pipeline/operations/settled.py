"""Reads of a graph during edits: an answer is as of one moment, and contains whole edits only. Knows no query.

An edit changes rows one by one, so a query that reads several rows may read some of them before and some after it. Two
mechanisms make the answer consistent, without locks and without waiting for anybody:

- *Hidden cells.* Cells of operations that are being written are hidden (`half_written`). A cell that an edit replaces
  still exists below the new cell, so what remains visible is the state before the edit. The same is true of an
  operation whose process was stopped or has died: until it is recovered, readers see the state before it.
- *A second read.* Afterwards, first the list of operations that are being written and then the rows are read again. If
  the rows have not changed, and no further cells of them must be hidden, then the answer is the state at the moment
  between the two reads: it contains all of each operation that had ended by then, and nothing of the others. Otherwise
  the query is repeated.

Voxels and rows are consistent because every supervoxel that is read must be a leaf of the graph at that moment, and the
id of a voxel changes only when its supervoxel is replaced. A supervoxel that was created by an operation that is being
written is read from the generation before it. If a supervoxel is missing or has been replaced, the voxels are read
again.

A long query about objects that are edited all the time may be disturbed repeatedly. It is then answered as of a time in
the past, which later edits do not affect.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import SvPipelineError, UnavailableError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.half_written import read_half_written
from sv_pipeline.operations.settled_table import SettledTable
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.ocdbt import Version
from sv_pipeline.storage.reading import read_box
from sv_pipeline.table import keys
from sv_pipeline.table.columns import NEW_IDS, PARENT

__all__ = ["SettledGraph", "settled"]

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

PATIENCE = 60.0
"""Seconds for which a query is repeated."""
BACKOFF = Backoff(0.005, 0.05)
UNDISTURBED_ATTEMPTS = 3
"""Number of attempts as of now; later attempts are as of a fixed time."""


class _Disturbed(Exception):  # noqa: N818 - never leaves this module
    """The graph has changed while it was read."""


def settled(graph: ChunkedGraph, question: Callable[[SettledGraph], Answer], *, patience: float = PATIENCE) -> Answer:
    """Answer a query as of one moment during the call, with whole edits only.

    Parameters
    ----------
    graph
        The graph to read.
    question
        The query. It reads the graph that it is given, which has the same methods as any other, and may be called
        several times.
    patience
        Seconds after which the call fails.

    Raises
    ------
    UnavailableError
        If the objects are changed all the time.
    """
    if isinstance(graph, SettledGraph):
        return question(graph)  # it is a part of another query
    deadline = time.monotonic() + patience
    half_written, until, attempt = read_half_written(graph.table), None, 0
    while True:
        rows = SettledTable(graph.table.name, graph.table, half_written, until, read_only=True)
        view = SettledGraph(rows, graph.meta, graph.grid, graph.layout)
        error: Exception | None = None
        try:
            answer = question(view)
        except UnavailableError:
            raise
        except _Disturbed:
            error = None
        # Rows from different moments may lead to any of these errors; if the rows were consistent, the error is valid.
        except (SvPipelineError, ValueError, LookupError, AssertionError) as raised:
            error = raised
            if view.is_still_so():
                raise
        else:
            if view.is_still_so():
                return answer
        attempt += 1
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"objects of graph {graph.graph_id!r} changed {attempt} times while they were read.",
                remedy="Ask for a time a few seconds ago, or for fewer objects at once.",
            ) from error
        log.debug("graph %s has changed while it was read; attempt %d follows", graph.graph_id, attempt + 1)
        time.sleep(BACKOFF.jittered(attempt))
        half_written = read_half_written(graph.table)
        if attempt >= UNDISTURBED_ATTEMPTS:
            # The time is not before cells that were seen, since clocks of editors may be ahead of this one.
            until = max(time.time_ns() // 1_000_000, rows.newest())


@dataclass(frozen=True)
class SettledGraph(ChunkedGraph):
    """A graph for the duration of one query; see the module's docstring."""

    @property
    def rows(self) -> SettledTable:
        """The table, as a `SettledTable`."""
        assert isinstance(self.table, SettledTable)
        return self.table

    def is_still_so(self) -> bool:
        """Whether everything that was read is the state of one moment."""
        rows = self.rows
        now = read_half_written(rows.inner)
        return rows.half_written.same_for(now, rows.read_keys()) and rows.reads_the_same()

    def supervoxels_at(self, volume: Any, coordinates: npt.ArrayLike, *, until: int | None = None) -> UInt64Array:
        """Return the supervoxels at voxels, consistent with the rows that this query reads.

        See :func:`~sv_pipeline.graph.queries.supervoxels_at`.

        Parameters
        ----------
        volume
            The segmentation; if ``until`` is given, the segmentation at that time.
        coordinates
            Voxels, shape (n, 3).
        until
            Time in milliseconds; None means now.
        """
        points = np.asarray(coordinates, np.int64).reshape(-1, 3)

        def read(version: Version | None) -> UInt64Array:
            source = volume if version is None else self._fork(version)
            return queries.supervoxels_at(self, source, points)

        return self._live(read, until)

    def read_voxels(
        self, box: Box, *, version: Version | None = None, until: int | None = None
    ) -> tuple[int, UInt64Array]:
        """Read a generation of the fork, and the supervoxels of a box in it, consistent with the rows of this query.

        Parameters
        ----------
        box
            The voxels to read.
        version
            Generation; default: the latest.
        until
            Time in milliseconds to which the generation belongs; None means now.
        """
        generation: list[int] = []

        def read(asked: Version | None) -> UInt64Array:
            if asked is None:
                asked = version or self.fork.generation()
                generation.append(int(asked))
            return np.asarray(read_box(self._fork(asked)[box.slices]), np.uint64)

        voxels = self._live(read, until)
        return generation[0], voxels

    def _fork(self, version: Version) -> Any:
        # Each chunk is read once, so a cache would only hold a second copy of all chunks.
        return self.fork.open(version=version, context=uncached_context())

    def _live(self, read: Callable[[Version | None], UInt64Array], until: int | None) -> UInt64Array:
        """Return supervoxels at some places, all of which are leaves of the graph at this moment.

        Parameters
        ----------
        read
            Function that reads them at a generation, or (for None) at the requested version.
        until
            Time in milliseconds; None means now.
        """
        found = read(None)
        shown = found
        for operation in self.rows.half_written.operations:
            if operation.generation is None or not len(operation.supervoxels):
                continue
            made = np.isin(shown, operation.supervoxels)
            if made.any():
                shown = np.where(made, read(operation.generation), shown)
        distinct = np.unique(shown[shown != 0])
        row_keys = keys.node_keys(distinct)
        rows = self.table.read_rows(row_keys, [PARENT.key, NEW_IDS.key], until=until, newest_only=True)
        stale = [PARENT.key not in (row := rows.get(key, {})) or NEW_IDS.key in row for key in row_keys]
        # Voxels are committed before rows change, and restored before rows are. In both cases the voxels differ now.
        if any(stale) and not np.array_equal(read(None), found):
            raise _Disturbed
        return shown
