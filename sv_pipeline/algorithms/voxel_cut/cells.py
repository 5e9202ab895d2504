"""A mask as a graph of cells: pieces of neurite about as long as they are thick. Knows no seeds, does not cut.

A cell is a basin of the smoothed distance to the background: all voxels from which steepest ascent ends at the same
maximum. Borders of basins lie where the object narrows, so two objects that touch rarely share a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.numbering import numbered
from sv_pipeline.algorithms.voxel_cut.voxels import FACES, HALF_NEIGHBOURS, NEIGHBOURS, Shift, Voxels

__all__ = ["CellGraph", "cell_graph", "divided", "find_cells", "renumbered"]

Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.int32]
"""Cell of each voxel of a mask, shape (number of voxels,)."""

Contacts = tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.float64]]
"""Pairs of neighbouring voxels in different cells: the cells of each pair, as ``lower * n + upper`` for ``n`` cells;
the smaller depth of its two voxels; and the area of the face between them in nm^2, above 0 if the lower cell comes
first. Voxels that share no face have no area."""

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
    found = _contacts(voxels, depth, cells)
    lower, upper, necks, across = _merged(found, HALF_NEIGHBOURS, n)
    return CellGraph(centres, radii, lower, upper, necks, _normals(across, centres[upper] - centres[lower]))


def divided(
    voxels: Voxels, depth: Floats, cells: Cells, graph: CellGraph, cell: int, part: npt.NDArray[np.bool_]
) -> tuple[Cells, CellGraph]:
    """Divide a cell in two, and return the cells and their graph, as :func:`cell_graph` would find it.

    Only the voxels of the cell are looked at, which takes a small fraction of the time.

    Parameters
    ----------
    cells, graph
        The cells before.
    cell
        The one to divide: it keeps its number, and the numbers above it become one larger.
    part
        Which of its voxels, in order, become cell number ``cell + 1``; some, but not all.
    """
    inside = np.flatnonzero(cells == cell)
    after = cells + (cells > cell).astype(np.int32)
    after[inside[part]] = cell + 1
    n = len(graph) + 1
    weights, which = depth[inside].astype(np.float64) ** 2, part.astype(np.int64)
    sums = np.bincount(which, weights=weights)
    middles = [np.bincount(which, weights=weights * x) / sums for x in voxels.coordinates[inside].T]
    both = np.stack(middles, axis=1) * voxels.spacing
    centres = np.concatenate([graph.centres[:cell], both, graph.centres[cell + 1 :]])
    radii = np.concatenate([graph.radii[:cell], _largest(which, depth[inside], 2), graph.radii[cell + 1 :]])
    bordered, both_parts = np.append(after, np.int32(-1)), (cell, cell + 1)
    found = [
        # The other way round, pairs inside the cell would be found again.
        _contacts_at(voxels, depth, bordered, shift, inside, n, () if shift in HALF_NEIGHBOURS else both_parts)
        for shift in NEIGHBOURS
    ]
    lower, upper, necks, across = _merged(found, NEIGHBOURS, n)
    normals = _normals(across, centres[upper] - centres[lower])
    others = (graph.lower != cell) & (graph.upper != cell)
    kept = [ends[others] + (ends[others] > cell) for ends in (graph.lower, graph.upper)]
    lower, upper = np.concatenate([kept[0], lower]), np.concatenate([kept[1], upper])
    order = np.argsort(lower * n + upper)
    necks, normals = np.concatenate([graph.necks[others], necks]), np.concatenate([graph.normals[others], normals])
    return after, CellGraph(centres, radii, lower[order], upper[order], necks[order], normals[order])


def _merged(
    found: Sequence[Contacts], shifts: Sequence[Shift], n: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the contacts of pairs of voxels at several shifts: lower and upper cell, neck, and area across in nm^2."""
    pairs, passages, faces = zip(*found, strict=True)
    unique, contact = _distinct(np.concatenate(pairs))
    necks = _largest(contact, np.concatenate(passages), len(unique))
    across = np.zeros((len(unique), 3))
    ends = np.cumsum([len(each) for each in pairs])
    for shift, areas, end in zip(shifts, faces, ends, strict=True):
        if shift in FACES:
            of, axis = contact[end - len(areas) : end], int(np.flatnonzero(shift)[0])
            across[:, axis] += np.bincount(of, weights=areas, minlength=len(unique))
    return unique // n, unique % n, necks, across


def _contacts(voxels: Voxels, depth: Floats, cells: Cells) -> list[Contacts]:
    """Return the contacts of all pairs of voxels, for each of ``HALF_NEIGHBOURS``."""
    n, bordered = int(cells.max()) + 1, np.append(cells, np.int32(-1))
    # All shifts of a part come before the next part, so that its surroundings stay in the cache.
    found = [
        [_contacts_at(voxels, depth, bordered, shift, part, n) for shift in HALF_NEIGHBOURS] for part in voxels.parts()
    ]
    return [
        (np.concatenate(pairs), np.concatenate(passages), np.concatenate(areas))
        for pairs, passages, areas in (zip(*of_shift, strict=True) for of_shift in zip(*found, strict=True))
    ]


