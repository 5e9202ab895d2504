"""Batches, the units of work of a worker, as values that can be written as short strings. Planned here, but not run.

A batch is a range of chunk *indices* in one layer's grid, not a list of missing chunks. A batch that was planned before
a crash therefore means the same afterwards, and the process that runs it builds only the chunks without a done-marker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid

__all__ = ["MAX_BATCHES", "Batch", "Stage", "batch_count", "cut_batches", "plan_batches", "spread_order"]

MAX_BATCHES = 200
"""Maximum number of batches per layer; with more, Dagster's cost per step outweighs the work."""


class Stage(StrEnum):
    """Kind of work that is done chunk by chunk."""

    LABELS = "labels"
    """Makes the supervoxels of a chunk from the source segmentation."""
    EDGES = "edges"
    """Makes the edge and component files of a chunk."""
    GRAPH = "graph"
    """Makes the nodes of a chunk of the chunked graph."""
    VOXELS = "voxels"
    """Copies a chunk's voxels, at all mips, into the base."""


@dataclass(frozen=True)
class Batch:
    """The chunks of a layer with indices from ``first`` up to but not including ``stop``, for one stage."""

    stage: Stage
    layer: int
    first: int
    stop: int

    @property
    def key(self) -> str:
        """Short name of the batch, made of letters, digits and ``_`` only."""
        return f"{self.stage}_L{self.layer:02d}_{self.first}_{self.stop}"

    @classmethod
    def parse(cls, key: str) -> Batch:
        """Return the batch that a :attr:`key` names."""
        match = re.fullmatch(r"([a-z]+)_L(\d+)_(\d+)_(\d+)", key)
        if match is None:
            raise ValueError(f"{key!r} is not the key of a batch")
        return cls(Stage(match[1]), int(match[2]), int(match[3]), int(match[4]))

    def coordinates(self, grid: ChunkGrid) -> npt.NDArray[np.int64]:
        """Chunk coordinates of the batch, shape (n, 3)."""
        index = np.arange(self.first, min(self.stop, grid.count(self.layer)))
        return np.stack(np.unravel_index(index, grid.shape(self.layer)), axis=-1).astype(np.int64)


def _batch_size(count: int, per_batch: int) -> int:
    return max(per_batch, -(-count // MAX_BATCHES))


def batch_count(count: int, per_batch: int) -> int:
    """Return the number of batches of a layer of ``count`` chunks of which nothing is done."""
    return -(-count // _batch_size(count, per_batch))


def plan_batches(
    stage: Stage,
    layer: int,
    grid: ChunkGrid,
    missing: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | Sequence[Sequence[int]],
    per_batch: int,
) -> list[Batch]:
    """Cut a layer into batches and keep those with missing chunks, in the order of `spread_order`.

    Parameters
    ----------
    missing
        The chunks without a done-marker: their coordinates, shape (n, 3), or for each chunk, by its index, whether it
        is one of them, shape (chunks,).
    per_batch
        Number of chunks of a batch; larger if the layer would otherwise need more than :data:`MAX_BATCHES`.
    """
    count, chunks = grid.count(layer), np.asarray(missing)
    size = _batch_size(count, per_batch)
    if chunks.dtype == np.bool_:
        numbers = np.flatnonzero(np.logical_or.reduceat(chunks, np.arange(0, count, size)))
    else:
        numbers = np.unique(grid.index(layer, np.asarray(missing, np.int64).reshape(-1, 3)) // size)
    order = spread_order(numbers.astype(np.int64), batch_count(count, per_batch))
    return [Batch(stage, layer, int(n * size), int(min((n + 1) * size, count))) for n in order]


def spread_order(numbers: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return batch numbers in the order of work: those that follow each other in time lie far apart in the layer.

    Neighbouring batches write neighbouring rows, so workers that took them in their natural order would all write to
    one tablet of a Bigtable. The order is that of the numbers with their bits reversed (0, 4, 2, 6, 1, ...): any first
    part of it covers the layer evenly. It depends on nothing but the number itself and the number of batches.

    Parameters
    ----------
    numbers
        Numbers of batches, shape (n,).
    count
        Number of batches of the layer; the numbers are below it.
    """
    bits = max(1, count - 1).bit_length()
    reversed_bits = np.zeros_like(numbers)
    for bit in range(bits):
        reversed_bits = reversed_bits << 1 | numbers >> bit & 1
    return numbers[np.argsort(reversed_bits)]


def cut_batches(batches: Sequence[Batch], per_batch: int, most: int) -> list[Batch]:
    """Cut batches of one stage and layer into smaller ones, where that does not make more than ``most`` of them.

    The order is that of the given batches, and then that of the pieces: the first piece of each batch, the second of
    each, and so on. Batches that follow each other therefore lie far apart in the layer.

    Parameters
    ----------
    per_batch
        Smallest number of chunks of a piece; only the last one of a batch may be smaller.
    most
        Largest number of pieces; a batch is never joined with another, so that there are not fewer pieces than batches.
    """
    size = max(per_batch, -(-sum(batch.stop - batch.first for batch in batches) // most))
    # Rounding makes one more piece of each batch, so that the size is adjusted until the number fits.
    while (pieces := sum(-(-(b.stop - b.first) // size) for b in batches)) > max(most, len(batches)):
        size += max(1, size * (pieces - most) // most)
    return [
        Batch(batch.stage, batch.layer, first, min(first + size, batch.stop))
        for offset in range(0, max((b.stop - b.first for b in batches), default=0), size)
        for batch in batches
        if (first := batch.first + offset) < batch.stop
    ]
