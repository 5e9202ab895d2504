"""Reading a graph beside edits: an answer is of one moment, and of whole edits only. Knows no question.

An edit switches rows over one by one, so a question that reads several rows may meet some before and some after it. Two
things make its answer one of a moment, without a lock and without waiting for anybody:

- *Hidden cells.* Cells of operations that are being written are not shown (`half_written`). Every cell that an edit
  replaces is still below its own, so what is left is the state before. This holds as well for an operation whose
  process was stopped or has died half way: readers see the state before it until it is recovered.
- *The same again.* Afterwards it is looked once more at what is being written, and then at the rows. If the rows that
  were read have not changed, and nothing of them is to be hidden that was not, then all of it was so at the moment
  between the two: operations that had ended by then are in the answer as a whole, the others not at all. If not, the
  question is asked again.

Voxels and rows fit together because every supervoxel that is read must be a live leaf at that moment; a voxel's id
changes only when its supervoxel is replaced. One that an operation which is being written has made is read from the
generation before it; one that is gone or has been replaced is read again.

A question that is disturbed again and again, since it is long and its objects are edited all the time, is asked as of
a moment: later edits do not touch that.
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
from sv_pipeline.table import keys
from sv_pipeline.table.columns import NEW_IDS, PARENT

__all__ = ["SettledGraph", "settled"]

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

PATIENCE = 60.0
BACKOFF = Backoff(0.005, 0.05)
"""Seconds for which a question is asked again at most; the fourth time it is as of a moment already."""
UNDISTURBED_ATTEMPTS = 3


class _Disturbed(Exception):  # noqa: N818 - never leaves this module
    """Something has changed while it was read."""


def settled(graph: ChunkedGraph, question: Callable[[SettledGraph], Answer], *, patience: float = PATIENCE) -> Answer:
    """The answer to a question, as of one moment during the call and of whole edits only.

    Parameters
    ----------
    question
        Reads the graph that it is given, which has the same methods as any other. It may be asked several times.
    patience
        Seconds after which it is given up.

    Raises
    ------
    UnavailableError
        If the objects change all the time.
    """
    if isinstance(graph, SettledGraph):
        return question(graph)  # part of a question
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
        # What mixed rows lead to may be any of these; if the rows were not mixed, it is the answer.
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
                remedy="Ask as of a time a few seconds ago, or for fewer objects at once.",
            ) from error
        log.debug("graph %s has changed while it was read, attempt %d", graph.graph_id, attempt + 1)
        time.sleep(BACKOFF.jittered(attempt))
        half_written = read_half_written(graph.table)
        if attempt >= UNDISTURBED_ATTEMPTS:
            # Not before what has been seen: clocks of editors may be ahead of this one.
            until = max(time.time_ns() // 1_000_000, rows.newest())


@dataclass(frozen=True)
class SettledGraph(ChunkedGraph):
    """A graph for the time of one question; see the module."""

    @property
    def rows(self) -> SettledTable:
        """The table, as what it is."""
        assert isinstance(self.table, SettledTable)
        return self.table

    def is_still_so(self) -> bool:
        """Whether all that was read was so at one moment."""
        rows = self.rows
        now = read_half_written(rows.inner)
        return rows.half_written.same_for(now, rows.read_keys()) and rows.reads_the_same()

    def supervoxels_at(self, volume: Any, coordinates: npt.ArrayLike, *, until: int | None = None) -> UInt64Array:
        """What :func:`~sv_pipeline.graph.queries.supervoxels_at` gives, fitting the rows of this moment.

        Parameters
        ----------
        volume
            The segmentation; or that of a moment, if ``until`` is one.
        until
            Milliseconds; None = now.
        """
        points = np.asarray(coordinates, np.int64).reshape(-1, 3)

        def read(version: Version | None) -> UInt64Array:
            source = volume if version is None else self._fork(version)
            return queries.supervoxels_at(self, source, points)

        return self._live(read, until)

    def read_voxels(
        self, box: Box, *, version: Version | None = None, until: int | None = None
    ) -> tuple[int, UInt64Array]:
        """A generation of the fork, and the supervoxels of a box in it, fitting the rows of this moment.

        Parameters
        ----------
        version
            Generation; default: the latest.
        until
            Milliseconds that the generation belongs to; None = now.
        """
        generation: list[int] = []

        def read(asked: Version | None) -> UInt64Array:
            if asked is None:
                asked = version or self.fork.generation()
                generation.append(int(asked))
            return np.asarray(self._fork(asked)[box.slices].read(order="F").result(), np.uint64)

        voxels = self._live(read, until)
        return generation[0], voxels

    def _fork(self, version: Version) -> Any:
        # Each chunk is read once: a cache would hold all of them a second time.
        return self.fork.open(version=version, context=uncached_context())

    def _live(self, read: Callable[[Version | None], UInt64Array], until: int | None) -> UInt64Array:
        """Supervoxels at some places, all of them leaves of this moment.

        Parameters
        ----------
        read
            Reads them at a generation, or (None) as they are asked for.
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
        # Voxels are committed before rows switch over, and put back before rows are: then they are others by now.
        if any(stale) and not np.array_equal(read(None), found):
            raise _Disturbed
        return shown
