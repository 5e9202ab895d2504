"""The voxel cut: input checks, the tight crop, components, and the order of the steps. Delegates each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.connected import cut_connected
from sv_pipeline.algorithms.voxel_cut.mask_pieces import mask_pieces
from sv_pipeline.algorithms.voxel_cut.pieces import nearest_side
from sv_pipeline.algorithms.voxel_cut.race import Race
from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask, SeedPair, checked_seeds, snap_seeds
from sv_pipeline.errors import InputError

__all__ = ["CutPart", "VoxelCut", "cut_mask", "cut_voxels"]

Box = tuple[slice, slice, slice]

STRIP = 31
"""Number of voxels along y that are brought into another memory order together."""


@dataclass(frozen=True, eq=False)
class CutPart:
    """A component of the mask that had seeds of both sides, and the race in it."""

    box: Box
    """Its place in the mask; its voxels are those of ``mask``, shape of the box."""
    mask: Mask
    race: Race
    source_first: bool
    """Whether the source is the first side of the race."""


@dataclass(frozen=True, eq=False)
class VoxelCut:
    """The sides of the voxels of a mask, and how they were found."""

    sides: npt.NDArray[np.uint8]
    """1 = source side, 2 = sink side, 0 = outside the mask; shape (x, y, z), in the memory order of the mask."""
    parts: tuple[CutPart, ...] = ()


def cut_mask(
    mask: npt.NDArray[np.bool_],
    source: npt.ArrayLike,
    sink: npt.ArrayLike,
    resolution: Sequence[float],
) -> npt.NDArray[np.uint8]:
    """Return the sides of :func:`cut_voxels`."""
    return cut_voxels(mask, source, sink, resolution).sides


def cut_voxels(
    mask: npt.NDArray[np.bool_],
    source: npt.ArrayLike,
    sink: npt.ArrayLike,
    resolution: Sequence[float],
) -> VoxelCut:
    """Cut a mask in two between source and sink seeds.

    Every mask voxel gets a side, each seed lies on its own side, and each side is one 26-connected piece if the mask
    is one. If the mask has several components, those with seeds of both sides are cut, those with seeds of one side go
    to it, and the others go to the nearer side. The result is deterministic. Swapping source and sink swaps the labels,
    since ties go to the side whose first seed comes first in x, y, z order, whatever it is called.

    The order of the seeds of each side counts: later ones correct the cut that earlier ones make, and one that agrees
    with the cut changes nothing, unless a seed of the other side with the same place in the order agrees, too, or there
    are more corrections than are made one by one (see :mod:`~sv_pipeline.algorithms.voxel_cut.connected`).

    Parameters
    ----------
    mask
        The object, bool, shape (x, y, z).
    source, sink
        Seeds of each side in the order of the clicks: integer voxel coordinates inside the array, shape (n, 3). A seed
        outside the mask is moved to the nearest mask voxel, up to
        :func:`~sv_pipeline.algorithms.voxel_cut.snap_distance` nm away.
    resolution
        Size of a voxel in nm, (x, y, z).

    Returns
    -------
    cut
        The sides, and the races that found them.

    Raises
    ------
    InputError
        If an argument has a wrong shape or type, the mask is empty, a seed is too far from the mask, both sides have
        the same voxel, or the seeds interleave so that the sides cannot be one piece each.
    """
    spacing = _checked_resolution(resolution)
    box = _tight_box(_checked_mask(mask))
    inside = _in_c_order(mask[box])
    low = np.array([side.start for side in box])
    snapped = [
        snap_seeds(mask, checked_seeds(seeds, mask.shape, name), spacing, name) - low
        for seeds, name in ((source, "source"), (sink, "sink"))
    ]
    shared = _shared(*snapped)
    if len(shared):
        raise InputError(
            f"Voxel {tuple((shared[0] + low).tolist())} is a seed of both sides (after snapping to the mask).",
            remedy="Move or remove one of the two seeds.",
        )
    # The side with the smaller first seed comes first, so that the result cannot depend on which side is called source.
    source_first = tuple(snapped[0][0]) < tuple(snapped[1][0])
    seeds = SeedPair(*(snapped if source_first else snapped[::-1]))
    first, races = _first_side(inside, seeds, spacing)
    labels = np.zeros(mask.shape, np.uint8, order="F" if mask.flags.f_contiguous else "C")
    cut = labels[box]
    cut[inside] = 2 if source_first else 1
    cut[first] = 1 if source_first else 2
    parts = (CutPart(_shifted(part, low), part_mask, race, source_first) for part, part_mask, race in races)
    return VoxelCut(labels, tuple(parts))


def _first_side(
    mask: Mask, seeds: SeedPair, spacing: tuple[float, float, float]
) -> tuple[Mask, list[tuple[Box, Mask, Race]]]:
    """Return the first side of a mask with any number of components, and the races with their boxes and masks."""
    pieces, n_pieces = mask_pieces(mask)
    if n_pieces == 1:
        del pieces  # it is as large as the box
        first, race = cut_connected(mask, seeds, spacing)
        return first, [(_whole(mask), mask, race)]
    piece_of_first, piece_of_second = (pieces[tuple(side.T)] for side in (seeds.first, seeds.second))
    first = np.isin(pieces, np.setdiff1d(piece_of_first, piece_of_second))
    second = np.isin(pieces, np.setdiff1d(piece_of_second, piece_of_first))
    races = []
    for piece in np.intersect1d(piece_of_first, piece_of_second):
        box = _tight_box(pieces == piece)
        low = np.array([side.start for side in box])
        part = np.ascontiguousarray(pieces[box] == piece)
        own = SeedPair(seeds.first[piece_of_first == piece] - low, seeds.second[piece_of_second == piece] - low)
        first_part, race = cut_connected(part, own, spacing)
        races.append((box, part, race))
        first[box] |= first_part
        second[box] |= part & ~first_part
    islands = mask & ~first & ~second
    return np.asarray(first | nearest_side(islands, first, second, spacing)), races


def _whole(mask: Mask) -> Box:
    x, y, z = (slice(0, n) for n in mask.shape)
    return x, y, z


def _shifted(box: Box, offset: npt.NDArray[np.int64]) -> Box:
    x, y, z = (slice(side.start + n, side.stop + n) for side, n in zip(box, offset.tolist(), strict=True))
    return x, y, z


def _checked_mask(mask: Any) -> Mask:
    if not isinstance(mask, np.ndarray) or mask.ndim != 3 or mask.dtype != np.bool_:
        found = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"The mask is {found}, not a bool array (x, y, z).", remedy="Compare labels to get a mask.")
    if np.count_nonzero(mask) < 2:
        raise InputError(
            f"The mask has {np.count_nonzero(mask)} voxels: there is nothing to cut.",
            remedy="Give a mask of at least two voxels.",
        )
    return mask


def _checked_resolution(resolution: Any) -> tuple[float, float, float]:
    values = np.asarray(resolution, np.float64)
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError(f"The resolution {resolution!r} is not three sizes in nm.", remedy="Give (x, y, z), all > 0.")
    return float(values[0]), float(values[1]), float(values[2])


def _in_c_order(mask: Mask) -> Mask:
    """Return a mask in C order."""
    if mask.strides[0] >= mask.strides[2]:
        return np.ascontiguousarray(mask)
    # In strips, because a copy of the whole reads each line of memory once for each of its 64 voxels. The width is odd:
    # with a power of two, all voxels along z would compete for a few lines of the cache.
    copy = np.empty(mask.shape, np.bool_)
    for start in range(0, mask.shape[1], STRIP):
        copy[:, start : start + STRIP] = mask[:, start : start + STRIP].copy(order="F")
    return copy


def _tight_box(mask: Mask) -> Box:
    found = [np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != axis))) for axis in range(3)]
    x, y, z = (slice(int(hits[0]), int(hits[-1]) + 1) for hits in found)
    return x, y, z


def _shared(first: Coordinates, second: Coordinates) -> Coordinates:
    both, counts = np.unique(np.concatenate([first, second]), axis=0, return_counts=True)
    return both[counts > 1]
