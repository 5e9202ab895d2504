"""The voxels of a mask as a flat list with neighbours, so that work and memory grow with the mask, not with its box."""

from __future__ import annotations

import itertools

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
        self._places = np.flatnonzero(padded)
        self.number = len(self._places)
        # Voxels outside the mask have the number ``number``, so an array with one more value includes its own border.
        self._numbers = np.full(padded.size, self.number, np.int32)
        self._numbers[self._places] = np.arange(self.number, dtype=np.int32)
        self.coordinates = (
            np.stack([x.astype(np.int32) for x in np.unravel_index(self._places, self._shape)], axis=1) - 1
        )

    def neighbours(self, shift: Shift) -> npt.NDArray[np.int32]:
        """Return the number of each voxel's neighbour at ``shift``; ``self.number`` where it is outside the mask."""
        step = (shift[0] * self._shape[1] + shift[1]) * self._shape[2] + shift[2]
        return np.asarray(self._numbers[self._places + step])

    def numbers_of(self, coordinates: Coordinates) -> npt.NDArray[np.int32]:
        """Return the numbers of mask voxels given by coordinates, shape (n,)."""
        return np.asarray(self._numbers[np.ravel_multi_index(tuple((coordinates + 1).T), self._shape)])

    def image(self, chosen: npt.NDArray[np.bool_]) -> Mask:
        """Convert a selection (one bool for each voxel) to a mask of the original box."""
        image = np.zeros(self.mask.shape, np.bool_)
        image[self.mask] = chosen
        return image
