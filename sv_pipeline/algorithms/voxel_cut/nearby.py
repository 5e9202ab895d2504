"""Keeps both sides in one piece after a correction by looking at its surroundings only. Does not choose what it takes.

Both sides are in one piece before the correction, so only three things can be wrong after it, all of them beside the
voxels that it took:

* what it took does not touch its side: a thread joins it, on the cheapest way;
* it has cut off small parts of the side that lost: they go with it;
* it has cut off large parts of that side, or parts with seeds: threads join them.

Where a thread would cut the other side again, ``pieces.py`` has to look at the whole mask.
"""

from __future__ import annotations

from typing import Any

import dijkstra3d
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.corrections import Correction, Ground
from sv_pipeline.algorithms.voxel_cut.mask_pieces import mask_pieces
from sv_pipeline.algorithms.voxel_cut.pieces import ARM
from sv_pipeline.algorithms.voxel_cut.seeds import TRESPASS
from sv_pipeline.algorithms.voxel_cut.voxels import NEIGHBOURS, Voxels

__all__ = ["joined_nearby"]

Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.integer[Any]]

AROUND = (1, 12)
"""Widths in voxels of the surroundings in which a side is looked at that has lost voxels."""


def joined_nearby(
    ground: Ground, before: Bools, after: Bools, correction: Correction, own_seeds: Numbers
) -> Bools | None:
    """Return the first side after a correction, with both sides in one piece; None if that takes more than a look near.

    Parameters
    ----------
    ground
        The mask.
    before, after
        Voxels of the first side before the correction, when each side was one piece, and after it, shape (n,).
    correction
        The correction; ``after`` has its seeds and rivals on their sides.
    own_seeds
        All seeds of the side to which it belongs, which keep their side.
    """
    voxels = ground.voxels
    winner_before = np.append(before == correction.to_first, np.False_)
    winner = np.append(after == correction.to_first, np.False_)
    taken = np.flatnonzero(winner & ~winner_before)
    near = _BoxAround(voxels, taken, 1)
    pieces = near.pieces(winner)
    anchored = np.zeros(pieces.max() + 1, np.bool_)
    anchored[pieces[winner_before[near.numbers]]] = True
    loose = taken[~anchored[near.at(pieces, taken)]]
    if len(loose):
        ours = near.at(pieces, correction.seeds)[0]
        aside = loose[near.at(pieces, loose) != ours]
        if len(aside) >= ARM * np.count_nonzero(winner):
            return None
        winner[aside] = False
        if not anchored[ours]:
            loose = np.setdiff1d(loose, aside)
            (seed,) = correction.seeds
            way = _way(ground, int(seed), loose, winner_before, winner, correction.rivals)
            if way is None:
                return None
            winner[way] = True
        taken = np.flatnonzero(winner & ~winner_before)
    losing = ~winner
    losing[-1] = False
    if _one_piece_beside(voxels, losing, taken) or _losing_side_joined(
        ground, losing, winner, correction.rivals, own_seeds
    ):
        return np.where(winner[:-1], correction.to_first, not correction.to_first)
    return None


def _losing_side_joined(ground: Ground, losing: Bools, winner: Bools, seeds: Numbers, blocked: Numbers) -> bool:
    """Join what was cut off from the side that lost, or give it away; return whether both sides are in one piece.

    Alters ``losing`` and ``winner``, shape (n + 1,). ``seeds`` are those of the side that lost, ``blocked`` the others.
    """
    voxels = ground.voxels
    everywhere = _BoxAround(voxels, np.flatnonzero(losing[:-1]), 1)
    numbers = np.flatnonzero(losing)
    piece = everywhere.at(everywhere.pieces(losing), numbers)
    sizes = np.bincount(piece)
    seeded = np.zeros(len(sizes), np.bool_)
    seeded[piece[np.searchsorted(numbers, seeds)]] = True
    kept = np.flatnonzero(seeded | (sizes >= ARM * len(piece)))
    main, *others = kept[np.argsort(-sizes[kept], kind="stable")]
    given = numbers[~np.isin(piece, kept)]
    losing[given], winner[given] = False, True
    joined = np.zeros_like(losing)
    joined[numbers[piece == main]] = True
    ways = []
    for other in others:
        loose = numbers[piece == other]
        start = int(loose[ground.depth[loose].argmax()])
        way = _way(ground, start, loose, joined, losing, blocked)
        if way is None:
            return False
        joined[loose] = joined[way] = losing[way] = True
        ways.append(way[winner[way]])
        winner[way] = False
    return not ways or _one_piece_beside(voxels, winner, np.concatenate(ways).astype(np.intp))


