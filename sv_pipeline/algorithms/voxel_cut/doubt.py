"""Doubt about a cut of voxels: which part of it is doubtful, how sure it is, and where one more point decides.

Two kinds of doubt are known:

* A *film* is a side without a body of its own: nearly each of its voxels touches the other side. Such a cut results if
  the points of both sides are in one thick body, or if a point is just below the surface of the body that the other
  side has. It is seldom what anybody wants. One more point decides: in the body of the film's side, if that has one. It
  is looked for where voxels are nearer to the seeds of the film than to others; each point of the other side that is
  placed there leaves less of that.
* A *part* of a side might as well be on the other (wavering.py). One more point in its middle decides.

::

    sides --touching--> film? --nearest seed instead--> what the film's side could be --deepest voxel--> place
      |
      +----------> else the part with most voxels at stake ----------------------------deepest voxel--> place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import dijkstra3d
import edt
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.cut import CutPart, VoxelCut
from sv_pipeline.algorithms.voxel_cut.seeds import Coordinates, Mask
from sv_pipeline.algorithms.voxel_cut.wavering import WaveringPart, wavering_parts

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

BODY = 0.2
"""No point is advised where less is left for the body of a film: where its depth is less than this fraction of the
depth of the other side's nearest seed, or less than ``THIN``. That seed then has the body, and the film is its rim."""

THIN = 2.0
"""Smallest depth of what could be the body of a film, in voxels of the finest axis."""


class DoubtKind(StrEnum):
    """The reason why a part of a cut is doubtful."""

    FILM = "film"
    """The part is a whole side, which only covers the other side."""
    PART = "part"
    """The part might as well be on the other side."""


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
    voxels: int
    """Number of voxels of the part."""
    cut_voxels: int
    """Number of voxels of both sides."""
    sure: float
    """Share of the part that is expected to be right. For a film, this is so only if it is what it looks like, the rim
    of another body: nothing of it is right if the points of both sides are in one body."""
    place: Triple | None = None
    """The voxel at which one more point decides most; None if none would."""
    shape: SideShape | None = None
    """Shape of a film; None for other kinds."""

    @property
    def name(self) -> str:
        """Name of the side that has the part: source or sink."""
        return NAMES[self.side]

    @property
    def stake(self) -> float:
        """Number of voxels that are expected to be wrong."""
        return self.voxels * (1 - self.sure)

    @property
    def summary(self) -> str:
        """The doubt in a few words."""
        return (
            f"the {self.name} side is a film"
            if self.kind is DoubtKind.FILM
            else f"a part of the {self.name} side is doubtful"
        )

    def shifted(self, offset: Sequence[int]) -> Doubt:
        """Return the doubt with its place in other coordinates."""
        return self if self.place is None else replace(self, place=_triple(np.add(self.place, offset)))

    def __str__(self) -> str:
        return self._of_film(self.shape) if self.shape is not None else self._of_part()

    def _of_film(self, shape: SideShape) -> str:
        side, other = self.name, NAMES[3 - self.side]
        text = (
            f"{self.summary}: {self.voxels:,} of {self.cut_voxels:,} voxels, {shape.thickness:.1f} "
            f"voxels thick ({_percent(shape.deep)} of it deeper than one voxel), over "
            f"{_percent(shape.surface)} of the object's surface. Even as the rim of another body, only about "
            f"{_percent(self.sure)} of it would be right. Probably the points of both sides are in one body, or the "
            f"{side} points are just below the surface."
        )
        if self.place is None:
            return f"{text} If the {side} is not such a rim, move its points into its body."
        return (
            f"{text} {self._advice} If all places that are named so belong to the {other}, there is nothing to split "
            "here."
        )

    def _of_part(self) -> str:
        text = (
            f"{self.summary}: {self.voxels:,} of {self.cut_voxels:,} voxels, which might belong to the "
            f"{NAMES[3 - self.side]}. In cuts like this one, {_percent(self.sure)} of such a part is right."
        )
        return text if self.place is None else f"{text} {self._advice}"

    @property
    def _advice(self) -> str:
        where = ",".join(map(str, self.place or ()))
        return f"Look at voxel {where}, place a point there of the side to which it belongs, and preview again."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "less than 1 %"


