"""A mask as a graph of cells: pieces of neurite about as long as they are thick. Knows no seeds, does not cut.

A cell is a basin of the smoothed distance to the background: all voxels from which steepest ascent ends at the same
maximum. Borders of basins lie where the object narrows, so two objects that touch rarely share a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.voxel_cut.voxels import FACES, HALF_NEIGHBOURS, NEIGHBOURS, Shift, Voxels

__all__ = ["CellGraph", "cell_graph", "find_cells", "renumbered"]

Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.int32]
"""Cell of each voxel of a mask, shape (number of voxels,)."""

SMOOTHING_VOXELS = 1.0
"""Standard deviation of the smoothing, in voxels of the finest axis; about the roughness that the grid adds."""

LONGEST_CALIBRES = 2.0
"""Longer basins (a tube of constant width is a single basin) are cut into cells of about this many diameters."""

SHORTEST_VOXELS = 3.0
"""Cells are not made shorter than this many voxels of the coarsest axis."""

AXES: tuple[Shift, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


@dataclass(frozen=True)
class CellGraph:
    """Cells and their contacts (26-neighbourhood)."""

    centres: npt.NDArray[np.float64]
    """Centre of each cell, weighted by squared depth, so that it lies on the midline; nm, shape (n, 3)."""
    radii: npt.NDArray[np.float64]
    """Greatest depth in each cell, nm, shape (n,)."""
    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    """The other cell of each contact, above ``lower``; both have shape (m,)."""
    necks: npt.NDArray[np.float64]
    """Depth of the deepest passage through each contact, in nm, shape (m,)."""
    normals: npt.NDArray[np.float64]
    """Unit vector across each contact, from lower to upper, shape (m, 3)."""

    def __len__(self) -> int:
        return len(self.radii)


def find_cells(voxels: Voxels, depth: Floats, coarseness: float = 1.0) -> Cells:
    """Return the cell of each voxel, 0 .. n-1.

    Parameters
    ----------
    voxels
        Voxels of the mask.
    depth
        Distance (nm) of each voxel to the background.
    coarseness
        Factor for the smoothing and for the shortest cell.
    """
    basins = _basins(voxels, _smoothed(voxels, depth, coarseness * SMOOTHING_VOXELS))
    return _shortened(voxels, depth, basins, coarseness)


def cell_graph(voxels: Voxels, depth: Floats, cells: Cells) -> CellGraph:
    """Measure cells and their contacts; ``depth`` is that of :func:`find_cells`."""
    n = int(cells.max()) + 1
    weights = depth.astype(np.float64) ** 2
    sums = np.bincount(cells, weights=weights, minlength=n)
    centres = [np.bincount(cells, weights=weights * x, minlength=n) / sums for x in voxels.coordinates.T]
    centres = np.stack(centres, axis=1) * voxels.spacing
    radii = _largest(cells, depth, n)
    beyond = np.append(cells, np.int32(-1))
    pairs, passages, faces = [], [], []
    for shift in HALF_NEIGHBOURS:
        neighbours = voxels.neighbours(shift)
        other = beyond[neighbours]
        here = np.flatnonzero((other >= 0) & (other != cells))
        first, second = cells[here].astype(np.int64), other[here].astype(np.int64)
        pairs.append(np.minimum(first, second) * n + np.maximum(first, second))
        passages.append(np.minimum(depth[here], depth[neighbours[here]]))
        area = voxels.spacing.prod() / voxels.spacing[shift.index(1)] if shift in FACES else 0.0
        faces.append(np.where(first < second, area, -area)[:, None] * np.array(shift, np.float32))
    unique, contact = np.unique(np.concatenate(pairs), return_inverse=True)
    lower, upper = unique // n, unique % n
    necks = _largest(contact, np.concatenate(passages), len(unique))
    across = [np.bincount(contact, weights=x, minlength=len(unique)) for x in np.concatenate(faces).T]
    return CellGraph(
        centres, radii, lower, upper, necks, _normals(np.stack(across, axis=1), centres[upper] - centres[lower])
    )


def _normals(areas: npt.NDArray[np.float64], ways: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Normalise the vectors ``areas``; where a contact has no faces, or they cancel out, ``ways`` are used instead."""
    vectors = np.where((areas == 0).all(axis=1)[:, None], ways, areas)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)[:, None])


