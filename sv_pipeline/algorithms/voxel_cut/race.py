"""Where to cut a connected mask: a race between the sides through its cells. Does not check input.

Both sides spread from their seeds through the graph of cells, and each cell goes to the side that reaches it first. The
cost of a step distinguishes one neurite from two that touch:

* its length, divided by how open the passage is (cross-section of the neck over that of the two cells);
* for each turn by an angle t in a cell of radius r, ``TURN * r * (1 - cos t)**2``, where the path follows the normals
  of the contacts that it crosses. A neurite continues straight; a path from another neurite has to turn into it. Where
  two neurites cross, this assigns the far arms to their owners, which distance alone cannot do.

A cell with seeds of both sides is divided by distance inside it, and so is a lump of few cells without a neck. If the
seeds of a side mark the surface of an object, that side gets the surface, and there is no race.

The method is Dijkstra's algorithm on the graph of directed contacts, so that a path remembers where it came from. It is
measured against other methods in docs/design/002-voxel-cut.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import dijkstra3d
import edt
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph, cell_graph, find_cells, renumbered
from sv_pipeline.algorithms.voxel_cut.pieces import in_one_piece, keep_seeded_pieces, with_arms
from sv_pipeline.algorithms.voxel_cut.seeds import Mask, SeedPair, join_seeds
from sv_pipeline.algorithms.voxel_cut.surface import near_surface, stands_for_surface
from sv_pipeline.algorithms.voxel_cut.voxels import Voxels
from sv_pipeline.errors import InputError

__all__ = ["cut_connected"]

TURN = 50.0
"""Cost of a right-angled turn, in cell radii; it must outweigh differences in click positions of a few micrometres."""

SHALLOW = 4
"""Exponent of the extra cost for voxels deeper than a side's deepest seed, in a cell with seeds of both sides."""

FEWEST_CELLS = 30
"""A mask of fewer cells with close seeds is too small to show the direction of its neurites; it is used as one cell."""

CLOSE = 2
"""Seeds are close if at most this many passages separate them, none of them a neck."""

NARROWEST = 0.4
"""Narrower passages than this fraction of the mean calibre cost no more, so that the neck of a spine does not separate
it from its own neuron. Without this limit, the worst tenth of the cuts gets worse."""

NECK = 0.5
"""A passage is a neck if it is narrower than this fraction of the mean calibre of its two cells."""

MOST_TURNS = 4_000_000
"""Largest number of pairs of consecutive steps. Porous masks have many small cells; cells are then made coarser."""

COARSEST = 64.0


@dataclass(frozen=True)
class _Steps:
    """Directed contacts, and which may follow which.

    ``left`` and ``entered`` are the cells of each step; ``before`` and ``after`` are pairs of consecutive steps.
    """

    left: npt.NDArray[np.int64]
    entered: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]


def cut_connected(mask: Mask, seeds: SeedPair, spacing: tuple[float, float, float]) -> Mask:
    """Return the first side of a 26-connected mask; both sides are 26-connected.

    Raises
    ------
    InputError
        If the seeds interleave so that no way was found to keep both sides in one piece.
    """
    deep = edt.edt(mask, anisotropy=spacing, black_border=True)
    first = _race(mask, deep[mask], seeds, spacing)
    arms = SeedPair(with_arms(first, seeds.first, deep), with_arms(mask & ~first, seeds.second, deep))
    try:
        return _joined(mask, deep, first, arms)
    except InputError:  # every seed must be kept, but not every arm
        return _joined(mask, deep, first, seeds)


def _race(mask: Mask, depth: npt.NDArray[np.float32], seeds: SeedPair, spacing: tuple[float, float, float]) -> Mask:
    """Return the first side according to the race, and release the memory that the race needs."""
    voxels = Voxels(mask, spacing)
    cells, graph = _cells(voxels, depth)
    return _raced(voxels, depth, cells, graph, seeds)


def _joined(mask: Mask, deep: npt.NDArray[np.float32], first: Mask, seeds: SeedPair) -> Mask:
    """Make each side one piece that contains all its ``seeds``."""
    if in_one_piece(first, seeds.first) and in_one_piece(mask & ~first, seeds.second):
        return keep_seeded_pieces(mask, first, seeds)
    # Paths join the pieces of a side that contain seeds. Another race that starts from whole paths would give much
    # worse results, because it gives away what lies along them.
    joined = join_seeds(mask, deep, first, seeds)
    sides = first.copy()
    sides[tuple(joined.first.T)] = True
    sides[tuple(joined.second.T)] = False
    return keep_seeded_pieces(mask, sides, joined)


def _cells(voxels: Voxels, depth: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], CellGraph]:
    coarseness = 1.0
    while True:
        cells = find_cells(voxels, depth, coarseness)
        graph = cell_graph(voxels, depth, cells)
        degrees = np.bincount(np.concatenate([graph.lower, graph.upper]), minlength=len(graph))
        if (degrees**2).sum() <= MOST_TURNS or coarseness >= COARSEST:
            return cells, graph
        coarseness *= 2