def find_doubt(cut: VoxelCut, source: Coordinates, sink: Coordinates, resolution: Sequence[float]) -> Doubt | None:
    """Find what is doubtful about a cut; None if nothing is known against it.

    Parameters
    ----------
    cut
        The side of each voxel of a box, and how the sides were found.
    source, sink
        Seeds of the sides, voxel coordinates inside the box, shape (n, 3). Seeds that are not on their own side, since
        the cut has moved them, only mean a less exact place.
    resolution
        Size of a voxel in nm, (x, y, z).
    """
    counts = [int(np.count_nonzero(cut.sides == side)) for side in (1, 2)]
    if not all(counts):
        return None
    return _film(cut.sides, counts, source, sink, resolution) or _part(cut, sum(counts), source, sink, resolution)


def _film(
    sides: Sides, counts: list[int], source: Coordinates, sink: Coordinates, resolution: Sequence[float]
) -> Doubt | None:
    """Return the doubt about the smaller side if it is a film; of equal sides, that with the first voxel."""
    side = int(sides.flat[int((sides != 0).argmax())]) if counts[0] == counts[1] else 1 + (counts[1] < counts[0])
    if not _touches_enough(sides, side):
        return None
    box = _tight_box(sides != 0)
    low = np.array([part.start for part in box])
    inside = sides[box]
    shape = side_shape(inside, side)
    own, other = (source - low, sink - low) if side == 1 else (sink - low, source - low)
    place = _place_for_film(inside, side, own, other, resolution)
    return Doubt(
        DoubtKind.FILM,
        side,
        shape.voxels,
        sum(counts),
        min(1.0, RIGHT / float(np.sqrt(shape.voxels))),
        None if place is None else _triple(place + low),
        shape,
    )


def _touches_enough(sides: Sides, side: int) -> bool:
    """Whether a side is a film; looks only at the box around it and one voxel more."""
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in _tight_box(sides == side))
    voxels = int(np.count_nonzero(sides[box] == side))
    return voxels >= FEWEST and _touching(sides[box], side) >= TOUCHING * voxels


def _place_for_film(
    sides: Sides, side: int, own: Coordinates, other: Coordinates, resolution: Sequence[float]
) -> Coordinates | None:
    """Return the middle of what could be the body of a film, shape (3,); None if too little is left for a body."""
    left = _nearer(sides, own, other, resolution) & (sides == 3 - side)
    if not left.any():
        return None
    depth = _depths(left, resolution)
    place = np.array(np.unravel_index(int(depth.argmax()), depth.shape), np.int64)
    enough = THIN * min(resolution)
    seeds = _on(sides != 0, other)
    if len(seeds):
        nearest = seeds[np.linalg.norm((seeds - place) * np.array(resolution), axis=1).argmin()]
        enough = max(enough, BODY * float(_depths(sides != 0, resolution)[tuple(nearest)]))
    return place if depth[tuple(place)] >= enough else None


def _part(
    cut: VoxelCut, cut_voxels: int, source: Coordinates, sink: Coordinates, resolution: Sequence[float]
) -> Doubt | None:
    """Return the doubt about the part with most at stake that has no seed."""
    found: list[tuple[CutPart, WaveringPart]] = []
    for component in cut.parts:
        first = cut.sides[component.box][component.mask] == (1 if component.source_first else 2)
        seeded = _numbers(component, np.concatenate([source, sink]))
        parts = wavering_parts(component.mask, component.race, first)
        found += [(component, part) for part in parts if not part.voxels[seeded].any()]
    if not found:
        return None
    component, part = max(found, key=lambda pair: pair[1].stake)
    return Doubt(
        DoubtKind.PART,
        1 if part.first == component.source_first else 2,
        int(np.count_nonzero(part.voxels)),
        cut_voxels,
        1 - part.wrong,
        _triple(_middle(component, part, resolution)),
    )


