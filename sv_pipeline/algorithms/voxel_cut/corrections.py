"""The recut around a seed that a cut contradicts: what else goes to its side. Does not choose the seed.

Such a seed is a *correction*. It says that the side which has its place is wrong there, and nothing about other places.
So the correction races against the seeds of that side, inside the ground of that side, and takes only what it reaches
at ``REACH`` of their cost. With equal chances it would take half of the way to them, most of which was right.

A correction is expected in the middle of what is wrong. So it takes nothing much thicker than where it lies; and if it
is off the middle of its cell, the middle stays. It takes no voxel to which a seed of the other side is nearer, and only
its surroundings where it lies in a layer of a few voxels.

If the race took the mask for a lump (see race.py), or gave a side the surface, both sides go by distance from voxel to
voxel, not from cell to cell. In a small mask whose cells did race, the cells are the better guide: by distance, a
correction near a seed of the other side takes its surroundings on all sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sv_pipeline.algorithms.components import components
from sv_pipeline.algorithms.voxel_cut.cells import CellGraph, divided
from sv_pipeline.algorithms.voxel_cut.race import Race, costs_inside
from sv_pipeline.algorithms.voxel_cut.steps import arrivals_of, consecutive_steps
from sv_pipeline.algorithms.voxel_cut.voxels import Voxels

__all__ = ["Correction", "Ground", "cells_taken", "recut"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int32]

REACH = 0.3
"""A correction takes the cells that it reaches at this fraction of the cost of the other side, or less. At 0.4, twice
as many corrections of fused pairs make the cut worse; at 1, the first one makes half of the cuts worse."""

REACH_IN_LUMP = 0.4
"""The same for voxels where both sides go by distance. At 0.25, a correction takes too little."""

OFF_MIDDLE = 0.8
"""A correction is off the middle of its cell if it is less deep in the ground of the losing side than this fraction of
the deepest voxel there."""

THICKER = 1.25
"""A correction takes no cell whose radius is more than this many times its own depth in the ground of the losing side:
if that were wrong too, the correction would lie there."""

THIN = 3.0
"""What is wrong is a layer if a correction lies at most this many voxels of the finest axis deep in it. Cells are then
no guide to how far it goes: most of each cell is beside the layer."""

THIN_REACH = 3.0
"""A correction in a layer takes what is at most this many times its depth away."""


@dataclass(frozen=True, eq=False)
class Ground:
    """A connected mask as cells, before any race."""

    voxels: Voxels
    depth: npt.NDArray[np.float32]
    cells: Numbers
    graph: CellGraph


@dataclass(frozen=True, eq=False)
class Correction:
    """A seed that the cut contradicts, or several of one side."""

    seeds: Numbers
    """Numbers of their voxels."""
    to_first: bool
    """Whether they belong to the first side."""
    rivals: Numbers
    """Voxels of the seeds that the other side has; they stay there."""


def recut(
    ground: Ground, race: Race, first: Bools, correction: Correction, *, by_distance: bool = False
) -> tuple[Bools, Race]:
    """Return the first side with a correction, and the race as it is then.

    Only voxels of the side that has the seed change their side. The sides may be in pieces afterwards.

    Parameters
    ----------
    ground
        The mask.
    race
        The race that led to the cut, with earlier corrections.
    first
        The voxels of the first side, shape (number of voxels,).
    correction
        A seed on the wrong side, or several if ``by_distance``.
    by_distance
        Whether to go from voxel to voxel in any case.
    """
    losing = first != correction.to_first
    if by_distance or race.lump or race.arrivals is None:
        taken, race = _by_distance(ground, race, losing, correction)
    else:
        taken, race = _by_cells(ground, race, losing, correction)
    taken[correction.rivals] = False
    taken[correction.seeds] = True
    return np.where(taken, correction.to_first, first), race


def _by_distance(ground: Ground, race: Race, losing: Bools, correction: Correction) -> tuple[Bools, Race]:
    """Return the voxels that a correction takes in a lump, and the race."""
    both = correction.seeds, correction.rivals
    costs = [costs_inside(ground.voxels, ground.depth, losing, seeds) for seeds in both]
    taken = np.zeros_like(losing)
    taken[losing] = costs[0] <= REACH_IN_LUMP * costs[1]
    leads = np.full(len(losing), np.nan, np.float32) if race.leads is None else race.leads.copy()
    with np.errstate(invalid="ignore"):
        lead = (REACH_IN_LUMP * costs[1] - costs[0]) / (REACH_IN_LUMP * costs[1] + costs[0])
    leads[losing] = lead if correction.to_first else -lead
    return taken, replace(race, leads=leads)


def _by_cells(ground: Ground, race: Race, losing: Bools, correction: Correction) -> tuple[Bools, Race]:
    """Return the voxels that a correction takes in a race through cells, and the race."""
    (seed,) = correction.seeds
    race, depth = _parted(ground, race, losing, correction)
    assert race.arrivals is not None
    graph, cells, n = race.graph, race.cells, len(race.graph)
    start = cells[seed]
    region = 2 * np.bincount(cells, weights=losing, minlength=n) > np.bincount(cells, minlength=n)
    region[start] = True
    rivals = np.unique(cells[correction.rivals])
    steps = consecutive_steps(graph)
    ours, theirs = (arrivals_of(graph, steps, starts, region) for starts in (np.array([start]), rivals[region[rivals]]))
    taken = cells_taken(graph, region, int(start), rivals, (ours, theirs), float(depth))
    own, other = (0, 1) if correction.to_first else (1, 0)
    arrivals = race.arrivals.copy()
    arrivals[own, region] = np.minimum(arrivals[own], ours / REACH)[region]
    arrivals[own, start] = 0
    arrivals[other, taken] = np.maximum(arrivals[other], theirs)[taken]
    return _near(ground, taken[cells] & losing, correction, float(depth)), replace(race, arrivals=arrivals)


def cells_taken(
    graph: CellGraph, region: Bools, start: int, rivals: Numbers, arrivals: tuple[Floats, Floats], depth: float
) -> Bools:
    """Return the cells that a correction takes.

    Parameters
    ----------
    graph, region
        The cells, and which of them the losing side has.
    start, rivals
        The cell of the correction, and those with seeds of the losing side.
    arrivals
        Cost at which each cell is reached from ``start`` and from the ``rivals``, through the region.
    depth
        Depth of the correction in the ground of the losing side, in nm.
    """
    ours, theirs = arrivals
    taken = region & np.isfinite(ours) & (ours <= REACH * theirs)
    taken &= graph.radii <= THICKER * depth
    taken[rivals] = False
    taken[start] = True
    return _joined_to(graph, taken, start)


def _near(ground: Ground, taken: Bools, correction: Correction, depth: float) -> Bools:
    """Return what a correction at a ``depth`` (nm) keeps of the voxels ``taken`` in whole cells."""
    voxels, spacing = ground.voxels, ground.voxels.spacing
    numbers = np.flatnonzero(taken)
    places = voxels.coordinates[numbers] * spacing
    (seed,) = voxels.coordinates[correction.seeds] * spacing
    distances = np.linalg.norm(places - seed, axis=1)
    rivals = cKDTree(voxels.coordinates[correction.rivals] * spacing)
    kept = distances <= rivals.query(places)[0]
    if depth <= THIN * spacing.min():
        kept &= distances <= THIN_REACH * depth
    near = np.zeros_like(taken)
    near[numbers[kept]] = True
    return near


def _parted(ground: Ground, race: Race, losing: Bools, correction: Correction) -> tuple[Race, np.float32]:
    """Divide the cell of a correction if the other side has a seed in it, or its middle.

    Returns
    -------
    race
        The race with the cell divided.
    depth
        Depth of the correction in the ground of the losing side, in nm.
    """
    assert race.arrivals is not None
    (seed,) = correction.seeds
    inside = race.cells == race.cells[seed]
    rivals = correction.rivals[inside[correction.rivals]]
    there = correction.seeds if len(rivals) else np.flatnonzero(inside & losing)
    depths = _depth_in(ground, losing, there)
    depth = depths[there == seed][0]
    if not len(rivals):
        if depth >= OFF_MIDDLE * depths.max():
            return race, depth
        rivals = there[[depths.argmax()]]
    costs = [costs_inside(ground.voxels, ground.depth, inside, seeds) for seeds in (correction.seeds, rivals)]
    taken = np.zeros(len(inside), np.bool_)
    taken[inside] = costs[0] <= costs[1]
    taken[rivals], taken[seed] = False, True
    cell = int(race.cells[seed])
    cells, graph = divided(ground.voxels, ground.depth, race.cells, race.graph, cell, taken[inside])
    arrivals = np.insert(race.arrivals, cell, race.arrivals[:, cell], axis=1)
    return replace(race, cells=cells, graph=graph, arrivals=arrivals), depth


def _depth_in(ground: Ground, side: Bools, numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
    """Return the distance of some voxels of a side to what is outside of that side, in nm."""
    places, spacing = ground.voxels.coordinates[numbers], ground.voxels.spacing
    reach = np.ceil(ground.depth[numbers].max() / spacing).astype(np.int64)
    low, box = ground.voxels.within(places.min(axis=0) - reach, places.max(axis=0) + reach + 1)
    image = np.asfortranarray(np.append(side, np.False_)[box]).view(np.uint8)
    return np.asarray(edt.edt(image, anisotropy=tuple(spacing.tolist()))[tuple((places - low).T)])


def _joined_to(graph: CellGraph, chosen: Bools, cell: int) -> Bools:
    """Return those of the ``chosen`` cells that hang together with ``cell``."""
    ways = chosen[graph.lower] & chosen[graph.upper]
    parts = components(len(graph), np.stack([graph.lower[ways], graph.upper[ways]], axis=1))
    return np.asarray(chosen & (parts == parts[cell]))
