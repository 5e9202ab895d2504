"""Parts of a cut that might as well be on the other side, and the chance that each is wrong. Does not change the cut.

Two methods judge each cell of the race (race.py):

* the *lead*: by how much the side of the cell reached it earlier than the other, as a share of both costs;
* the *pull*: the share of its side in an electrical network, in which the contacts of cells conduct by their necks. The
  race follows the one best path to a cell, the network all paths at once, so that a mistake of one is often none of
  the other.

::

    lead and pull of each cell --chance that it is wrong--> connected cells of one side with a high chance = a part
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph
from sv_pipeline.algorithms.voxel_cut.race import Race

__all__ = ["WaveringPart", "chances", "wavering_parts"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ALWAYS, LEAD, PULL = -0.27, -2.7, -1.18
"""Coefficients of the logistic model of the chance that a cell is wrong."""

LIKELY = 0.25
"""A cell with at least this chance to be wrong belongs to a doubtful part."""

SMALLEST = 0.01
"""Smallest share of the voxels of a component that a part has."""


@dataclass(frozen=True, eq=False)
class WaveringPart:
    """Connected cells of one side that might as well be on the other."""

    first: bool
    """Whether the first side has the part."""
    voxels: Bools
    """Which voxels of the component the part has, shape (number of voxels,)."""
    core: Bools
    """Those voxels of the part that are in the cell with most at stake, shape (number of voxels,)."""
    wrong: float
    """Share of the part that is expected to be wrong."""

    @property
    def stake(self) -> float:
        """Number of voxels that are expected to be wrong."""
        return self.wrong * np.count_nonzero(self.voxels)


def wavering_parts(race: Race, first: Bools) -> list[WaveringPart]:
    """Return the doubtful parts of a cut, those with most at stake first.

    Parameters
    ----------
    race
        The race in a component of the mask.
    first
        The first side as it became after the race: one bool for each voxel of the component.
    """
    if race.arrivals is None:
        return []
    graph, n = race.graph, len(race.graph)
    sizes = np.bincount(race.cells, minlength=n)
    of_first = 2 * np.bincount(race.cells, weights=first, minlength=n) >= sizes
    chance = chances(graph, race.arrivals, of_first)
    doubtful = chance >= LIKELY
    joined = doubtful[graph.lower] & doubtful[graph.upper] & (of_first[graph.lower] == of_first[graph.upper])
    pairs = graph.lower[joined], graph.upper[joined]
    labels = connected_components(csr_array((np.ones(len(pairs[0])), pairs), shape=(n, n)), directed=False)[1]
    totals = np.bincount(labels[doubtful], weights=sizes[doubtful], minlength=n)
    parts = []
    for label in np.flatnonzero(totals >= SMALLEST * len(race.cells)):
        own = doubtful & (labels == label)
        side = bool(of_first[own][0])
        # A cell may have gone to both sides, when each side was made one piece.
        voxels = own[race.cells] & (first == side)
        core = voxels & (race.cells == np.where(own, chance * sizes, 0).argmax())
        parts.append(WaveringPart(side, voxels, core, float(np.average(chance[own], weights=sizes[own]))))
    return sorted(parts, key=lambda part: part.stake, reverse=True)


def chances(graph: CellGraph, arrivals: Floats, of_first: Bools) -> Floats:
    """Return the chance that each cell is on the wrong side, shape (number of cells,); 0 for cells with seeds."""
    side = np.where(of_first, 1.0, -1.0)
    with np.errstate(invalid="ignore"):
        lead = side * np.nan_to_num((arrivals[1] - arrivals[0]) / (arrivals[0] + arrivals[1]), nan=1.0)
    starts = arrivals == 0
    pull = side * (2 * _shares(graph, starts[0], starts[1]) - 1)
    chance = 1 / (1 + np.exp(-(ALWAYS + LEAD * lead + PULL * pull)))
    return np.asarray(np.where(starts.any(axis=0), 0.0, chance))


def _shares(graph: CellGraph, first: Bools, second: Bools) -> Floats:
    """Return the potential of each cell in a network between the cells ``first`` (1) and ``second`` (0)."""
    potential = np.where(first, 1.0, 0.5)
    potential[second] = 0.0
    free = np.flatnonzero(~(first | second))
    if not len(free):
        return potential
    n = len(graph)
    lengths = np.linalg.norm(graph.centres[graph.upper] - graph.centres[graph.lower], axis=1)
    conductances = graph.necks**2 / np.maximum(lengths, 1e-6)
    ends = np.concatenate([graph.lower, graph.upper]), np.concatenate([graph.upper, graph.lower])
    ways = csr_array((np.tile(conductances, 2), ends), shape=(n, n))
    # A touch of leakage to the middle keeps the matrix regular, where cells are cut off by seeds.
    leak = 1e-9 * float(conductances.max())
    diagonal = csr_array((ways.sum(axis=1)[free] + leak, (np.arange(len(free)), np.arange(len(free)))))
    inside = (diagonal - ways[free][:, free]).tocsc()
    fixed = np.flatnonzero(first)
    inflow = np.asarray(ways[free][:, fixed].sum(axis=1)).ravel() + leak / 2
    potential[free] = splu(inside).solve(inflow)
    return potential
