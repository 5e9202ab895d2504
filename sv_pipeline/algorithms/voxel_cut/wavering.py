"""Parts of a cut that might as well be on the other side, and how much of each is probably wrong. Does not cut.

Two methods judge each cell of the race (race.py):

* the *lead*: by how much its side reached the cell earlier than the other, as a share of both costs;
* the *pull*: the balance of both sides in an electrical network, in which contacts conduct by the cross-sections of
  their necks. The race follows the one best path to a cell, the network all paths at once, so that a mistake of one is
  often none of the other.

Cells that were divided by distance have a lead at each voxel, and no pull. A logistic model turns this into the chance
to be wrong. Its coefficients were fitted on cuts of the development cases of ``benchmarks/voxel_cut_cases.py``, with
one to three seeds a side and one correction at most, by ``python -m benchmarks.voxel_doubt --fit``: the more clicks,
the less is wrong, and doubts matter most at the first cut.

::

    lead, pull --chance to be wrong--> what is likely enough, connected, and on one side = a part
                       |
                       +--what a correction in a cell would take--> the cell of a part to look at
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import cg

from sv_pipeline.algorithms.components import components
from sv_pipeline.algorithms.voxel_cut.cells import CellGraph
from sv_pipeline.algorithms.voxel_cut.corrections import cells_taken
from sv_pipeline.algorithms.voxel_cut.race import Race
from sv_pipeline.algorithms.voxel_cut.seeds import Mask
from sv_pipeline.algorithms.voxel_cut.steps import arrivals_of, consecutive_steps

__all__ = ["WaveringPart", "evidence", "wavering_parts"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CELL = (-0.86, -1.96, -1.25)
"""Logistic model of the chance that a cell is wrong: a constant, and the factors of its lead and its pull."""

VOXEL = (-0.72, -2.48)
"""The same for a voxel of a divided cell: a constant, and the factor of its lead."""

LIKELY_CELL, LIKELY_VOXEL = 0.15, 0.29
"""What has at least this chance to be wrong belongs to a doubtful part. One in ten voxels of all cuts is wrong. All
voxels along the cut of a divided cell have a small lead, so that a lower bound would doubt each such cut."""

STAKE = 0.02
"""Smallest share of a component that is expected to be wrong in a part that is worth a word."""

CANDIDATES = 8
"""Number of cells of a part that are tried as the place of one more point: those with most voxels at stake. The best
of all its cells is hardly ever better than the best of these."""

MOST_PAIRS = 4_000_000
"""Fewer are tried, but at least one, if they would have more pairs of consecutive steps than this in all."""

MOST_ROUNDS = 1_000
"""Largest number of rounds in which potentials are computed; they are estimates, and dozens of rounds are usual."""


@dataclass(frozen=True, eq=False)
class WaveringPart:
    """Connected cells or voxels of one side that might as well be on the other."""

    first: bool
    """Whether the first side has the part."""
    voxels: Bools
    """Which voxels of the component the part has, in x, y, z order."""
    wrong: float
    """Share of the part that is expected to be wrong."""
    core_of: Callable[[Bools], Bools]
    """Finds the ``core`` among the voxels, which takes longer than to find the part."""

    @cached_property
    def core(self) -> Bools:
        """Those of the voxels among which one more point should be placed: the voxels of one cell, or all."""
        return self.core_of(self.voxels)

    @property
    def stake(self) -> float:
        """Number of voxels that are expected to be wrong."""
        return self.wrong * np.count_nonzero(self.voxels)


def wavering_parts(mask: Mask, race: Race, first: Bools) -> list[WaveringPart]:
    """Return the doubtful parts of a cut, those with most at stake first.

    Parameters
    ----------
    mask
        A component of the mask that was cut.
    race
        The race in it.
    first
        The first side as it became after the race: one bool for each voxel of the component.
    """
    parts = _parts_of_cells(race, first) + _parts_of_voxels(mask, race, first)
    least = STAKE * len(first)
    return sorted((part for part in parts if part.stake >= least), key=lambda part: part.stake, reverse=True)


def _parts_of_cells(race: Race, first: Bools) -> list[WaveringPart]:
    if race.arrivals is None:
        return []
    graph, n = race.graph, len(race.graph)
    sizes = np.bincount(race.cells, minlength=n)
    of_first = 2 * np.bincount(race.cells, weights=first, minlength=n) >= sizes
    chance = _logistic(CELL, *evidence(graph, race.arrivals, of_first))
    chance[(race.arrivals == 0).any(axis=0)] = 0  # cells with seeds
    if race.leads is not None:
        chance[race.cells[~np.isnan(race.leads)]] = 0
    likely = chance >= LIKELY_CELL
    joined = likely[graph.lower] & likely[graph.upper] & (of_first[graph.lower] == of_first[graph.upper])
    labels = components(n, np.stack([graph.lower[joined], graph.upper[joined]], axis=1))
    stakes = np.where(likely, chance * sizes, 0.0)

    def core_of(own: Bools, voxels: Bools) -> Bools:
        return np.asarray(voxels & (race.cells == _most_telling(race, of_first, chance, sizes, own)))

    parts = []
    for label in np.flatnonzero(np.bincount(labels, weights=stakes) >= STAKE * len(first)):
        own = likely & (labels == label)
        side = bool(of_first[own][0])
        # A cell may have gone to both sides, when each side was made one piece.
        voxels = own[race.cells] & (first == side)
        wrong = float(stakes[own].sum() / sizes[own].sum())
        parts.append(WaveringPart(side, voxels, wrong, partial(core_of, own)))
    return parts


def _most_telling(race: Race, of_first: Bools, chance: Floats, sizes: npt.NDArray[np.int64], part: Bools) -> int:
    """Return the cell of a part where one more point is expected to win most, if it is a correction."""
    graph, arrivals = race.graph, race.arrivals
    assert arrivals is not None
    steps = consecutive_steps(graph)
    stakes = np.where(part, chance * sizes, 0.0)
    most = min(CANDIDATES, max(1, MOST_PAIRS // max(1, len(steps.before))))
    candidates = [cell for cell in np.argsort(-stakes, kind="stable")[:most] if part[cell]]
    if len(candidates) == 1:
        return int(candidates[0])
    side = of_first[candidates[0]]
    region = of_first == side
    others = int(sizes[~region].sum())
    rivals = np.flatnonzero(region & (arrivals[0 if side else 1] == 0)).astype(np.int32)
    theirs = arrivals_of(graph, steps, rivals, region)
    gains = []
    for cell in candidates:
        ours = arrivals_of(graph, steps, np.array([cell]), region)
        taken = cells_taken(graph, region, cell, rivals, (ours, theirs), float(graph.radii[cell]))
        size = int(sizes[taken].sum())
        gains.append(chance[cell] * size / (size + others))
    return int(candidates[int(np.argmax(gains))])


def _parts_of_voxels(mask: Mask, race: Race, first: Bools) -> list[WaveringPart]:
    """Return the parts of cells that were divided by distance."""
    if race.leads is None:
        return []
    chance = _logistic(VOXEL, np.where(first, race.leads, -race.leads))  # NaN outside the divided cells
    image = np.zeros(mask.shape, np.uint8, order="F")
    image[mask] = np.where(chance >= LIKELY_VOXEL, np.where(first, 1, 2), 0)
    labels = cc3d.connected_components(image, connectivity=26)[mask]
    counts = np.bincount(labels)
    stakes = np.bincount(labels, weights=np.where(labels > 0, chance, 0))
    parts = []
    for label in np.flatnonzero(stakes >= STAKE * len(first)):
        voxels = labels == label
        wrong = float(stakes[label] / counts[label])
        parts.append(WaveringPart(bool(first[voxels][0]), voxels, wrong, lambda voxels: voxels))
    return parts


def evidence(graph: CellGraph, arrivals: Floats, of_first: Bools) -> tuple[Floats, Floats]:
    """Return lead and pull of each cell, -1 (all speaks for the other side) to 1 (all speaks for its side)."""
    side = np.where(of_first, 1.0, -1.0)
    with np.errstate(invalid="ignore"):  # what one side or no side reaches
        lead = np.nan_to_num((arrivals[1] - arrivals[0]) / (arrivals[0] + arrivals[1]), nan=1.0)
    starts = arrivals == 0
    return side * lead, side * (2 * _potentials(graph, starts[0], starts[1]) - 1)


def _logistic(model: tuple[float, ...], *measures: npt.NDArray[np.floating]) -> Floats:
    constant, *factors = model
    score = constant + sum(factor * measure for factor, measure in zip(factors, measures, strict=True))
    return np.asarray(1 / (1 + np.exp(-score)), np.float64)


def _potentials(graph: CellGraph, first: Bools, second: Bools) -> Floats:
    """Return the potential of each cell in a network between the cells ``first`` (1) and ``second`` (0)."""
    potentials = np.where(first, 1.0, 0.0)
    free = np.flatnonzero(~(first | second))
    if not len(free):
        return potentials
    n = len(graph)
    lengths = np.linalg.norm(graph.centres[graph.upper] - graph.centres[graph.lower], axis=1)
    conductances = graph.necks**2 / np.maximum(lengths, 1e-6)
    ends = np.concatenate([graph.lower, graph.upper]), np.concatenate([graph.upper, graph.lower])
    ways = csr_array((np.tile(conductances, 2), ends), shape=(n, n))
    total = ways.sum(axis=1)[free]
    inflow = np.asarray(ways[free][:, np.flatnonzero(first)].sum(axis=1)).ravel()
    # Conjugate gradients, not elimination: porous masks have tens of thousands of cells.
    scaled = diags_array(1 / total)
    potentials[free], _ = cg(diags_array(total) - ways[free][:, free], inflow, M=scaled, rtol=1e-5, maxiter=MOST_ROUNDS)
    return potentials
