"""The voxels of a mask as a flat list with neighbours, so that work and memory grow with the mask, not with its box."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask

__all__ = ["FACES", "HALF_NEIGHBOURS", "NEIGHBOURS", "Shift", "Voxels"]

Shift = tuple[int, int, int]

NEIGHBOURS: tuple[Shift, ...] = tuple(
    (x, y, z) for x, y, z in itertools.product((-1, 0, 1), repeat=3) if (x, y, z) != (0, 0, 0)
)
HALF_NEIGHBOURS = tuple(shift for shift in NEIGHBOURS if shift > (0, 0, 0))
"""One of each pair of opposite shifts."""

FACES = tuple(shift for shift in NEIGHBOURS if sum(map(abs, shift)) == 1)
"""Shifts to the six neighbours that share a face."""

PART_VOXELS = 1 << 15
"""Number of voxels that are worked on at once, where each of many steps would otherwise go through the memory."""

EVERY = slice(None)


class Voxels:
    """The voxels of a mask, numbered in x, y, z order.

    Parameters
    ----------
    mask
        Boolean array of shape (x, y, z).
    spacing
        Size of a voxel in nm (x, y, z).
    """

    def __init__(self, mask: Mask, spacing: tuple[float, float, float]) -> None:
        self.mask = np.ascontiguousarray(mask)
        self.spacing = np.asarray(spacing)
        self._shape = tuple(n + 2 for n in mask.shape)
        padded = np.pad(self.mask, 1)
        places = np.flatnonzero(padded)
        self.number = len(places)
        # Voxels outside the mask have the number ``number``, so an array with one more value includes its own border.
        self._numbers = np.full(padded.size, self.number, np.int32)
        self._numbers[places] = np.arange(self.number, dtype=np.int32)
        # Places are counted from the first neighbour of the first voxel, so that all 27 shifts are views that start
        # later: looking up neighbours then needs no sum of places and shifts.
        self._reach = self._step((1, 1, 1))
        self._places = places - self._reach
        self.coordinates = np.stack([x.astype(np.int32) for x in np.unravel_index(places, self._shape)], axis=1) - 1

    def _step(self, shift: Shift) -> int:
        return int((shift[0] * self._shape[1] + shift[1]) * self._shape[2] + shift[2])

    def neighbours(self, shift: Shift, part: slice | npt.NDArray[np.intp] = EVERY) -> npt.NDArray[np.int32]:
        """Return the number of each voxel's neighbour at ``shift``; ``self.number`` where it is outside the mask.

        With ``part``, only the neighbours of these voxels are returned.
        """
        return np.take(self._numbers[self._reach + self._step(shift) :], self._places[part])

    def parts(self) -> Iterator[slice]:
        """Yield slices of the voxels, in order, which are so short that work on one of them stays in the cache."""
        for start in range(0, self.number, PART_VOXELS):
            yield slice(start, min(start + PART_VOXELS, self.number))

    def numbers_of(self, coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """Return the numbers of mask voxels given by coordinates, shape (n,)."""
        return np.asarray(self._numbers[np.ravel_multi_index(tuple((coordinates + 1).T), self._shape)])

    def within(self, low: Coordinates, high: Coordinates) -> tuple[Coordinates, npt.NDArray[np.int32]]:
        """Return where a box starts and the numbers of its voxels, ``self.number`` outside the mask.

        The box is clipped to the mask's box and one voxel around it.
        """
        low, high = np.maximum(low, -1), np.minimum(high, np.array(self.mask.shape) + 1)
        box = tuple(slice(a, b) for a, b in zip((low + 1).tolist(), (high + 1).tolist(), strict=True))
        return low, self._numbers.reshape(self._shape)[box]

    def image(self, chosen: npt.NDArray[np.bool_]) -> Mask:
        """Convert a selection (one bool for each voxel) to a mask of the original box."""
        image = np.zeros(self.mask.shape, np.bool_)
        image[self.mask] = chosen
        return image
