"""A block of chunks of a layer: its row of counts, and the scan of its ingest rows. `kept_counts` has the protocol."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ingest.reservations import now
from sv_pipeline.ingest.tallies import Markers, Tally
from sv_pipeline.table import keys
from sv_pipeline.table.columns import BLOCK_COUNTS, BLOCK_STATES, INGEST_DONE, INGEST_FAILED
from sv_pipeline.table.interface import Cell, CellMatch, ColumnKey, DeleteCells, RowKeyRange, RowView, SetCell

__all__ = ["CHUNKS_PER_BLOCK", "OPEN", "Block", "block_numbers", "marks_of", "n_blocks", "positions_in_blocks"]

CHUNKS_PER_BLOCK = 8192
"""Number of chunks, with consecutive indices, whose counts are in one row. It is part of the stored format."""
OPEN = b"open:"
"""Prefix of the qualifiers of open marks."""

IntArray = npt.NDArray[np.int64]


def n_blocks(graph: ChunkedGraph, layer: int) -> int:
    """Return the number of blocks of a layer."""
    return -(-graph.grid.count(layer) // CHUNKS_PER_BLOCK)


def block_numbers(indices: npt.ArrayLike) -> list[int]:
    """Return the numbers of the blocks of chunks, ascending."""
    numbers: list[int] = np.unique(np.asarray(indices, np.int64) // CHUNKS_PER_BLOCK).tolist()
    return numbers


def positions_in_blocks(graph: ChunkedGraph, layer: int, indices: npt.ArrayLike) -> Iterator[tuple[Block, IntArray]]:
    """Yield the blocks of chunks, and the positions of the chunks in each block, ascending."""
    wanted = np.unique(np.asarray(indices, np.int64))
    numbers, starts = np.unique(wanted // CHUNKS_PER_BLOCK, return_index=True)
    for number, part in zip(numbers.tolist(), np.split(wanted, starts[1:]), strict=False):
        block = Block(graph, layer, number)
        yield block, part - block.first


def marks_of(row: RowView | None) -> list[ColumnKey]:
    """Return the columns of the open marks in a row of counts."""
    return [column for column in row or () if column.qualifier.startswith(OPEN)]


@dataclass(frozen=True)
class Block:
    """A block of consecutive chunks of a layer."""

    graph: ChunkedGraph
    layer: int
    number: int

    @property
    def key(self) -> bytes:
        """Key of the row of counts."""
        return keys.counts_key(self.layer, self.number)

    @property
    def first(self) -> int:
        """Index of the first chunk."""
        return self.number * CHUNKS_PER_BLOCK

    @property
    def size(self) -> int:
        """Number of chunks."""
        return min(CHUNKS_PER_BLOCK, self.graph.grid.count(self.layer) - self.first)

    def ingest_keys(self, positions: npt.ArrayLike) -> list[bytes]:
        """Return the keys of the ingest rows of the chunks at some positions."""
        index = np.asarray(positions, np.int64) + self.first
        coordinates = np.stack(np.unravel_index(index, self.graph.grid.shape(self.layer)), axis=-1)
        return keys.ingest_keys(self.layer, self.graph.layout.chunk_ids(self.layer, coordinates))

    @property
    def range(self) -> RowKeyRange:
        """The ingest rows of the block: keys have the order of indices."""
        first, last = self.ingest_keys([0, self.size - 1])
        return RowKeyRange(first, last + b"\0")

    def markers(self, rows: Iterable[tuple[bytes, RowView]]) -> Markers:
        """Decode ingest rows of the block; rows of chunks outside the grid are left out."""
        row_keys, views = [], []
        for key, row in rows:
            row_keys.append(key)
            views.append(row)
        grid = self.graph.grid
        coordinates = self.graph.layout.coordinates(keys.ingest_chunks(row_keys)).reshape(-1, 3)
        inside = (coordinates < grid.shape(self.layer)).all(axis=-1)
        positions = np.full(len(row_keys), -1, np.int64)
        positions[inside] = grid.index(self.layer, coordinates[inside]) - self.first
        done_at, done, failures = [], [], []
        for position, row in zip(positions.tolist(), views, strict=True):
            if position < 0:
                continue
            if cells := row.get(INGEST_DONE.key):
                done_at.append(position)
                done.append(cells[0].value)
            elif (failure := INGEST_FAILED.newest(row)) is not None:
                failures.append((position, failure))
        return Markers.decode(np.array(done_at, np.int64), done, failures)

    def tally(self, row: RowView | None) -> Tally | None:
        """Read the tally in the row of counts; None if there is none."""
        counts = BLOCK_COUNTS.newest(row)
        if counts is None:
            return None
        states = BLOCK_STATES.newest(row)
        if states is None:
            raise CorruptionError(
                f"row {self.key!r} has counts, but no states of the chunks.",
                remedy="Delete the rows whose keys begin with 'sv_pipeline:counts'; the next ingest counts anew.",
            )
        return Tally.of(counts, states)

    def scan(self) -> Tally:
        """Count all markers of the block."""
        rows = self.graph.table.scan([self.range], [INGEST_DONE.key, INGEST_FAILED.key], newest_only=True)
        tally = Tally.empty(self.size)
        tally.add(np.arange(self.size), self.markers(rows))
        return tally

    def replace(self, row: RowView | None, tally: Tally, marks: Iterable[ColumnKey]) -> RowView | None:
        """Store a tally and remove marks, unless the counts have changed since ``row`` was read; return the new row."""
        found = next(iter(BLOCK_COUNTS.cells(row)), None)
        # The newest cell counts, so a worker whose clock is behind must not write an older one.
        timestamp = max(now(), 0 if found is None else found.timestamp)
        value = {**tally.counts(), "token": uuid.uuid4().hex[:12]}
        cells: list[SetCell] = [BLOCK_COUNTS.set(value, timestamp), BLOCK_STATES.set(tally.states, timestamp)]
        changes: list[SetCell | DeleteCells] = [*cells, *(DeleteCells(mark) for mark in marks)]
        table = self.graph.table
        if found is None:
            stored = not table.check_and_mutate(self.key, [CellMatch(BLOCK_COUNTS.key)], if_unmatched=changes)
        else:
            stored = table.check_and_mutate(self.key, [CellMatch(BLOCK_COUNTS.key, found.value)], if_matched=changes)
        return {cell.column: [Cell(timestamp, cell.value)] for cell in cells} if stored else None