def _raced(
    voxels: Voxels, depth: npt.NDArray[np.float32], cells: npt.NDArray[np.int32], graph: CellGraph, seeds: SeedPair
) -> Mask:
    """Return the first side, which may be in pieces; the seeds of each side are on their own side."""
    numbers = [voxels.numbers_of(side) for side in (seeds.first, seeds.second)]
    for side, other in (numbers, numbers[::-1]):
        if stands_for_surface(depth, cells, graph, side, other):
            claimed = near_surface(voxels, depth, side)
            claimed[other] = False
            return voxels.image(claimed if side is numbers[0] else ~claimed)
    if len(graph) < FEWEST_CELLS and _close_together(graph, cells[numbers[0]], cells[numbers[1]]):
        cells = np.zeros_like(cells)
    shared = np.intersect1d(cells[numbers[0]], cells[numbers[1]])
    if len(shared):
        cells = _parted(voxels, depth, cells, seeds, shared)
        graph = cell_graph(voxels, depth, cells)
    starts = [np.unique(cells[side]) for side in numbers]
    steps = _steps(graph)
    arrivals = [_arrivals(graph, steps, side) for side in starts]
    return voxels.image((arrivals[0] <= arrivals[1])[cells])


def _parted(
    voxels: Voxels,
    depth: npt.NDArray[np.float32],
    cells: npt.NDArray[np.int32],
    seeds: SeedPair,
    shared: npt.NDArray[np.int32],
) -> npt.NDArray[np.int32]:
    """Divide cells that contain seeds of both sides, by distance inside them.

    Distances are weighted more where the object is deeper than the seeds of the side: if the other side has the middle
    of a bulge, a seed near its surface can only mark something at the surface.
    """
    members = np.isin(cells, shared)
    inside = voxels.image(members)
    costs = []
    for side in (seeds.first, seeds.second):
        own = side[inside[tuple(side.T)]]
        distance = dijkstra3d.euclidean_distance_field(
            inside, [tuple(seed) for seed in own.tolist()], anisotropy=tuple(voxels.spacing.tolist())
        )[voxels.mask][members]
        deeper = np.maximum(1, depth[members] / depth[voxels.numbers_of(own)].max())
        costs.append(distance * deeper**SHALLOW)
    part = np.zeros(voxels.number, np.int64)
    part[members] = costs[0] <= costs[1]
    part[voxels.numbers_of(seeds.first)], part[voxels.numbers_of(seeds.second)] = 1, 0
    part[~members] = 0
    return renumbered(2 * cells.astype(np.int64) + part)


def _openness(graph: CellGraph) -> npt.NDArray[np.float64]:
    """Return the neck depth of each contact over the mean calibre (radius) of its two cells, at most 1."""
    return np.asarray(np.minimum(graph.necks / np.sqrt(graph.radii[graph.lower] * graph.radii[graph.upper]), 1))


def _close_together(graph: CellGraph, first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> bool:
    """Whether at most ``CLOSE`` passages, none of them a neck, lead from a cell of ``first`` to one of ``second``."""
    wide = _openness(graph) >= NECK
    near = np.zeros(len(graph), np.bool_)
    near[first] = True
    for _ in range(CLOSE):
        onward, back = near[graph.lower] & wide, near[graph.upper] & wide
        near[graph.upper[onward]] = near[graph.lower[back]] = True
    return bool(near[second].any())


def _steps(graph: CellGraph) -> _Steps:
    left, entered = np.concatenate([graph.lower, graph.upper]), np.concatenate([graph.upper, graph.lower])
    by_cell = np.argsort(left, kind="stable")
    begins = np.searchsorted(left[by_cell], np.arange(len(graph) + 1))
    counts = np.diff(begins)[entered]
    before = np.repeat(np.arange(len(left)), counts)
    nth = np.arange(len(before)) - np.repeat(np.cumsum(counts) - counts, counts)
    after = by_cell[begins[entered[before]] + nth]
    onward = left[before] != entered[after]
    return _Steps(left, entered, before[onward], after[onward])


def _arrivals(graph: CellGraph, steps: _Steps, starts: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return the cost of the cheapest path from the cells ``starts`` to each cell."""
    lengths = np.linalg.norm(graph.centres[steps.entered] - graph.centres[steps.left], axis=1)
    directions = np.concatenate([graph.normals, -graph.normals])
    costs = lengths / np.tile(np.maximum(_openness(graph), NARROWEST), 2) ** 2
    cosines = (directions[steps.before] * directions[steps.after]).sum(axis=1)
    turns = TURN * graph.radii[steps.entered[steps.before]] * (1 - cosines) ** 2
    n_steps = len(costs)
    outset = np.flatnonzero(np.isin(steps.left, starts))
    # All first steps start from an extra node, number n_steps. Costs are positive, since 0 would mean no edge.
    weights = np.concatenate([costs[steps.after] + turns, costs[outset]]) + 1e-6
    tails = np.concatenate([steps.before, np.full(len(outset), n_steps)])
    heads = np.concatenate([steps.after, outset])
    ways_on = csr_array((weights, (tails, heads)), shape=(n_steps + 1, n_steps + 1))
    reached = dijkstra(ways_on, directed=True, indices=n_steps)[:n_steps]
    arrivals = np.full(len(graph), np.inf)
    np.minimum.at(arrivals, steps.entered, reached)
    arrivals[starts] = 0
    return arrivals