def _smoothed(voxels: Voxels, depth: Floats, deviation_voxels: float) -> Floats:
    """Smooth by repeated three-point averages (approximately Gaussian); the background has depth 0."""
    deviations = deviation_voxels * voxels.spacing.min() / voxels.spacing
    smooth = depth
    for axis, shift in enumerate(AXES):
        variance = deviations[axis] ** 2
        passes = max(1, int(np.ceil(2 * variance)))
        weight = np.float32(variance / passes / 2)
        after, before = (voxels.neighbours(s) for s in (shift, (-shift[0], -shift[1], -shift[2])))
        for _ in range(passes):
            bordered = np.append(smooth, np.float32(0))
            smooth = (1 - 2 * weight) * smooth + weight * (bordered[after] + bordered[before])
    return np.asarray(smooth, np.float32)


def _basins(voxels: Voxels, height: Floats) -> Cells:
    """Group voxels by steepest ascent to a maximum; on level ground, towards the neighbour with the highest number."""
    bordered = np.append(height, np.float32(-1))
    steepest = np.zeros(voxels.number, np.float32)
    uphill = np.arange(voxels.number, dtype=np.int32)
    for shift in NEIGHBOURS:
        neighbours = voxels.neighbours(shift)
        slope = (bordered[neighbours] - height) / np.float32(np.linalg.norm(shift * voxels.spacing))
        better = (slope > steepest) | ((slope == 0) & (steepest == 0) & (neighbours > uphill))
        np.copyto(steepest, slope, where=better)
        np.copyto(uphill, neighbours, where=better)
    while True:
        further = uphill[uphill]
        if np.array_equal(further, uphill):
            break
        uphill = further
    return renumbered(uphill)


def _shortened(voxels: Voxels, depth: Floats, basins: Cells, coarseness: float) -> Cells:
    """Cut basins that are too long, across their principal axes, into equal parts of the allowed length."""
    n = int(basins.max()) + 1
    sizes = np.bincount(basins, minlength=n)
    places = voxels.coordinates * voxels.spacing
    centres = np.stack([np.bincount(basins, weights=x, minlength=n) / sizes for x in places.T], axis=1)
    moments = np.empty((n, 3, 3))
    for a in range(3):
        for b in range(a, 3):
            product = places[:, a] * places[:, b]
            mean = np.bincount(basins, weights=product, minlength=n) / sizes
            moments[:, a, b] = moments[:, b, a] = mean - centres[:, a] * centres[:, b]
    variances, axes = np.linalg.eigh(moments)
    lengths = np.sqrt(12 * np.maximum(variances, 0))  # exact for voxels spread evenly along the axis
    longest = np.maximum(
        2 * LONGEST_CALIBRES * _largest(basins, depth, n), SHORTEST_VOXELS * coarseness * voxels.spacing.max()
    )
    parts = np.maximum(np.rint(lengths / longest[:, None]), 1).astype(np.int64)
    long = np.flatnonzero((parts > 1).any(axis=1)[basins])
    if len(long) == 0:
        return basins
    part = np.zeros(voxels.number, np.int64)
    of = basins[long]
    offsets = places[long] - centres[of]
    for axis in range(3):
        along = (offsets * axes[of, :, axis]).sum(axis=1) / np.maximum(lengths[of, axis], 1e-6) + 0.5
        step = np.clip(np.floor(along * parts[of, axis]), 0, parts[of, axis] - 1)
        part[long] = part[long] * parts[:, axis].max() + step.astype(np.int64)
    image = np.zeros(voxels.mask.shape, np.uint32)
    image[voxels.mask] = renumbered(basins.astype(np.int64) * (part.max() + 1) + part) + 1
    return renumbered(cc3d.connected_components(image, connectivity=26)[voxels.mask])


def _largest(groups: npt.NDArray[np.integer[Any]], values: Floats, n: int) -> npt.NDArray[np.float64]:
    """Return the largest of the positive ``values`` in each of ``n`` groups."""
    largest = np.zeros(n)
    np.maximum.at(largest, groups, values)
    return largest


def renumbered(labels: npt.NDArray[np.integer[Any]]) -> Cells:
    """Relabel a partition with 0 .. n-1 in the order of the labels, which must not be negative."""
    largest = int(labels.max())
    if largest > 8 * len(labels):  # a table would be larger than what sorting needs
        return np.asarray(np.unique(labels, return_inverse=True)[1], np.int32)
    table = np.zeros(largest + 1, np.int32)
    table[labels] = 1
    return np.asarray((np.cumsum(table, dtype=np.int32) - 1)[labels])
