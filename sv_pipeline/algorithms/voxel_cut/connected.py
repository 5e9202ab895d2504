"""The cut of a connected mask: which seeds race at the start, which correct the cut, and the order of the steps.

::

    the seeds of the start --race--> pieces joined --> a cut --+--> no seed on the wrong side: done
                                         ^                     |
                                         +------ recut <-- a correction: the first seed on the wrong side

The first seed of each side races, then also the second of each, and so on, until the cut contradicts a seed or one side
has no more. All later ones are corrections if they are on the wrong side when it is their turn, and of no influence
otherwise: if a seed that agrees raced without a counterpart, its side would gain elsewhere, and a right cut would often
be lost. After a few corrections, those that are left correct the cut together, so that the time does not grow with
their number.
"""

from __future__ import annotations

import edt
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.corrections import Correction, Ground, recut
from sv_pipeline.algorithms.voxel_cut.nearby import joined_nearby
from sv_pipeline.algorithms.voxel_cut.pieces import in_one_piece, keep_seeded_pieces, pieces_with_arms
from sv_pipeline.algorithms.voxel_cut.race import Race, marked_surface, race_cells, raced
from sv_pipeline.algorithms.voxel_cut.seeds import Mask, SeedPair, join_seeds
from sv_pipeline.algorithms.voxel_cut.voxels import Voxels
from sv_pipeline.errors import InputError

__all__ = ["cut_connected"]

Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int32]

MOST_CORRECTIONS = 8
"""Number of corrections that are made one after the other. All seeds that are wrong then correct the cut at once, by
distance: contradictory seeds could otherwise ask for a correction each."""

DEPTH_THREADS = 2
"""Number of threads that compute the depth of a mask; the result does not depend on it."""


def cut_connected(mask: Mask, seeds: SeedPair, spacing: tuple[float, float, float]) -> tuple[Mask, Race]:
    """Return the first side of a 26-connected mask, and how it was found; both sides are 26-connected.

    Raises
    ------
    InputError
        If the seeds interleave so that no way was found to keep both sides in one piece.
    """
    # As uint8, the same takes a third of the time that it takes as bool.
    depth = edt.edt(mask.view(np.uint8), anisotropy=spacing, black_border=True, parallel=DEPTH_THREADS)[mask]
    ground = _ground(mask, depth, spacing)
    count, most = 1, max(len(seeds.first), len(seeds.second))
    paired = min(len(seeds.first), len(seeds.second))
    while True:
        active, first, race = _raced(ground, seeds, count)
        if count == most:
            del ground  # no correction can follow, and joining the pieces needs the memory
            return _in_one_piece_each(mask, depth, first, active), race
        sides = _in_one_piece_each(mask, depth, first, active)
        agreeing = max(count, min(paired, _number_agreeing(sides, seeds, most)))
        if agreeing == count and race.arrivals is None:
            # One side has the surface, until one of its seeds shows that they do not stand for that.
            later = (k for k in range(count + 1, most + 1) if not _surface_is_marked(ground, seeds, k))
            agreeing = next(later, count)
        if agreeing == count:
            break
        count = agreeing
    return _corrected(ground, race, sides, seeds, count)


def _corrected(ground: Ground, race: Race, sides: Mask, seeds: SeedPair, count: int) -> tuple[Mask, Race]:
    """Return a cut after all corrections, given the one in which ``count`` seeds of each side have raced."""
    voxels = ground.voxels
    mask, first = voxels.mask, sides[voxels.mask]
    every = voxels.numbers_of(seeds.first), voxels.numbers_of(seeds.second)
    active = [numbers[:count] for numbers in every]
    for _ in range(MOST_CORRECTIONS):
        correction = _first_wrong(first, every, active)
        if correction is None:
            return voxels.image(first), race
        after, race = recut(ground, race, first, correction)
        side = 0 if correction.to_first else 1
        active[side] = np.append(active[side], correction.seeds)
        joined = joined_nearby(ground, first, after, correction, active[side])
        if joined is None:
            places = SeedPair(*(voxels.coordinates[numbers].astype(np.int64) for numbers in active))
            joined = _in_one_piece_each(mask, ground.depth, after, places)[mask]
        first = joined
    if _first_wrong(first, every, active) is None:
        return voxels.image(first), race
    for to_first, own, other in ((True, *every), (False, *every[::-1])):
        wrong = own[first[own] != to_first]
        if len(wrong):
            rivals = other[first[other] != to_first]
            first, race = recut(ground, race, first, Correction(wrong, to_first, rivals), by_distance=True)
    return _in_one_piece_each(mask, ground.depth, first, seeds), race


