"""What a way through the cells of a mask costs: steps over contacts, and turns between them. Knows no sides.

The cost of a step distinguishes one neurite from two that touch:

* its *length*, divided by how open the passage is (cross-section of the neck over that of the two cells);
* for each *turn* by an angle t in a cell of radius r, ``TURN * r * (1 - cos t)**2``, where the way follows the normals
  of the contacts that it crosses. A neurite continues straight; a way from another neurite has to turn into it;
* its *excess* over the best alternative, at each of its ends: over the best way on from where it comes from, and over
  the best way to where it goes. A way that leaves a line which it could follow, or enters a line that somebody else
  could follow, pays that much more. A neurite that bends where nothing else continues its line, and where the line
  that it enters continues nothing else, pays for the bend alone.

::

       A              B ends at A. It could go nowhere else, so that leaving its own line has no excess; but each half
       |              of A has a better way to it, from the other half. So B pays twice for the turn into A.
       |----- B
       |
       A

Ways are found by Dijkstra's algorithm on the graph of directed contacts, so that a way remembers where it came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph

__all__ = ["Steps", "arrivals_of", "consecutive_steps", "openness"]

Floats = npt.NDArray[np.float64]

TURN = 35.0
"""Cost of a right-angled turn, in cell radii; it must outweigh differences in click positions of a few micrometres."""

NARROWEST = 0.3
"""Narrower passages than this fraction of the mean calibre cost no more, so that the neck of a spine does not separate
it from its own neuron. Without this limit, the worst tenth of the cuts gets worse."""


@dataclass(frozen=True)
class Steps:
    """Directed contacts, which may follow which, and what that costs.

    ``left`` and ``entered`` are the cells of each step; ``before`` and ``after`` are pairs of consecutive steps.
    """

    left: npt.NDArray[np.int64]
    entered: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    after: npt.NDArray[np.int64]
    outset: Floats
    """Cost of each step if a way starts with it."""
    onward: Floats
    """Cost of the later step of each pair, with the turn between them."""


def openness(graph: CellGraph) -> Floats:
    """Return the neck depth of each contact over the mean calibre (radius) of its two cells, at most 1."""
    return np.asarray(np.minimum(graph.necks / np.sqrt(graph.radii[graph.lower] * graph.radii[graph.upper]), 1))


def consecutive_steps(graph: CellGraph) -> Steps:
    """Return all directed contacts, those from lower to upper cells first."""
    left, entered = np.concatenate([graph.lower, graph.upper]), np.concatenate([graph.upper, graph.lower])
    by_cell = np.argsort(left, kind="stable")
    begins = np.searchsorted(left[by_cell], np.arange(len(graph) + 1))
    counts = np.diff(begins)[entered]
    before = np.repeat(np.arange(len(left)), counts)
    nth = np.arange(len(before)) - np.repeat(np.cumsum(counts) - counts, counts)
    after = by_cell[begins[entered[before]] + nth]
    returning = left[before] == entered[after]
    before, after = before[~returning], after[~returning]
    lengths = np.linalg.norm(graph.centres[entered] - graph.centres[left], axis=1)
    outset = lengths / np.tile(np.maximum(openness(graph), NARROWEST), 2) ** 2
    directions = np.concatenate([graph.normals, -graph.normals])
    cosines = (directions[before] * directions[after]).sum(axis=1)
    turns = TURN * graph.radii[entered[before]] * (1 - cosines) ** 2
    onward = outset[after] + turns
    excess = _excess(onward, before, len(left)) + _excess(outset[before] + turns, after, len(left))
    return Steps(left, entered, before, after, outset, onward + excess)


def _excess(costs: Floats, groups: npt.NDArray[np.int64], n: int) -> Floats:
    """Return by how much each of the ``costs`` exceeds the least of its group, one of ``n``."""
    least = np.full(n, np.inf)
    np.minimum.at(least, groups, costs)
    return np.asarray(costs - least[groups])


def arrivals_of(
    graph: CellGraph,
    steps: Steps,
    starts: npt.NDArray[np.integer[Any]],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """Return the cost of the cheapest way from the cells ``starts`` to each cell, through ``allowed`` cells only."""
    n_steps = len(steps.left)
    if allowed is None:
        allowed = np.ones(len(graph), np.bool_)
    outset = np.flatnonzero(np.isin(steps.left, starts) & allowed[steps.entered])
    onward = allowed[steps.entered[steps.before]] & allowed[steps.entered[steps.after]]
    # All first steps start from an extra node, number n_steps. Costs are positive, since 0 would mean no edge.
    weights = np.concatenate([steps.onward[onward], steps.outset[outset]]) + 1e-6
    tails = np.concatenate([steps.before[onward], np.full(len(outset), n_steps)])
    heads = np.concatenate([steps.after[onward], outset])
    ways_on = csr_array((weights, (tails, heads)), shape=(n_steps + 1, n_steps + 1))
    reached = dijkstra(ways_on, directed=True, indices=n_steps)[:n_steps]
    arrivals = np.full(len(graph), np.inf)
    np.minimum.at(arrivals, steps.entered, reached)
    arrivals[starts] = 0
    return arrivals
