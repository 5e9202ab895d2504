"""Parses points as callers write them: ``x, y, z``, or ``id, x, y, z`` to name an object. Reads no data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_ids, parse_voxels, plain_array, shown
from sv_pipeline.edits.requests import Points, check_count
from sv_pipeline.errors import InputError
from sv_pipeline.operations.refusal import EditRefused, Reason, bad_request

__all__ = ["given_points", "given_voxels"]


@bad_request()
def given_voxels(points: Any, name: str) -> npt.NDArray[np.int64]:
    """Parse voxels to an array of shape (n, 3); raise EditRefused if they are anything else."""
    return parse_voxels(points, name)


def given_points(points: Any, side: str) -> Points:
    """Parse the points of one side of a request.

    Parameters
    ----------
    points
        Rows of x, y, z, or of id, x, y, z, where the id is a root, a supervoxel, or 0 for none. Rows of both kinds
        may be mixed.
    side
        ``source`` or ``sink``; used in messages.

    Raises
    ------
    EditRefused
        If the points have another form, or are too many.
    """
    name = f"{side} points"
    rows = _rows(points)
    if rows is None or all(len(row) != 4 for row in rows):
        voxels = given_voxels(points, name)
        check_count(side, len(voxels))
        return Points.of(coordinates=voxels)
    check_count(side, len(rows))
    try:
        if any(len(row) not in (3, 4) for row in rows):
            raise InputError("a row has neither three nor four numbers")  # noqa: TRY301 - the refusal is below
        ids = parse_ids([row[0] if len(row) == 4 else 0 for row in rows])
        return Points(ids, parse_voxels([row[-3:] for row in rows]))
    except InputError as error:
        raise EditRefused(
            Reason.BAD_REQUEST,
            f"the {name} are not voxels: {shown(points)}.",
            remedy="Write a point as x, y, z, or as id, x, y, z, in whole numbers; the id is a root or a supervoxel.",
        ) from error


def _rows(points: Any) -> list[Any] | None:
    """Return the rows of a value that looks like rows or like one row of four numbers; None for anything else."""
    if not isinstance(points, list | tuple):
        points = plain_array(points)
    if points is None or getattr(points, "ndim", 1) not in (1, 2) or not len(points):
        return None
    if all(isinstance(row, list | tuple | np.ndarray) for row in points):
        return None if any(isinstance(row, np.ndarray) and row.ndim != 1 for row in points) else list(points)
    return [points] if len(points) == 4 else None
