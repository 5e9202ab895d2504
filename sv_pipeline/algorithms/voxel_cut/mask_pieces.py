"""The connected pieces of a mask, by the library cc3d."""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

__all__ = ["mask_pieces"]


def mask_pieces(mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], int]:
    """Number the 26-connected pieces of a mask, or of an image of several parts, in which each has its own number.

    Returns
    -------
    tuple[ndarray, int]
        An image of the numbers, from 1; 0 where the mask is 0. How many pieces there are.
    """
    # Of images of bool that are one voxel thin, cc3d (seen in 4.1.1) expects fewer pieces than there may be, and fails.
    pieces, n_pieces = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    return pieces, int(n_pieces)