def _ground(mask: Mask, depth: npt.NDArray[np.float32], spacing: tuple[float, float, float]) -> Ground:
    voxels = Voxels(mask, spacing)
    return Ground(voxels, depth, *race_cells(voxels, depth))


def _number_agreeing(sides: Mask, seeds: SeedPair, most: int) -> int:
    """Return how many seeds of each side, from the first on, all agree with a cut."""
    wrong = np.flatnonzero(~sides[tuple(seeds.first.T)]), np.flatnonzero(sides[tuple(seeds.second.T)])
    return int(min(np.concatenate(wrong), default=most))


def _raced(ground: Ground, seeds: SeedPair, count: int) -> tuple[SeedPair, Bools, Race]:
    """Return the first ``count`` seeds of each side, and the outcome of their race."""
    active = _first_of(seeds, count)
    return active, *raced(ground.voxels, ground.depth, ground.cells, ground.graph, active)


def _surface_is_marked(ground: Ground, seeds: SeedPair, count: int) -> bool:
    """Whether one side would get the surface if the first ``count`` seeds of each side raced."""
    of_seeds = _first_of(seeds, count)
    return marked_surface(ground.voxels, ground.depth, ground.cells, ground.graph, of_seeds) is not None


def _first_of(seeds: SeedPair, count: int) -> SeedPair:
    return SeedPair(seeds.first[:count], seeds.second[:count])


def _first_wrong(first: Bools, every: tuple[Numbers, Numbers], active: list[Numbers]) -> Correction | None:
    """Return the first seed on the wrong side as a correction, given the seeds of both sides and those that count."""
    wrong = []
    for to_first, numbers in ((True, every[0]), (False, every[1])):
        at = np.flatnonzero(first[numbers] != to_first)
        if len(at):
            rivals = active[1] if to_first else active[0]
            wrong.append((int(at[0]), Correction(numbers[at[:1]], to_first, rivals)))
    return min(wrong, key=lambda found: found[0])[1] if wrong else None  # of equals, that of the first side


def _in_one_piece_each(mask: Mask, depth: npt.NDArray[np.float32], chosen: Bools, seeds: SeedPair) -> Mask:
    """Return the first side, given its voxels, after each side was made one piece that contains its ``seeds``."""
    first = np.zeros(mask.shape, np.bool_)
    first[mask] = chosen
    pieces = pieces_with_arms(mask, depth, first, seeds)
    if all(side.joined for side in pieces):
        return first if all(side.number == 1 for side in pieces) else keep_seeded_pieces(mask, first, seeds)
    try:
        return _joined(mask, depth, first, SeedPair(pieces[0].seeds, pieces[1].seeds))
    except InputError:  # every seed must be kept, but not every arm
        if in_one_piece(first, seeds.first) and in_one_piece(mask & ~first, seeds.second):
            return keep_seeded_pieces(mask, first, seeds)
        return _joined(mask, depth, first, seeds)


def _joined(mask: Mask, depth: npt.NDArray[np.float32], first: Mask, seeds: SeedPair) -> Mask:
    """Join all ``seeds`` of each side, and make each side one piece."""
    # Paths join the pieces of a side that contain seeds. Another race that starts from whole paths would give much
    # worse results, because it gives away what lies along them.
    joined = join_seeds(mask, depth, first, seeds)
    sides = first.copy()
    sides[tuple(joined.first.T)] = True
    sides[tuple(joined.second.T)] = False
    return keep_seeded_pieces(mask, sides, joined)
