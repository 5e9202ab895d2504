"""Keeps each side of a cut in one piece, and gives islands to the nearer side. Does not decide where to cut."""

from __future__ import annotations

from dataclasses import dataclass

import edt
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.mask_pieces import mask_pieces
from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask, SeedPair, distinct

__all__ = ["SidePieces", "in_one_piece", "keep_seeded_pieces", "nearest_side", "pieces_with_arms"]

ARM = 0.04
"""Smallest fraction of its side at which a piece without a seed is joined to the side instead of given to the other."""


def in_one_piece(side: Mask, seeds: Coordinates) -> bool:
    """Whether all ``seeds`` lie in one 26-connected piece of ``side``."""
    if len(seeds) == 1:
        return bool(side[tuple(seeds[0])])
    pieces = mask_pieces(side)[0][tuple(seeds.T)]
    return bool((pieces == pieces[0]).all() and pieces[0] > 0)


@dataclass(frozen=True)
class SidePieces:
    """What must be joined to make a side one piece."""

    seeds: Coordinates
    """The seeds of the side, and the deepest voxel of each arm: a large piece without a seed."""
    number: int
    """Number of its pieces."""
    joined: bool
    """Whether one piece contains all ``seeds``."""


def pieces_with_arms(
    mask: Mask, depth: npt.NDArray[np.float32], first: Mask, seeds: SeedPair
) -> tuple[SidePieces, SidePieces]:
    """Return the pieces of both sides that are to be joined.

    Parameters
    ----------
    mask, first
        The object and its first side, shape (x, y, z).
    depth
        Distance of each voxel of ``mask`` to the background, in the order of its voxels, shape (n,).
    seeds
        Seeds of both sides, which lie on them.
    """
    pieces, n_pieces = mask_pieces(mask.view(np.uint8) + first.view(np.uint8))  # both sides in one pass
    of_first = np.zeros(n_pieces + 1, np.bool_)
    if n_pieces == 2:
        of_first[pieces.flat[int(first.argmax())]] = True  # the other piece is the second side
        piece = np.zeros(0, pieces.dtype)
    else:
        # The voxels of the mask as a list: the box around them is often twenty times as large.
        piece = pieces[mask]
        of_first[piece] = first[mask]
    sizes = np.bincount(piece, minlength=n_pieces + 1)
    sides = []
    for own, of_side in ((seeds.first, of_first), (seeds.second, ~of_first)):
        of_side[0] = False
        seeded = pieces[tuple(own.T)]
        joined = bool((seeded == seeded[0]).all() and of_side[seeded[0]])
        number = np.count_nonzero(of_side)
        arms = np.zeros(0, np.int64)
        if number > 1:
            arms = np.setdiff1d(np.flatnonzero(of_side & (sizes >= ARM * sizes[of_side].sum())), seeded)
        if len(arms):
            places = np.flatnonzero(mask)
            deepest = [places[np.where(piece == arm, depth, 0).argmax()] for arm in arms]
            middles = np.stack(np.unravel_index(deepest, mask.shape), axis=1)
            own, joined = distinct(np.concatenate([own, middles])), False
        sides.append(SidePieces(own, int(number), joined))
    return sides[0], sides[1]


def keep_seeded_pieces(mask: Mask, first: Mask, seeds: SeedPair) -> Mask:
    """Make both sides of a connected ``mask`` one 26-connected piece; the seeds of each side must be connected.

    Two steps are enough. First, what is not connected to the first seeds goes to the second side. Then, what is not
    connected to the second seeds goes to the first side. Each such piece touches the first side, since the mask is
    connected and the piece touches nothing else, so the first side stays one piece.

    Parameters
    ----------
    mask, first
        The object and its first side, shape (x, y, z).
    seeds
        Seeds of both sides; those of each side must lie in one piece of it.
    """
    kept = _piece_with(first, seeds.first)
    return np.asarray(mask & ~_piece_with(mask & ~kept, seeds.second))


def nearest_side(
    islands: Mask, first: Mask, second: Mask, resolution: tuple[float, float, float]
) -> npt.NDArray[np.bool_]:
    """Return the 26-connected pieces of ``islands`` that are nearer to the first side (in nm), or equally near."""
    pieces, n_pieces = mask_pieces(islands)
    at = pieces[islands]
    nearest = []
    for side in (first, second):
        distance = edt.edt(np.ascontiguousarray(~side), anisotropy=resolution)[islands]
        smallest = np.full(n_pieces + 1, np.inf, np.float32)
        np.minimum.at(smallest, at, distance)
        nearest.append(smallest)
    chosen = np.zeros(islands.shape, np.bool_)
    chosen[islands] = (nearest[0] <= nearest[1])[at]
    return chosen


def _piece_with(side: Mask, seeds: Coordinates) -> Mask:
    pieces, _ = mask_pieces(side)
    return np.asarray(pieces == pieces[tuple(seeds[0])])