def _numbers(component: CutPart, seeds: Coordinates) -> npt.NDArray[np.int64]:
    """Return which voxels of a component the seeds are, of those that are in it."""
    there = _on(component.mask, seeds - [side.start for side in component.box])
    places = np.ravel_multi_index(tuple(there.T), component.mask.shape)
    return np.asarray(np.searchsorted(np.flatnonzero(component.mask), places))


def _middle(component: CutPart, part: WaveringPart, resolution: Sequence[float]) -> Coordinates:
    """Return the deepest voxel of a part's core, shape (3,)."""
    places = np.flatnonzero(component.mask)[part.voxels]
    voxels = np.stack(np.unravel_index(places, component.mask.shape), axis=1)
    low = voxels.min(axis=0)
    image = np.zeros(voxels.max(axis=0) - low + 1, np.bool_, order="F")
    image[tuple((voxels - low).T)] = True
    core = voxels[part.core[part.voxels]]
    depths = _depths(image, resolution)[tuple((core - low).T)]
    return np.asarray(core[int(depths.argmax())] + [side.start for side in component.box])


def side_shape(sides: Sides, side: int) -> SideShape:
    """Measure the shape of a side of a cut.

    Parameters
    ----------
    sides
        The side of each voxel: 1, 2, or 0 outside the object; shape (x, y, z).
    side
        The side to measure, 1 or 2; it has at least one voxel.
    """
    own = sides == side
    voxels = int(np.count_nonzero(own))
    touching, deep = _touching(sides, side), int(np.count_nonzero(_eroded(own)))
    surface = (sides != 0) & ~_eroded(sides != 0)
    covered = int(np.count_nonzero(own & surface)) / int(np.count_nonzero(surface))
    return SideShape(voxels, touching / voxels, deep / voxels, covered)


def _touching(sides: Sides, side: int) -> int:
    """Return how many voxels of a side touch the other side."""
    return int(np.count_nonzero(_grown(sides == 3 - side) & (sides == side)))


def _nearer(sides: Sides, own: Coordinates, other: Coordinates, resolution: Sequence[float]) -> Mask:
    """Return the voxels of an object to which a seed of ``own`` is nearer, inside the object, than one of ``other``."""
    inside = np.asfortranarray(sides != 0)
    near, far = (_distances(inside, seeds, resolution) for seeds in (own, other))
    return np.asarray((near < far) & inside)


def _distances(mask: Mask, seeds: Coordinates, resolution: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return the distance of each voxel to the nearest seed, in nm inside the mask; infinite where none is reached."""
    there = _on(mask, seeds)
    if not len(there):
        return np.full(mask.shape, np.inf, np.float32)
    starts = [tuple(seed) for seed in there.tolist()]
    return np.asarray(dijkstra3d.euclidean_distance_field(mask, starts, anisotropy=tuple(resolution)))


def _on(mask: Mask, seeds: Coordinates) -> Coordinates:
    """Return the seeds that lie on a mask."""
    there = seeds[((seeds >= 0) & (seeds < mask.shape)).all(axis=1)]
    return np.asarray(there[mask[tuple(there.T)]])


def _depths(mask: Mask, resolution: Sequence[float]) -> npt.NDArray[np.float32]:
    """Return the distance of each voxel of a mask to what is outside, in nm; 0 outside."""
    inside = np.asfortranarray(mask).view(np.uint8)
    return np.asarray(edt.edt(inside, anisotropy=tuple(resolution), black_border=True))


def _grown(mask: Mask) -> Mask:
    """Return the voxels of a mask and all 26 neighbours of each."""
    grown = mask.copy(order="K")
    for axis in range(3):
        before = grown.copy(order="K")
        grown[_from(axis, 1)] |= before[_to(axis, -1)]
        grown[_to(axis, -1)] |= before[_from(axis, 1)]
    return grown


def _eroded(mask: Mask) -> Mask:
    """Return the voxels of a mask whose six neighbours are all in it; outside the array, nothing is."""
    left = mask.copy(order="K")
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
