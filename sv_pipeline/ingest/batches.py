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

__all__ = ["MAX_BATCHES", "Batch", "Stage", "plan_batches"]

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


def plan_batches(
    stage: Stage, layer: int, grid: ChunkGrid, missing: npt.NDArray[np.int64] | Sequence[Sequence[int]], per_batch: int
) -> list[Batch]:
    """Cut a layer into batches and keep those with missing chunks.

    Parameters
    ----------
    missing
        Coordinates of the chunks without a done-marker, shape (n, 3).
    per_batch
        Number of chunks of a batch; larger if the layer would otherwise need more than :data:`MAX_BATCHES`.
    """
    coords = np.asarray(missing, np.int64).reshape(-1, 3)
    if not len(coords):
        return []
    count = grid.count(layer)
    size = max(per_batch, -(-count // MAX_BATCHES))
    starts = np.unique(grid.index(layer, coords) // size) * size
    return [Batch(stage, layer, int(first), int(min(first + size, count))) for first in starts]
