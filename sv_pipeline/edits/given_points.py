"""Points as callers write them: voxels ``x, y, z``, or ``id, x, y, z`` where an object is named. Looks nothing up."""

from __future__ import annotations

import operator
import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.edits.requests import Points, check_count
from sv_pipeline.operations.refusal import EditRefused, Reason

__all__ = ["given_points", "given_voxels"]

LARGEST_ID = (1 << 64) - 1


def given_voxels(points: Any, name: str) -> npt.NDArray[np.int64]:
    """Voxels, shape (n, 3); EditRefused if they are anything else."""
    refused = EditRefused(
        Reason.BAD_REQUEST,
        f"the {name} are not voxels: {reprlib.repr(points)}.",
        remedy="A point is three whole numbers x, y, z, in voxels of mip 0.",
    )
    try:
        array = np.asarray(points)
        if array.shape == (3,):
            array = array[None]
        if not array.size:
            return np.zeros((0, 3), np.int64)
        with np.errstate(invalid="ignore"):  # what is not a number, or too large, does not equal what it becomes
            whole = array.astype(np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused from error
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf" or not (whole == array).all():
        raise refused
    return whole


def given_points(points: Any, side: str) -> Points:
    """Points of one side of a request.

    Parameters
    ----------
    points
        Rows of x, y, z; or of id, x, y, z, where the id is a root or a supervoxel, or 0 for none. Both may be mixed.
    side
        ``source`` or ``sink``, for messages.

    Raises
    ------
    EditRefused
        If they are anything else, or too many.
    """
    rows = _rows(points)
    if rows is None or all(len(row) != 4 for row in rows):
        voxels = given_voxels(points, f"{side} points")
        check_count(side, len(voxels))
        return Points.of(coordinates=voxels)
    check_count(side, len(rows))
    refused = EditRefused(
        Reason.BAD_REQUEST,
        f"the {side} points are not voxels: {reprlib.repr(points)}.",
        remedy="A point is x, y, z, or id, x, y, z: whole numbers; the id is a root or a supervoxel.",
    )
    if any(len(row) not in (3, 4) for row in rows):
        raise refused
    try:
        ids = [operator.index(row[0]) if len(row) == 4 else 0 for row in rows]
    except TypeError as error:
        raise refused from error
    if any(isinstance(row[0], bool) for row in rows) or min(ids) < 0 or max(ids) > LARGEST_ID:
        raise refused
    return Points(np.array(ids, np.uint64), given_voxels([list(row[-3:]) for row in rows], f"{side} points"))


def _rows(points: Any) -> list[Any] | None:
    """The rows of what looks like rows, or like one row; None for anything else."""
    if not isinstance(points, list | tuple | np.ndarray) or not len(points):
        return None
    if isinstance(points, np.ndarray) and points.ndim not in (1, 2):
        return None
    if all(isinstance(row, list | tuple | np.ndarray) for row in points):
        return None if any(isinstance(row, np.ndarray) and row.ndim != 1 for row in points) else list(points)
    return [points] if len(points) == 4 else None
