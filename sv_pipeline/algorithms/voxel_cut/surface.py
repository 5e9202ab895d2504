"""Seeds that mark the surface layer of an object: when they do, and which voxels they claim. Finds no other cut.

Where a segmentation and the truth disagree by a voxel or two, a supervoxel consists of one body and a thin rim of
another. Seeds for a rim can only lie just below the surface. Only all of the following conditions together distinguish
such a seed from a careless click:

* the other side has the middle: a seed at the deepest place of the whole mask (within a twentieth);
* every seed of this side is off the middle of its own neurite: at a depth of less than a third of its radius;
* that neurite is the one whose middle the other side has: at least half its radius, and no neck on the way.

If a user clicks a separate neurite at its surface, that neurite is thinner or behind a neck, or the other seed is not
at the deepest place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import components
from sv_pipeline.algorithms.voxel_cut.cells import CellGraph
from sv_pipeline.algorithms.voxel_cut.voxels import FACES, Voxels

__all__ = ["near_surface", "stands_for_surface"]

Depths = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int32]

MIDDLE = 0.95
"""A seed at this fraction of the greatest depth of the mask, or deeper, marks its middle."""

OFF_MIDDLE = 1 / 3
"""A seed at up to this fraction of the radius of its cell is just below the surface."""

SAME_KIND = 0.5
"""Smallest radius of the shallow seeds' neurite, as a fraction of the depth of the other side's deepest seed."""

NECK = 0.4
"""Smallest depth of the passages on the way, as a fraction of the radius of the shallow seeds' neurite."""


def stands_for_surface(depth: Depths, cells: Numbers, graph: CellGraph, side: Numbers, other: Numbers) -> bool:
    """Whether the seeds of ``side`` mark the surface of an object whose middle the seeds of ``other`` mark."""
    middle = other[depth[other].argmax()]
    radius = np.median(graph.radii[cells[side]])
    if depth[middle] < MIDDLE * depth.max() or depth[side].max() > OFF_MIDDLE * radius:
        return False
    if radius < SAME_KIND * depth[middle]:
        return False
    wide = graph.necks >= NECK * radius
    parts = components(len(graph), np.stack([graph.lower[wide], graph.upper[wide]], axis=1))
    return bool(np.mean(parts[cells[side]] == parts[cells[middle]]) > 0.5)


def near_surface(voxels: Voxels, depth: Depths, side: Numbers) -> npt.NDArray[np.bool_]:
    """Return the outermost voxels, and the balls around the seeds of ``side`` that connect the seeds to them."""
    outermost = np.zeros(voxels.number, np.bool_)
    for shift in FACES:
        outermost |= voxels.neighbours(shift) == voxels.number
    for seed in side:
        at = voxels.coordinates[seed]
        reach = np.ceil(depth[seed] / voxels.spacing).astype(np.int64)
        numbers = voxels.within(at - reach, at + reach + 1)[1]
        numbers = numbers[numbers < voxels.number]
        away = voxels.coordinates[numbers] * voxels.spacing - at * voxels.spacing
        outermost[numbers[(away**2).sum(axis=1) <= depth[seed] ** 2]] = True
    return outermost