def _one_piece_beside(voxels: Voxels, side: Bools, lost: npt.NDArray[np.intp]) -> bool:
    """Whether a side that was one piece is seen to be one piece near the voxels that it lost."""
    beside = np.unique(np.concatenate([voxels.neighbours(shift, lost) for shift in NEIGHBOURS]))
    beside = beside[side[beside]]
    for width in AROUND:
        near = _BoxAround(voxels, lost, width)
        found = near.at(near.pieces(side), beside)
        if (found == found[:1]).all():
            return True
    return False


class _BoxAround:
    """The numbers of all voxels of the box around some of them, wider by ``width`` on each side."""

    def __init__(self, voxels: Voxels, inside: Numbers, width: int) -> None:
        self._voxels = voxels
        places = voxels.coordinates[inside]
        self.low, self.numbers = voxels.within(places.min(axis=0) - width, places.max(axis=0) + width + 1)

    def pieces(self, chosen: Bools) -> npt.NDArray[Any]:
        """Return an image of the 26-connected pieces of the ``chosen`` voxels, 0 elsewhere."""
        image = np.asfortranarray(chosen[self.numbers])
        return mask_pieces(image)[0]

    def at(self, image: npt.NDArray[np.uint32], numbers: Numbers) -> npt.NDArray[np.uint32]:
        """Return the values of an image at some voxels."""
        return np.asarray(image[tuple((self._voxels.coordinates[numbers] - self.low).T)])


def _way(
    ground: Ground, start: int, loose: Numbers, goal: Bools, own: Bools, blocked: Numbers
) -> npt.NDArray[np.int32] | None:
    """Return the cheapest way near a ``loose`` piece of a side from one of its voxels to others; None if there is none.

    Parameters
    ----------
    ground
        The mask.
    start, loose
        Where the way starts, and the piece that it joins.
    goal
        Where it ends, shape (n + 1,).
    own
        The side: a step outside of it costs ``TRESPASS`` times as much.
    blocked
        Voxels that it must not use.
    """
    voxels = ground.voxels
    places, others = voxels.coordinates[loose], voxels.coordinates[goal[:-1]]
    gap = int(np.maximum(places.min(axis=0) - others, others - places.max(axis=0)).max(axis=1).min())
    near = _BoxAround(voxels, loose, max(gap, 0) + max(AROUND[-1], gap // 2))
    inside = np.where(own[:-1], np.float32(1), np.float32(TRESPASS)) / np.maximum(ground.depth, np.float32(1e-3))
    cost = np.append(inside, np.float32(np.inf))
    cost[blocked] = np.inf
    field = np.asfortranarray(cost[near.numbers])
    first = tuple((voxels.coordinates[start] - near.low).tolist())
    reached = dijkstra3d.distance_field(field, first, connectivity=26)
    reached[~goal[near.numbers]] = np.inf
    last = tuple(map(int, np.unravel_index(int(reached.argmin()), reached.shape)))
    if not np.isfinite(reached[last]):
        return None
    way = dijkstra3d.dijkstra(field, first, last, connectivity=26)
    return np.asarray(near.numbers[tuple(way.astype(np.int64).T)])
