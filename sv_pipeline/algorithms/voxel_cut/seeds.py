"""Seeds of a cut: they are checked, moved to the mask, and joined per side. Does not decide where to cut."""

from __future__ import annotations

from dataclasses import dataclass

import dijkstra3d
import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError

__all__ = [
    "SNAP_NM",
    "Coordinates",
    "Mask",
    "SeedPair",
    "checked_seeds",
    "distinct",
    "join_seeds",
    "snap_distance",
    "snap_seeds",
]

Mask = npt.NDArray[np.bool_]
Coordinates = npt.NDArray[np.int64]
"""Voxel coordinates (x, y, z), shape (n, 3), unique. The order is that of the clicks, if they come from a user."""

Cost = npt.NDArray[np.float32]

SNAP_NM = 300.0
"""Distance in nm by which a click may miss the object: about the calibre of a neurite."""

SNAP_VOXELS = 3
"""The distance is at least this many voxels of the coarsest axis."""

TRESPASS = 10.0
"""Cost factor inside the other side: a path may cut a corner of it, but hardly cross it."""

DETOUR = 1e3
"""Cost factor on the path that the other side wants, so that a path avoids it if there is any other way."""


@dataclass(frozen=True)
class SeedPair:
    """The seeds of both sides of a cut; ``first`` and ``second`` have no meaning beyond their order."""

    first: Coordinates
    second: Coordinates

    @property
    def swapped(self) -> SeedPair:
        """The same seeds in the other order."""
        return SeedPair(self.second, self.first)


def snap_distance(resolution: tuple[float, float, float]) -> float:
    """Return how far in nm a seed may be from the mask: 300 nm, or three voxels of the coarsest axis if more."""
    return max(SNAP_NM, SNAP_VOXELS * max(resolution))


def checked_seeds(seeds: npt.ArrayLike, shape: tuple[int, ...], side: str) -> Coordinates:
    """Return ``seeds`` as unique coordinates inside ``shape``, in their order; an InputError names the ``side``."""
    array = np.asarray(seeds)
    if array.ndim != 2 or array.shape[1:] != (3,) or len(array) == 0:
        raise InputError(
            f"The {side} seeds have shape {array.shape}, not (n, 3) with n >= 1.",
            remedy="Give at least one (x, y, z) voxel coordinate for each side.",
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"The {side} seeds have type {array.dtype}.", remedy="Round them to integer voxel coordinates first."
        )
    outside = (array < 0).any(axis=1) | (array >= np.array(shape)).any(axis=1)
    if outside.any():
        raise InputError(
            f"The {side} seed {tuple(array[outside][0].tolist())} lies outside the array of shape {shape}.",
            remedy="Give coordinates relative to the array, or a mask that includes the seed.",
        )
    return distinct(array.astype(np.int64))


def distinct(coordinates: Coordinates) -> Coordinates:
    """Return each of the ``coordinates`` once, in the order in which they first occur."""
    return coordinates[np.sort(np.unique(coordinates, axis=0, return_index=True)[1])]


def snap_seeds(mask: Mask, seeds: Coordinates, resolution: tuple[float, float, float], side: str) -> Coordinates:
    """Move each seed outside the mask to the nearest mask voxel in nm (the first in x, y, z order if several are).

    Raises
    ------
    InputError
        If a seed is further from the mask than :func:`snap_distance`.
    """
    limit = snap_distance(resolution)
    snapped = seeds.copy()
    reach = np.floor(limit / np.array(resolution)).astype(np.int64)
    for index in np.flatnonzero(~mask[tuple(seeds.T)]):
        low = np.maximum(seeds[index] - reach, 0)
        window = mask[tuple(slice(a, b) for a, b in zip(low, seeds[index] + reach + 1, strict=True))]
        candidates = np.argwhere(window) + low
        squares = (((candidates - seeds[index]) * np.array(resolution)) ** 2).sum(axis=1)
        if len(squares) == 0 or squares.min() > limit**2:
            raise InputError(
                f"The {side} seed {tuple(seeds[index].tolist())} is more than {limit:.0f} nm from the mask.",
                remedy="Place it on the object to be cut.",
            )
        snapped[index] = candidates[squares.argmin()]
    return distinct(snapped)


