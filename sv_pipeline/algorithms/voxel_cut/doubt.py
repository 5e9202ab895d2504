"""Doubt about a cut of voxels: a side that is only a film on the other, how much of it is right, where to look.

A *film* is a side without a body of its own: nearly each of its voxels touches the other side. Such a cut results if
the points of both sides are in one thick body, or if a point is just below the surface of the body that the other side
has. It is seldom what anybody wants. One more point decides: in the body of the film's side, if that has one. It is
looked for where voxels are nearer to the seeds of the film than to others; each point of the other side that is placed
there leaves less of that.

::

    sides --touching--> film? --nearest seed instead--> what the film's side could be --deepest voxel--> place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import dijkstra3d
import edt
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask

__all__ = ["Doubt", "DoubtKind", "SideShape", "find_doubt", "side_shape"]

Sides = npt.NDArray[np.uint8]
Triple = tuple[int, int, int]

NAMES = {1: "source", 2: "sink"}

TOUCHING = 0.6
"""A side is a film if at least this share of its voxels touches the other side. On real data, it is at most 0.48 for
sides that have a body, and 0.98-1.00 for the rims of bodies; two points in one body give anything from 0 to 1."""

FEWEST = 100
"""A side of fewer voxels is not called a film: so few have no inside, whatever their shape."""

RIGHT = 10.0
"""Where a film is measured against the truth, about ``RIGHT * sqrt(n)`` of its n voxels are of its body: what is of
another body runs along the line where two bodies meet. Within a factor of 2.1 for 38 films in two real volumes."""


class DoubtKind(StrEnum):
    """The reason why a part of a cut is doubtful."""

    FILM = "film"
    """The part is a whole side, which only covers the other side."""


@dataclass(frozen=True)
class SideShape:
    """The shape of one side of a cut."""

    voxels: int
    touching: float
    """Share of the voxels that touch the other side, by a face, an edge or a corner."""
    deep: float
    """Share of the voxels deeper than one voxel: all six neighbours are on the same side."""
    surface: float
    """Share of the object's surface that the side covers, in voxels with a face outside the object."""

    @property
    def thickness(self) -> float:
        """Number of layers of voxels that lie on the other side, in the mean; infinite if the sides do not touch."""
        return 1 / self.touching if self.touching else float("inf")

    @property
    def is_film(self) -> bool:
        """Whether the side is only a film on the other."""
        return self.voxels >= FEWEST and self.touching >= TOUCHING