def _contacts_at(
    voxels: Voxels,
    depth: Floats,
    bordered: Cells,
    shift: Shift,
    part: slice | npt.NDArray[np.intp],
    n: int,
    but: tuple[int, ...] = (),
) -> Contacts:
    """Return the contacts of the voxels of a ``part`` with their neighbours at one shift, ``but`` in some cells."""
    area = voxels.spacing.prod() / voxels.spacing[np.flatnonzero(shift)[0]] if shift in FACES else 0.0
    if shift < (0, 0, 0):  # the neighbour comes first
        area = -area
    neighbours, own = voxels.neighbours(shift, part), bordered[:-1][part]
    other = np.take(bordered, neighbours)
    apart = (other >= 0) & (other != own)
    for cell in but:
        apart &= other != cell
    here = np.flatnonzero(apart)
    first, second = own[here].astype(np.int64), other[here].astype(np.int64)
    return (
        np.minimum(first, second) * n + np.maximum(first, second),
        np.minimum(depth[part][here], depth[neighbours[here]]),
        np.where(first < second, area, -area) if area else np.zeros(0),
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
    uphill = np.arange(voxels.number, dtype=np.int32)
    for part in voxels.parts():
        steepest, chosen = np.zeros(len(height[part]), np.float32), uphill[part]
        for shift in NEIGHBOURS:
            neighbours = voxels.neighbours(shift, part)
            slope = _slope(voxels, bordered, height[part], neighbours, shift)
            np.copyto(chosen, neighbours, where=slope > steepest)
            np.maximum(steepest, slope, out=steepest)
        level = np.flatnonzero(steepest == 0)
        # Neighbours at later shifts have higher numbers; those at the first half of the shifts, lower ones than here.
        for shift in HALF_NEIGHBOURS:
            neighbours = voxels.neighbours(shift, part.start + level)
            slope = _slope(voxels, bordered, height[part][level], neighbours, shift)
            chosen[level[slope == 0]] = neighbours[slope == 0]
    while True:
        further = uphill[uphill]
        if np.array_equal(further, uphill):
            break
        uphill = further
    return renumbered(uphill)


def _slope(voxels: Voxels, bordered: Floats, height: Floats, neighbours: npt.NDArray[np.int32], shift: Shift) -> Floats:
    slope = np.take(bordered, neighbours)
    slope -= height
    slope /= np.float32(np.linalg.norm(shift * voxels.spacing))
    return slope


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
    part = np.zeros(len(long), np.int64)
    of = basins[long]
    offsets = places[long] - centres[of]
    for axis in range(3):
        along = (offsets * axes[of, :, axis]).sum(axis=1) / np.maximum(lengths[of, axis], 1e-6) + 0.5
        step = np.clip(np.floor(along * parts[of, axis]), 0, parts[of, axis] - 1)
        part = part * parts[:, axis].max() + step.astype(np.int64)
    # A basin is connected, so pieces have to be found only in those that are cut, in the box around them.
    at = voxels.coordinates[long] - voxels.coordinates[long].min(axis=0)
    image = np.zeros(at.max(axis=0) + 1, np.uint32)
    image[tuple(at.T)] = renumbered(of.astype(np.int64) * (part.max() + 1) + part) + 1
    cells = basins.copy()
    cells[long] = n + cc3d.connected_components(image, connectivity=26)[tuple(at.T)].astype(np.int32)
    return _in_order(renumbered(cells))


def _in_order(cells: Cells) -> Cells:
    """Number cells in the order of their first voxels."""
    first = np.empty(int(cells.max()) + 1, np.int64)
    first[cells[::-1]] = np.arange(len(cells) - 1, -1, -1)  # the last value that is assigned to an element stays
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[cells]


def _largest(groups: npt.NDArray[np.integer[Any]], values: Floats, n: int) -> npt.NDArray[np.float64]:
    """Return the largest of the positive ``values`` in each of ``n`` groups."""
    largest = np.zeros(n, values.dtype)  # of the same type as the values, since ufunc.at is slow if it has to convert
    np.maximum.at(largest, groups, values)
    return largest.astype(np.float64)


def _distinct(
    values: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer[Any]]]:
    """Return the distinct values, ascending, and the index of each value among them; does not sort all of them."""
    if int(values.max(initial=0)) < len(values):  # fastremap then uses a table, and would sort otherwise
        distinct, index = fastremap.unique(values, return_inverse=True)
        return distinct.astype(np.int64), index
    distinct, index = numbered(values)
    return distinct.astype(np.int64), index


def renumbered(labels: npt.NDArray[np.integer[Any]]) -> Cells:
    """Relabel a partition with 0 .. n-1 in the order of the labels, which must not be negative."""
    return _distinct(labels)[1].astype(np.int32)
