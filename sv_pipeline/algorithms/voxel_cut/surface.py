"""Seeds that stand for the surface of an object: when they do, and what they claim. Does not race.

Where a segmentation and the truth disagree by a voxel or two, a supervoxel is one body with a rim of another. The only
seeds there are for a rim lie just below the surface. Nothing else tells such a seed from a careless click, so every
condition must hold:

* the other side holds the middle: a seed at the deepest place of the whole mask (within a twentieth);
* every seed of this side is off the middle of its own neurite: at less than a third of its radius;
* that neurite is of the same kind as the one whose middle is held: at least half its radius, and no neck on the way.

A neurite of its own, clicked at its surface, is thinner, or behind a neck, or the other seed is not that deep.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph
from sv_pipeline.algorithms.voxel_cut.voxels import FACES, Voxels

__all__ = ["near_surface", "stands_for_surface"]

Depths = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int32]

MIDDLE = 0.95
"""Share of the greatest depth of the mask from which on a seed holds its middle."""

OFF_MIDDLE = 1 / 3
"""Share of the radius of its cell up to which a seed is just below the surface."""

SAME_KIND = 0.5
"""Least radius of the shallow seeds' neurite, as a share of the depth of the other side's deepest seed."""

NECK = 0.4
"""... and least depth of the passages on the way, as a share of the radius of the shallow seeds' neurite."""


def stands_for_surface(depth: Depths, cells: Numbers, graph: CellGraph, side: Numbers, other: Numbers) -> bool:
    """Whether the seeds of ``side`` stand for the surface of an object whose middle the seeds of ``other`` hold."""
    middle = other[depth[other].argmax()]
    radius = np.median(graph.radii[cells[side]])
    if depth[middle] < MIDDLE * depth.max() or depth[side].max() > OFF_MIDDLE * radius:
        return False
    if radius < SAME_KIND * depth[middle]:
        return False
    wide = graph.necks >= NECK * radius
    ways = csr_array((np.ones(wide.sum()), (graph.lower[wide], graph.upper[wide])), shape=(len(graph), len(graph)))
    parts = connected_components(ways, directed=False)[1]
    return bool(np.mean(parts[cells[side]] == parts[cells[middle]]) > 0.5)


def near_surface(voxels: Voxels, depth: Depths, side: Numbers) -> npt.NDArray[np.bool_]:
    """The outermost voxels, and what joins the seeds of ``side`` to them: the balls that fit around the seeds."""
    outermost = np.zeros(voxels.number, np.bool_)
    for shift in FACES:
        outermost |= voxels.neighbours(shift) == voxels.number
    places = voxels.coordinates * voxels.spacing
    for seed in side:
        outermost |= ((places - places[seed]) ** 2).sum(axis=1) <= depth[seed] ** 2
    return outermost