@dataclass(frozen=True)
class Doubt:
    """The part of a cut that is most doubtful."""

    kind: DoubtKind
    side: int
    """The side that has the part: 1 = source, 2 = sink."""
    shape: SideShape
    """Shape of the part."""
    cut_voxels: int
    """Number of voxels of both sides."""
    sure: float
    """Share of the part that is expected to be right, if the part is what it looks like: a film, the rim of another
    body. Nothing of it is right if the points of both sides are in one body."""
    place: Triple | None = None
    """The voxel at which one more point decides most; None if none would."""

    @property
    def name(self) -> str:
        """Name of the side that has the part: source or sink."""
        return NAMES[self.side]

    @property
    def voxels(self) -> int:
        """Number of voxels of the part."""
        return self.shape.voxels

    def shifted(self, offset: Sequence[int]) -> Doubt:
        """Return the doubt with its place in other coordinates."""
        return self if self.place is None else replace(self, place=_triple(np.add(self.place, offset)))

    def __str__(self) -> str:
        side, other = self.name, NAMES[3 - self.side]
        text = (
            f"the {side} side is a film: {self.voxels:,} of {self.cut_voxels:,} voxels, {self.shape.thickness:.1f} "
            f"voxels thick ({_percent(self.shape.deep)} of it deeper than one voxel), over "
            f"{_percent(self.shape.surface)} of the object's surface. Even as the rim of another body, only about "
            f"{_percent(self.sure)} of it would be right. Probably the points of both sides are in one body, or the "
            f"{side} points are just below the surface."
        )
        if self.place is None:
            return text
        where = ",".join(map(str, self.place))
        return (
            f"{text} Look at voxel {where}, place a point there of the side to which it belongs, and preview again. If "
            f"all places that are named so belong to the {other}, there is nothing to split here."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "less than 1 %"


def find_doubt(sides: Sides, source: Coordinates, sink: Coordinates, resolution: Sequence[float]) -> Doubt | None:
    """Find what is doubtful about a cut; None if nothing is known against it.

    Parameters
    ----------
    sides
        The side of each voxel of a box, shape (x, y, z): 1 = source side, 2 = sink side, 0 = neither.
    source, sink
        Seeds of the sides, voxel coordinates inside the box, shape (n, 3). Seeds that are not on their own side, since
        the cut has moved them, only mean a less exact place.
    resolution
        Size of a voxel in nm, (x, y, z).
    """
    counts = [int(np.count_nonzero(sides == side)) for side in range(3)]
    side = 1 if counts[1] <= counts[2] else 2
    if not counts[side]:
        return None
    box = _tight_box(sides != 0)
    low = np.array([part.start for part in box])
    inside = sides[box]
    shape = side_shape(inside, side)
    if not shape.is_film:
        return None
    nearer = _nearer(inside, *((source - low, sink - low) if side == 1 else (sink - low, source - low)), resolution)
    place = _deepest(nearer & (inside == 3 - side), resolution)
    return Doubt(
        DoubtKind.FILM,
        side,
        shape,
        counts[1] + counts[2],
        min(1.0, RIGHT / float(np.sqrt(shape.voxels))),
        None if place is None else _triple(place + low),
    )


def side_shape(sides: Sides, side: int) -> SideShape:
    """Measure the shape of a side of a cut.

    Parameters
    ----------
    sides
        See :func:`find_doubt`; the object is what has a side.
    side
        The side to measure, 1 or 2; it has at least one voxel.
    """
    own = sides == side
    voxels = int(np.count_nonzero(own))
    touching, deep = int(np.count_nonzero(_grown(sides == 3 - side) & own)), int(np.count_nonzero(_eroded(own)))
    surface = (sides != 0) & ~_eroded(sides != 0)
    covered = int(np.count_nonzero(own & surface)) / int(np.count_nonzero(surface))
    return SideShape(voxels, touching / voxels, deep / voxels, covered)


def _nearer(sides: Sides, own: Coordinates, other: Coordinates, resolution: Sequence[float]) -> Mask:
    """Return the voxels of an object to which a seed of ``own`` is nearer, inside the object, than one of ``other``."""
    inside = np.asfortranarray(sides != 0)
    near, far = (_distances(inside, seeds, resolution) for seeds in (own, other))
    return np.asarray((near < far) & inside)


def _distances(mask: Mask, seeds: Coordinates, resolution: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return the distance of each voxel to the nearest seed, in nm inside the mask; infinite where none is reached."""
    there = seeds[((seeds >= 0) & (seeds < mask.shape)).all(axis=1)]
    there = there[mask[tuple(there.T)]]
    if not len(there):
        return np.full(mask.shape, np.inf, np.float32)
    starts = [tuple(seed) for seed in there.tolist()]
    return np.asarray(dijkstra3d.euclidean_distance_field(mask, starts, anisotropy=tuple(resolution)))


def _deepest(mask: Mask, resolution: Sequence[float]) -> Coordinates | None:
    """Return the deepest voxel of a mask, shape (3,); None if the mask is empty."""
    if not mask.any():
        return None
    depth = edt.edt(np.asfortranarray(mask), anisotropy=tuple(resolution), black_border=True)
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape), np.int64)


def _grown(mask: Mask) -> Mask:
    """Return the voxels of a mask and all 26 neighbours of each."""
    grown = mask.copy()
    for axis in range(3):
        before = grown.copy()
        grown[_from(axis, 1)] |= before[_to(axis, -1)]
        grown[_to(axis, -1)] |= before[_from(axis, 1)]
    return grown


def _eroded(mask: Mask) -> Mask:
    """Return the voxels of a mask whose six neighbours are all in it; outside the array, nothing is."""
    left = mask.copy()
    for axis in range(3):
        left[_from(axis, 1)] &= mask[_to(axis, -1)]
        left[_to(axis, -1)] &= mask[_from(axis, 1)]
        left[_to(axis, 1)] = left[_from(axis, -1)] = False
    return left


def _from(axis: int, start: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, None))


def _to(axis: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(None, stop))


def _tight_box(mask: Mask) -> tuple[slice, slice, slice]:
    found = [np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != axis))) for axis in range(3)]
    x, y, z = (slice(int(hits[0]), int(hits[-1]) + 1) for hits in found)
    return x, y, z


def _triple(voxel: Coordinates) -> Triple:
    x, y, z = voxel.tolist()
    return x, y, z
