"""Skeletons of neuropil from random walks: dendrites, axons and glia with their calibre. Knows no voxels.

Dendrites are thick and spiny, axons thin with varicosities, glia tortuous and highly branched. Each walk avoids the
processes grown before it, so that they wind around each other as neurites do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import spatial

__all__ = ["grow_skeletons"]

Float = npt.NDArray[np.float64]

MARGIN = 400.0
"""Margin around the volume in nm where skeletons grow too, so that its border looks like its inside."""


@dataclass(frozen=True)
class _Habit:
    """Growth parameters of one kind of process; lengths in nm."""

    per_cubic_micron: float
    step: float
    radius: tuple[float, float]
    """Range of the mean radius."""
    swelling: float
    """Relative amplitude of the calibre along the process."""
    period: float
    """Wavelength of the calibre along the process."""
    wander: float
    """How much a step may turn; 0 keeps the direction."""
    branches_per_micron: float
    spines_per_micron: float = 0.0


DENDRITE = _Habit(0.07, 80, (230, 500), 0.2, 900, 0.18, 0.1, 2.0)
GLIA = _Habit(0.04, 60, (70, 150), 0.6, 500, 0.6, 1.6)
AXON = _Habit(2.4, 50, (60, 125), 0.75, 700, 0.33, 0.08)
MOST_BRANCHES = {DENDRITE: 3, GLIA: 40, AXON: 3}


class _Forest:
    """Skeleton points of all processes so far."""

    """Skeleton points of all processes grown so far."""

    def __init__(self) -> None:
        self.points: list[Float] = []
        self.radii: list[Float] = []
        self.process: list[npt.NDArray[np.int32]] = []
        self._tree: spatial.cKDTree | None = None
        self._tree_radii: Float = np.empty(0)

    def add(self, points: Float, radii: Float, process: int) -> None:
        self.points.append(points)
        self.radii.append(radii)
        self.process.append(np.full(len(points), process, np.int32))

    def index(self) -> None:
        """Make the added points visible to ``clearance``."""
        self._tree = spatial.cKDTree(np.concatenate(self.points))
        self._tree_radii = np.concatenate(self.radii)

    def clearance(self, places: Float) -> Float:
        """Return the distance from places to the surface of the process with the nearest skeleton point."""
        if self._tree is None:
            return np.full(len(places), np.inf)
        distance, index = self._tree.query(places)
        return np.asarray(distance - self._tree_radii[index])


def grow_skeletons(random: np.random.Generator, extent: Float) -> tuple[Float, Float, npt.NDArray[np.int32]]:
    """Grow all processes of a volume.

    Parameters
    ----------
    random
        Random number generator.
    extent
        Size of the volume in nm, (x, y, z).

    Returns
    -------
    points, radii, process
        Skeleton points (n, 3) and radii (n,) in nm, and the process of each point, 0 .. m, shape (n,).
    """
    forest = _Forest()
    volume = float(np.prod((extent + MARGIN) / 1000))
    process = 0
    for habit in (DENDRITE, GLIA, AXON):
        for _ in range(max(1, round(habit.per_cubic_micron * volume))):
            _grow(random, extent, habit, process, forest)
            forest.index()
            process += 1
    return np.concatenate(forest.points), np.concatenate(forest.radii), np.concatenate(forest.process)


def _grow(random: np.random.Generator, extent: Float, habit: _Habit, process: int, forest: _Forest) -> None:
    radius = random.uniform(*habit.radius)
    starts = random.uniform(-MARGIN, extent + MARGIN, (32, 3))
    start = starts[int(np.argmax(np.minimum(forest.clearance(starts), 2 * radius) + random.uniform(0, radius, 32)))]
    direction = _unit(random.normal(size=3))
    # A process grows in both directions from a point inside: most processes pass through the volume, few end.
    shoots = [(start, direction, radius), (start, -direction, radius)]
    for n_shoot in range(2 + MOST_BRANCHES[habit]):
        if n_shoot >= len(shoots):
            break
        origin, heading, calibre = shoots[n_shoot]
        path = _walk(random, extent, habit, origin, heading, calibre, forest)
        along = np.arange(len(path)) * habit.step
        phase = random.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi * along / habit.period + phase[0]) * np.sin(
            1.1 * np.pi * along / habit.period + phase[1]
        )
        radii = calibre * (1 + habit.swelling * wave * np.where(wave > 0, 1.6, 0.7))
        forest.add(path, radii, process)
        for k in _chosen(random, len(path), habit.branches_per_micron * habit.step):
            shoots.append((path[k], _sideways(random, path, k), calibre * random.uniform(0.6, 0.9)))
        for k in _chosen(random, len(path), habit.spines_per_micron * habit.step):
            _grow_spine(random, path[k], _sideways(random, path, k), radii[k], process, forest)


def _walk(
    random: np.random.Generator,
    extent: Float,
    habit: _Habit,
    start: Float,
    direction: Float,
    radius: float,
    forest: _Forest,
) -> Float:
    """Return points from ``start`` until the walk leaves the volume; each step goes where there is most room."""
    path = [start]
    longest = int(1.6 * np.linalg.norm(extent) / habit.step) if habit is not GLIA else int(1600 / habit.step)
    for _ in range(longest):
        options = _unit(direction + habit.wander * random.normal(size=(8, 3)))
        room = np.minimum(forest.clearance(path[-1] + options * (habit.step + radius)), 2 * radius)
        direction = options[np.argmax(room / radius + 0.7 * options @ direction)]
        place = path[-1] + direction * habit.step
        if ((place < -MARGIN) | (place > extent + MARGIN)).any():
            break
        path.append(place)
    return np.array(path)


def _grow_spine(
    random: np.random.Generator, base: Float, direction: Float, trunk: float, process: int, forest: _Forest
) -> None:
    """Grow a thin neck that ends in a head."""
    length = trunk + random.uniform(350, 800)
    along = np.arange(0.6 * trunk, length, 40.0)
    bend = _unit(random.normal(size=3))
    neck = base + along[:, None] * direction + (along[:, None] / length) ** 2 * 150 * bend
    head = neck[-1] + direction * 80
    forest.add(np.vstack([neck, head]), np.append(np.full(len(neck), 60.0), random.uniform(130, 230)), process)


def _chosen(random: np.random.Generator, n: int, per_mille: float) -> list[int]:
    """Choose some of 0 .. n - 1, each with the given probability in thousandths."""
    return [int(k) for k in np.flatnonzero(random.random(n) < per_mille / 1000)]


def _sideways(random: np.random.Generator, path: Float, k: int) -> Float:
    """Return a direction across the path at its k-th point, tilted slightly forward."""
    ahead = _unit(path[min(k + 1, len(path) - 1)] - path[max(k - 1, 0)] + 1e-9)
    across = random.normal(size=3)
    return _unit(_unit(across - ahead * (across @ ahead)) + 0.4 * ahead)


def _unit(vectors: Float) -> Float:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
