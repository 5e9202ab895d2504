"""The names of the storage chunks of a mip, many at once, and their order as keys of a store. Pure; does no I/O.

A name has the form ``x-x_y-y_z-z``. Stores sort names by their bytes, so ``1024-1088`` comes before ``128-192``. Along
one axis, no text of a chunk is a prefix of another. Therefore chunks are sorted by the text of x, then of y, then of z,
and the place of a chunk among all chunks of the mip, its *rank*, can be computed without any names.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sv_pipeline.storage.volume_info import Scale

__all__ = ["ChunkNames"]

IntArray: TypeAlias = npt.NDArray[np.int64]
Names: TypeAlias = npt.NDArray[np.bytes_]


class ChunkNames:
    """Names and ranks of the storage chunks of one mip.

    Parameters
    ----------
    scale
        The mip.
    """

    def __init__(self, scale: Scale) -> None:
        self._scale = scale

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Number of chunks per axis (x, y, z)."""
        x, y, z = (-(-n // c) for n, c in zip(self._scale.size, self._scale.chunk_size, strict=True))
        return (x, y, z)

    def __len__(self) -> int:
        x, y, z = self.shape
        return x * y * z

    @cached_property
    def _texts(self) -> list[Names]:
        """For each axis, the part of the name that belongs to each position."""
        texts: list[Names] = []
        for axis in range(3):
            start, chunk = self._scale.voxel_offset[axis], self._scale.chunk_size[axis]
            stop = start + self._scale.size[axis]
            starts = range(start, stop, chunk)
            texts.append(np.array([f"{a}-{min(a + chunk, stop)}" for a in starts], np.bytes_))
        return texts

    @cached_property
    def _orders(self) -> list[IntArray]:
        """For each axis, the positions in the order of their texts."""
        return [np.argsort(texts).astype(np.int64) for texts in self._texts]

    @cached_property
    def _places(self) -> list[IntArray]:
        """For each axis, the place of each position in that order."""
        return [np.argsort(order).astype(np.int64) for order in self._orders]

    def names(self, cells: IntArray) -> Names:
        """Return the names of chunks at positions in the chunk grid, shape (n, 3)."""
        x, y, z = (texts[cells[:, axis]] for axis, texts in enumerate(self._texts))
        add = np.strings.add
        return np.asarray(add(add(add(add(x, b"_"), y), b"_"), z), np.bytes_)

    def ranks(self, cells: IntArray) -> IntArray:
        """Return the ranks of chunks at positions in the chunk grid, shape (n, 3)."""
        x, y, z = (places[cells[:, axis]] for axis, places in enumerate(self._places))
        return np.asarray((x * self.shape[1] + y) * self.shape[2] + z, np.int64)

    def cells(self, ranks: IntArray) -> IntArray:
        """Return the positions in the chunk grid of chunks with these ranks, shape (n, 3)."""
        places = np.unravel_index(ranks, self.shape)
        return np.stack([order[place] for order, place in zip(self._orders, places, strict=True)], axis=-1)