def join_seeds(mask: Mask, depth: npt.NDArray[np.float32], first: Mask, seeds: SeedPair) -> SeedPair:
    """Grow the seeds of each side to one 26-connected set inside a connected ``mask``; the two sets are disjoint.

    Paths prefer thick parts of the object: the cost of a voxel is its length divided by the local ``depth`` (distance
    to the background in nm, of each voxel of the mask in order, shape (n,)), and many times that inside the other side
    (``first`` is the first side). The sides are joined one after the other, the second one around the first. If that
    fails, the order is reversed; if that fails too, the first one avoids the path that the second one would take.

    Raises
    ------
    InputError
        If the seeds interleave so that no way was found to keep both sides in one piece.
    """
    if len(seeds.first) == 1 and len(seeds.second) == 1:
        return seeds
    open_ways = _OpenWays(mask, depth, first)
    for keep_off in (False, True):
        for swap in (False, True):
            joined = _join_in_order(open_ways, seeds.swapped if swap else seeds, swap, keep_off)
            if joined is not None:
                return joined.swapped if swap else joined
    raise InputError(
        "The seeds of the two sides interleave: neither side can be one piece without cutting the other.",
        remedy="Remove seeds, or split in two steps.",
    )


@dataclass(frozen=True)
class _OpenWays:
    """Costs of a step for each side; they are computed for each search, which alters them, and fill the whole box."""

    mask: Mask
    depth: Cost
    first: Mask

    def costs(self, of_first: bool) -> Cost:
        """Return the costs for the first or second side: 1 / depth, more inside the other side, inf off the mask."""
        inside = 1.0 / np.maximum(self.depth, 1e-3)
        inside[self.first[self.mask] != of_first] *= TRESPASS
        cost = np.full(self.mask.shape, np.inf, np.float32, order="F")  # dijkstra3d would copy it if it were in C order
        cost[self.mask] = inside
        return cost


def _join_in_order(ways: _OpenWays, seeds: SeedPair, swapped: bool, keep_off: bool) -> SeedPair | None:
    """Join the first seeds, then the others around them; ``swapped`` tells that the first seeds are the second side."""
    cost = ways.costs(not swapped)
    if keep_off:
        wanted = _joined(ways.costs(swapped), seeds.second, seeds.first)
        if wanted is None:
            return None
        cost[tuple(wanted.T)] *= DETOUR
    first = _joined(cost, seeds.first, seeds.second)
    del cost  # it is as large as the box, and so is the next one
    if first is None:
        return None
    second = _joined(ways.costs(swapped), seeds.second, first)
    return None if second is None else SeedPair(first, second)


def _joined(cost: Cost, seeds: Coordinates, forbidden: Coordinates) -> Coordinates | None:
    """Return the seeds and the cheapest paths from the first to the others; None without a path. Alters ``cost``."""
    if len(seeds) == 1:
        return seeds
    cost[tuple(forbidden.T)] = np.inf
    ways = _ways(cost, seeds)
    # The way from what cannot be reached does not lead to the first seed.
    if not all((way == seeds[0]).all(axis=1).any() for way in ways):
        return None
    return np.unique(np.concatenate([seeds, *ways]), axis=0)


def _ways(cost: Cost, seeds: Coordinates) -> list[Coordinates]:
    """Return the cheapest way from the first of several seeds to each other, shape (n, 3); not to the first if none."""
    start, *others = map(tuple, seeds.tolist())
    if len(others) == 1:
        # This search ends where it reaches the other seed. The way is the same, since a voxel is reached at its least
        # cost at once: a step costs what the voxel costs that it leads to, wherever it comes from.
        return [dijkstra3d.dijkstra(cost, start, others[0], connectivity=26).astype(np.int64)]
    # One search serves all seeds; with one search for each, a hundred seeds would take a minute.
    parents = dijkstra3d.parental_field(cost, start, connectivity=26)
    return [dijkstra3d.path_from_parents(parents, other).astype(np.int64) for other in others]
