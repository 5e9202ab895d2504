"""Numbers the distinct values of an array that has many values, of which few differ. Knows not what they stand for."""

from __future__ import annotations

from typing import Any, TypeVar

import fastremap
import numpy as np
import numpy.typing as npt

__all__ = ["numbered"]

Integer = TypeVar("Integer", bound=np.integer[Any])


def numbered(values: npt.NDArray[Integer]) -> tuple[npt.NDArray[Integer], npt.NDArray[np.intp]]:
    """Return the distinct values, ascending, and the index of each value among them; shapes (m,) and (n,).

    The result is that of ``np.unique(values, return_inverse=True)``, which sorts all values. This numbers them by a
    hash, and sorts the distinct ones.
    """
    numbers, of_value = fastremap.renumber(values, start=0, preserve_zero=False)
    distinct = np.empty(len(of_value), values.dtype)
    distinct[np.fromiter(of_value.values(), np.intp, len(of_value))] = np.fromiter(
        of_value, values.dtype, len(of_value)
    )
    order = np.argsort(distinct)
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    return distinct[order], rank[numbers]
