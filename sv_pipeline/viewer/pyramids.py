"""Voxels at any resolution, read from the mips of a volume. Knows no browser.

A viewer asks for voxels at a *factor*, the number of voxels of mip 0 per requested voxel and axis. They are read from
the coarsest mip whose own factor divides it, and every n-th voxel of that mip is taken::

    factor (4, 4, 2), mips of factors (1, 1, 1), (2, 2, 1), (4, 4, 4)  ->  mip 1, every (2, 2, 2)th voxel

So a view of a whole volume does not read mip 0 if the volume has coarser mips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import Box

__all__ = ["Pyramid", "PyramidMip", "factor_between"]

Triple = tuple[int, int, int]
Voxels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PyramidMip:
    """One mip of a volume."""

    factor: Triple
    """Number of voxels of mip 0 per voxel of this mip, along x, y, z."""
    bounds: Box
    """Box of the mip in its own voxels."""
    read: Callable[[Box], Voxels]
    """Returns the voxels of a box inside the bounds, in an array of the box's shape."""


@dataclass(frozen=True, eq=False)
class Pyramid:
    """A volume with its mips. The first voxel of each mip covers the first voxels of mip 0."""

    mips: tuple[PyramidMip, ...]
    """At least one mip; the first has the factor (1, 1, 1)."""
    resolution: tuple[float, float, float]
    """Nanometres per voxel of mip 0 along x, y, z."""
    dtype: np.dtype[Any]

    @property
    def bounds(self) -> Box:
        """Box of the volume in voxels of mip 0."""
        return self.mips[0].bounds

    @property
    def coarsest(self) -> int:
        """Number of voxels of mip 0 in a voxel of the coarsest mip."""
        return max(int(np.prod(mip.factor)) for mip in self.mips)

    def mip_for(self, factor: Triple) -> PyramidMip:
        """Return the coarsest mip that contains the voxels of a factor."""
        usable = [mip for mip in self.mips if not (np.asarray(factor) % np.asarray(mip.factor)).any()]
        return max(usable, key=lambda mip: int(np.prod(mip.factor)))

    def read(self, box: Box, factor: Triple = (1, 1, 1)) -> Voxels:
        """Read voxels at a factor.

        Parameters
        ----------
        box
            Box in units of the factor, relative to the first voxel of the volume.
        factor
            Number of voxels of mip 0 per requested voxel, along x, y, z.

        Returns
        -------
        numpy.ndarray
            The voxels, in the shape of the box. They are 0 where the mip has none.
        """
        mip = self.mip_for(factor)
        step = np.asarray(factor) // np.asarray(mip.factor)
        shape = np.asarray(mip.bounds.shape)
        start, stop = (np.minimum(np.asarray(end) * step, shape) for end in (box.start, box.stop))
        result = np.zeros(box.shape, self.dtype, order="F")
        if (stop > start).all():
            found = mip.read(Box.of(start, stop).shifted(np.asarray(mip.bounds.start)))
            taken = found[:: step[0], :: step[1], :: step[2]]
            x, y, z = taken.shape
            result[:x, :y, :z] = taken
        return result


def factor_between(base: tuple[float, ...], coarser: tuple[float, ...]) -> Triple:
    """Return the factor of a mip from the nanometres per voxel of mip 0 and of the mip, each along x, y, z."""
    x, y, z = (max(1, round(b / a)) for a, b in zip(base, coarser, strict=True))
    return x, y, z
