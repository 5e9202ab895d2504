"""Where to cut a connected mask: a race between the sides through its cells. Does not check input.

Both sides spread from their seeds through the graph of cells, and each cell goes to the side that reaches it first, by
the costs of steps.py. A side that continues straight through a crossing keeps the far arm.

A cell with seeds of both sides is divided by distance inside it, and so is a lump of few cells without a neck. If the
seeds of a side mark the surface of an object, that side gets the surface, and there is no race.

The method is measured against others in docs/design/002-voxel-cut.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dijkstra3d
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph, cell_graph, find_cells, renumbered
from sv_pipeline.algorithms.voxel_cut.seeds import SeedPair
from sv_pipeline.algorithms.voxel_cut.steps import arrivals_of, consecutive_steps, openness
from sv_pipeline.algorithms.voxel_cut.surface import near_surface, stands_for_surface
from sv_pipeline.algorithms.voxel_cut.voxels import Voxels

__all__ = [
    "Race",
    "costs_inside",
    "marked_surface",
    "race_cells",
    "raced",
]

SHALLOW = 4
"""Exponent of the extra cost for voxels deeper than a side's deepest seed, in a cell with seeds of both sides."""

FEWEST_CELLS = 30
"""A mask of fewer cells with close seeds is too small to show the direction of its neurites; it is used as one cell."""

CLOSE = 2
"""Seeds are close if at most this many passages separate them, none of them a neck."""

NECK = 0.5
"""A passage is a neck if it is narrower than this fraction of the mean calibre of its two cells."""

MOST_TURNS = 4_000_000
"""Largest number of pairs of consecutive steps. Porous masks have many small cells; cells are then made coarser."""

COARSEST = 64.0


@dataclass(frozen=True, eq=False)
class Race:
    """How a connected mask was cut: what tells how sure the cut is."""

    cells: npt.NDArray[np.int32]
    """Cell of each voxel of the mask, in x, y, z order."""
    graph: CellGraph
    arrivals: npt.NDArray[np.float64] | None
    """Cost at which each side reaches each cell, shape (2, number of cells); None if one side got the surface."""
    leads: npt.NDArray[np.float32] | None = None
    """How much nearer the first side is to each voxel of a cell that was divided by distance: the difference of the
    costs over their sum, NaN for other voxels; None if no cell was divided."""
    lump: bool = False
    """Whether the mask was used as one cell, in which both sides go by distance."""


def race_cells(voxels: Voxels, depth: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], CellGraph]:
    """Return the cell of each voxel and the graph of the cells; they are coarser where they would be too many."""
    coarseness = 1.0
    while True:
        cells = find_cells(voxels, depth, coarseness)
        graph = cell_graph(voxels, depth, cells)
        degrees = np.bincount(np.concatenate([graph.lower, graph.upper]), minlength=len(graph))
        if (degrees**2).sum() <= MOST_TURNS or coarseness >= COARSEST:
            return cells, graph
        coarseness *= 2


def marked_surface(
    voxels: Voxels, depth: npt.NDArray[np.float32], cells: npt.NDArray[np.int32], graph: CellGraph, seeds: SeedPair
) -> int | None:
    """Return the side (0 or 1) whose seeds mark the surface, so that it gets the surface without a race; or None."""
    numbers = [voxels.numbers_of(side) for side in (seeds.first, seeds.second)]
    marks = (stands_for_surface(depth, cells, graph, numbers[side], numbers[1 - side]) for side in (0, 1))
    return next((side for side, stands in enumerate(marks) if stands), None)


def raced(
    voxels: Voxels, depth: npt.NDArray[np.float32], cells: npt.NDArray[np.int32], graph: CellGraph, seeds: SeedPair
) -> tuple[npt.NDArray[np.bool_], Race]:
    """Return the voxels of the first side, which may be in pieces; the seeds of each side are on their own side."""
    numbers = [voxels.numbers_of(side) for side in (seeds.first, seeds.second)]
    marked = marked_surface(voxels, depth, cells, graph, seeds)
    if marked is not None:
        claimed = near_surface(voxels, depth, numbers[marked])
        claimed[numbers[1 - marked]] = False
        return claimed if marked == 0 else ~claimed, Race(cells, graph, None)
    lump = len(graph) < FEWEST_CELLS and _close_together(graph, cells[numbers[0]], cells[numbers[1]])
    if lump:
        cells = np.zeros_like(cells)
    shared = np.intersect1d(cells[numbers[0]], cells[numbers[1]])
    leads = None
    if len(shared):
        cells, leads = _parted(voxels, depth, cells, seeds, shared)
        graph = cell_graph(voxels, depth, cells)
    starts = [np.unique(cells[side]) for side in numbers]
    steps = consecutive_steps(graph)
    arrivals = np.stack([arrivals_of(graph, steps, side) for side in starts])
    return (arrivals[0] <= arrivals[1])[cells], Race(cells, graph, arrivals, leads, lump)


def _parted(
    voxels: Voxels,
    depth: npt.NDArray[np.float32],
    cells: npt.NDArray[np.int32],
    seeds: SeedPair,
    shared: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Divide cells that contain seeds of both sides, by distance inside them; return the new cells and the leads."""
    members = np.isin(cells, shared)
    costs = []
    for side in (seeds.first, seeds.second):
        own = voxels.numbers_of(side)
        costs.append(costs_inside(voxels, depth, members, own[members[own]]))
    part = np.zeros(voxels.number, np.int64)
    part[members] = costs[0] <= costs[1]
    part[voxels.numbers_of(seeds.first)], part[voxels.numbers_of(seeds.second)] = 1, 0
    part[~members] = 0
    leads = np.full(voxels.number, np.nan, np.float32)
    with np.errstate(invalid="ignore"):  # what no seed reaches inside the cells
        leads[members] = (costs[1] - costs[0]) / (costs[0] + costs[1])
    return renumbered(2 * cells.astype(np.int64) + part), leads


def costs_inside(
    voxels: Voxels, depth: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], seeds: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """Return the weighted distance of the voxels ``inside`` to the nearest of the ``seeds``, on ways inside.

    Distances are weighted more where the object is deeper than the seeds: if the other side has the middle of a bulge,
    a seed near its surface can only mark something at the surface.
    """
    places = voxels.coordinates[inside]
    low = places.min(axis=0)
    image = np.zeros(places.max(axis=0) - low + 1, np.bool_, order="F")
    at = tuple((places - low).T)
    image[at] = True
    starts = [tuple(seed) for seed in (voxels.coordinates[seeds] - low).tolist()]
    distance = dijkstra3d.euclidean_distance_field(image, starts, anisotropy=tuple(voxels.spacing.tolist()))[at]
    return np.asarray(distance * np.maximum(1, depth[inside] / depth[seeds].max()) ** SHALLOW, np.float64)


def _close_together(graph: CellGraph, first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> bool:
    """Whether at most ``CLOSE`` passages, none of them a neck, lead from a cell of ``first`` to one of ``second``."""
    wide = openness(graph) >= NECK
    near = np.zeros(len(graph), np.bool_)
    near[first] = True
    for _ in range(CLOSE):
        onward, back = near[graph.lower] & wide, near[graph.upper] & wide
        near[graph.upper[onward]] = near[graph.lower[back]] = True
    return bool(near[second].any())
