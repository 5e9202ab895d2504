"""Reads large boxes of voxels into memory that NumPy has allocated. Opens nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

__all__ = ["read_box"]


def read_box(array: ts.TensorStore) -> npt.NDArray[Any]:
    """Read a whole array, and return its values in Fortran order.

    The result is that of ``array.read(order="F")``. NumPy asks the system for huge pages for large arrays, TensorStore
    does not: for 67 million voxels it had to ask for 130,000 pages, which took as long as to decode the voxels.
    """
    values = np.empty(array.shape, array.dtype.numpy_dtype, order="F")
    ts.array(values).write(array).result()
    return values
