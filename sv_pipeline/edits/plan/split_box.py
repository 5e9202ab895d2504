"""Chooses the pieces of a supervoxel that a split may cut, and the box of voxels that it reads. Pure.

A watershed supervoxel that crosses chunk faces is stored as several supervoxels, joined by edges of affinity inf. Those
in the chunks of the points, and in the chunks around, are cut as one (the *members*); pieces farther away keep their
voxels::

    +-------+-------+-------+-------+
    |       |   m   |  m m  |       |     x  points      m  members
    +-------+-------+-------+-------+     o  pieces that are left unchanged
    |       | m x m | m x   |       |
    +-------+-------+-------+-------+     read: the chunks with members, and one voxel around them
    |   o   |  m    |       |       |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["BYTES_PER_VOXEL", "SplitBox", "split_box"]

BYTES_PER_VOXEL = 33
"""Memory for a voxel of the box during a split (ids, mask, depths, sides, nodes), in bytes, as measured by
``benchmarks/supervoxel_split.py``."""


@dataclass(frozen=True, eq=False)
class SplitBox:
    """The supervoxels that a split may cut, and the voxels that it reads."""

    members: UInt64Array
    """Supervoxels that may be cut, ascending."""
    chunks: npt.NDArray[np.int64]
    """Coordinates of their layer 2 chunks, shape (n, 3)."""
    box: Box
    """Voxels to read: these chunks and one voxel around them, clipped to the volume."""


def split_box(
    grid: ChunkGrid, layout: IdLayout, pieces: UInt64Array, points: npt.NDArray[np.int64], memory: int
) -> SplitBox:
    """Choose members and box.

    Parameters
    ----------
    pieces
        Supervoxels that are joined by edges of affinity inf, including those of the points.
    points
        Points of both sides on these supervoxels, in voxels (x, y, z), shape (n, 3).
    memory
        Memory available to the split, in bytes. If the chunks around the points do not fit, only the chunks of the
        points are used.

    Raises
    ------
    EditRefused
        If even the chunks of the points do not fit into memory, or no piece is near the points.
    """
    coordinates = layout.coordinates(pieces)
    low, high = grid.chunk_of(points).min(axis=0), grid.chunk_of(points).max(axis=0)
    for margin in (1, 0):
        inside = ((coordinates >= low - margin) & (coordinates <= high + margin)).all(axis=1)
        if not inside.any():
            raise EditRefused(
                Reason.BAD_REQUEST,
                "the voxels of the request are not near the supervoxels that it names for them.",
                remedy="Give voxels that lie on these supervoxels, or give voxels alone.",
            )
        chunks = np.unique(coordinates[inside], axis=0)
        size = np.asarray(grid.chunk_size)
        start = np.asarray(grid.bounds.start) + chunks.min(axis=0) * size
        stop = np.asarray(grid.bounds.start) + (chunks.max(axis=0) + 1) * size
        box = Box.of(start, stop).clip(grid.bounds).grow(1).clip(grid.bounds)
        if box.volume * BYTES_PER_VOXEL <= memory:
            return SplitBox(np.unique(pieces[inside]), chunks, box)
    fits = int((memory / BYTES_PER_VOXEL) ** (1 / 3))
    raise EditRefused(
        Reason.TOO_LARGE,
        f"the supervoxel and its points span {box} ({' x '.join(map(str, box.shape))} voxels), which takes "
        f"{box.volume * BYTES_PER_VOXEL / 1e9:.1f} GB; {memory / 1e9:.1f} GB are allowed, "
        f"which hold about {fits} x {fits} x {fits} voxels.",
        remedy="Place the points closer together, or allow more memory.",
    )
