"""The chunk grid: boxes of voxels and chunk coordinates, per layer. Knows ids only through their coordinates.

Layers 1 and 2 share one grid of chunks of ``chunk_size`` voxels that starts at the volume's voxel offset. A chunk of a
higher layer groups 2 x 2 x 2 chunks of the layer below. Coordinates are (x, y, z) in voxels of the base mip.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConfigError

__all__ = ["Box", "ChunkGrid"]

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels, ``start`` inclusive and ``stop`` exclusive, in absolute coordinates (x, y, z)."""

    start: Triple
    stop: Triple

    @classmethod
    def of(cls, start: npt.ArrayLike, stop: npt.ArrayLike) -> Box:
        """Create a box from anything that NumPy reads as two triples of integers."""
        a, b = (tuple(int(v) for v in np.asarray(e).ravel()) for e in (start, stop))
        return cls(a, b)  # type: ignore[arg-type]

    @property
    def shape(self) -> Triple:
        """Voxels per axis; 0 along axes where the box is empty."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))  # type: ignore[return-value]

    @property
    def volume(self) -> int:
        """Number of voxels."""
        x, y, z = self.shape
        return x * y * z

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that index an array or store in absolute coordinates."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))  # type: ignore[return-value]

    def clip(self, other: Box) -> Box:
        """Return the part of the box inside ``other``, which may be empty."""
        start = np.maximum(self.start, other.start)
        return Box.of(start, np.maximum(start, np.minimum(self.stop, other.stop)))

    def grow(self, margin: int) -> Box:
        """Return the box enlarged by ``margin`` voxels on every side."""
        return Box.of(np.asarray(self.start) - margin, np.asarray(self.stop) + margin)

    def shifted(self, by: npt.ArrayLike) -> Box:
        """Return the box moved by a vector (x, y, z) in voxels."""
        return Box.of(np.asarray(self.start) + by, np.asarray(self.stop) + by)

    def slabs(self, unit: npt.ArrayLike, limit: int) -> Iterator[Box]:
        """Divide the box into pieces of about ``limit`` voxels.

        Parameters
        ----------
        unit
            Pieces start at multiples of this shape (x, y, z) from the start of the box.
        limit
            Largest number of voxels of a piece that consists of several units.
        """
        unit = np.asarray(unit, np.int64)
        size = np.minimum(self.shape, unit)
        # Pieces grow along x, then y, then z, so that they are long in memory order.
        for axis in range(3):
            room = limit // max(1, int(np.prod(size)))
            size[axis] = min(self.shape[axis], int(size[axis]) * max(1, room))
            if size[axis] < self.shape[axis]:
                size[axis] -= size[axis] % unit[axis]
                break
        if self.volume == 0:
            return
        starts = [range(0, n, int(s)) for n, s in zip(self.shape, size, strict=True)]
        for start in itertools.product(*starts):
            yield Box.of(start, np.add(start, size)).shifted(self.start).clip(self)

    def __str__(self) -> str:
        return " ".join(f"{axis}[{a}:{b}]" for axis, a, b in zip("xyz", self.start, self.stop, strict=True))


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks of a volume at all layers.

    Parameters
    ----------
    bounds
        Box of the volume at the base mip.
    chunk_size
        Size in voxels (x, y, z) of a chunk of layer 1 or 2.
    """

    bounds: Box
    chunk_size: Triple

    def __post_init__(self) -> None:
        if any(s < 1 for s in self.chunk_size):
            raise ConfigError(f"graph_config.CHUNK_SIZE must be three positive numbers, not {self.chunk_size}.")
        if self.bounds.volume == 0:
            raise ConfigError(f"the volume is empty ({self.bounds}).")

    @cached_property
    def n_layers(self) -> int:
        """Number of layers including the root layer: ceil(log2(chunks along the longest axis)) + 2."""
        return (max(self.shape(2)) - 1).bit_length() + 2

    def shape(self, layer: int) -> Triple:
        """Return the number of chunks per axis at ``layer``."""
        n = -(-np.asarray(self.bounds.shape) // np.asarray(self.chunk_size))
        for _ in range(max(0, layer - 2)):
            n = -(-n // 2)
        return tuple(int(v) for v in n)  # type: ignore[return-value]

    def count(self, layer: int) -> int:
        """Return the number of chunks at ``layer``."""
        x, y, z = self.shape(layer)
        return x * y * z

    def coordinates(self, layer: int) -> IntArray:
        """Return all chunk coordinates of ``layer``, shape (n, 3), in the order of their index (z fastest)."""
        return np.stack(np.unravel_index(np.arange(self.count(layer)), self.shape(layer)), axis=-1).astype(np.int64)

    def index(self, layer: int, coordinates: npt.ArrayLike) -> IntArray:
        """Convert chunk coordinates of shape (n, 3) to running indices of shape (n,)."""
        coords = np.asarray(coordinates)
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(coords, -1, 0)), self.shape(layer)), np.int64)

    def size(self, layer: int) -> Triple:
        """Return the voxels per axis of a chunk of ``layer``."""
        return tuple(int(s) << max(0, layer - 2) for s in self.chunk_size)  # type: ignore[return-value]

    def box(self, layer: int, coordinate: npt.ArrayLike) -> Box:
        """Return the voxels of one chunk, clipped to the volume."""
        start = np.asarray(self.bounds.start) + np.asarray(coordinate) * np.asarray(self.size(layer))
        return Box.of(start, start + self.size(layer)).clip(self.bounds)

    def chunk_of(self, voxels: npt.ArrayLike) -> IntArray:
        """Return the layer 2 chunk coordinates of voxels; both have shape (n, 3)."""
        return np.asarray((np.asarray(voxels, np.int64) - self.bounds.start) // np.asarray(self.chunk_size), np.int64)

    def children(self, layer: int, coordinate: npt.ArrayLike) -> IntArray:
        """Return the coordinates of the chunks of ``layer - 1`` inside one chunk of ``layer`` >= 3, shape (n, 3)."""
        corners = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), axis=-1)
        coords = 2 * np.asarray(coordinate, np.int64) + corners
        return coords[(coords < self.shape(layer - 1)).all(axis=-1)]
