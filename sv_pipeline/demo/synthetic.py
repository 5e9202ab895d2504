"""Synthetic neuropil with a known truth: branching processes that fill space, over-segmented, with planted errors.

It serves demonstrations, benchmarks and tests. The module owns how the volume is grown, and writes no files.

Space is divided among skeletons (see ``skeletons``) by a power diagram of their points (Aurenhammer 1987; weight =
squared radius). The diagram is computed on a coarse grid by nearest neighbours with one dimension added, and refined
voxel by voxel, in coordinates warped by smooth noise so that membranes undulate. Supervoxels are Voronoi cells of
random seeds inside each body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse, spatial

from sv_pipeline.algorithms.contacts import face_contacts
from sv_pipeline.demo.skeletons import grow_skeletons

__all__ = ["SyntheticVolume", "synthetic_neuropil"]

SLAB = 8
"""Number of planes refined at a time; few, so that the data stay in the processor's cache."""
FACE_SHIFTS = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))

Float = npt.NDArray[np.float64]
Triple = tuple[int, int, int]

COARSE = 48.0
"""Approximate spacing of the coarse grid, in nm."""
RADIUS_CLASSES = (110.0, 180.0, 300.0)
"""Limits between classes of radii, in nm."""
SUPERVOXEL_SPACING = 320.0
"""Mean distance of supervoxel seeds, in nm."""
SMALLEST_BODY = 200
"""Voxels of the smallest body; smaller pieces join a neighbour."""
SMALLEST_SUPERVOXEL = 30
"""Voxels of the smallest supervoxel; smaller pieces join a neighbour."""
STRADDLING = 0.02
"""Fraction of supervoxels that are falsely merged with a supervoxel of another body."""
WRONG_MERGES, WRONG_SPLITS = 0.02, 0.03
"""Fractions of bodies that the agglomeration merges with another, or splits in two."""


@dataclass(frozen=True, eq=False)
class SyntheticVolume:
    """A segmentation and its truth. Volumes are uint64, axes (x, y, z), without background."""

    segmentation: npt.NDArray[np.uint64]
    """Watershed-like supervoxels 1 .. n, each one 26-connected piece."""
    bodies: npt.NDArray[np.uint64]
    """The truth: bodies 1 .. m, each one 26-connected piece."""
    labels: npt.NDArray[np.uint64]
    """All supervoxels, shape (n,), sorted."""
    objects: npt.NDArray[np.uint64]
    """Object of each supervoxel in an imperfect agglomeration, shape (n,)."""
    straddling: npt.NDArray[np.uint64]
    """Supervoxels that lie in two bodies; only a cut through their voxels can separate these."""
    resolution: tuple[float, float, float]
    """Nanometres per voxel, (x, y, z)."""


def synthetic_neuropil(
    shape: Triple = (256, 256, 128), resolution: tuple[float, float, float] = (16, 16, 40), seed: int = 0
) -> SyntheticVolume:
    """Grow a volume of neuropil; the same arguments give the same volume.

    Parameters
    ----------
    shape
        Size in voxels, (x, y, z).
    resolution
        Nanometres per voxel, (x, y, z).
    seed
        Seed of the random number generator.
    """
    random = np.random.default_rng(seed)
    extent = np.asarray(shape) * np.asarray(resolution, np.float64)
    points, radii, process = grow_skeletons(random, extent)
    bodies = _divide_space(random, shape, resolution, points, radii, process)
    bodies = _connected_bodies(bodies)
    pieces = _cut_into_supervoxels(random, bodies, resolution)
    segmentation, straddling = _merge_falsely(random, pieces, bodies)
    labels, objects = _agglomerate(random, segmentation, bodies)
    return SyntheticVolume(
        segmentation.astype(np.uint64), bodies.astype(np.uint64), labels, objects, straddling, resolution
    )


# -- volumes ----------------------------------------------------------------------------------------------------------


def _nearest(
    shape: Triple,
    resolution: Any,
    sites: Float,
    warp: npt.NDArray[np.float32],
    radii: Float | None = None,
    lift: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.int32]:
    """Return the site with the smallest ``|voxel - site|^2 - radius^2`` for each voxel, in warped coordinates.

    Parameters
    ----------
    sites
        Sites, shape (n, 4): three coordinates in nm, and a fourth coordinate that adds to the distance.
    warp
        Displacement of each voxel in nm, shape (3, x, y, z).
    radii
        Radius of each site, shape (n,); default 0.
    lift
        Fourth coordinate of each voxel, shape (x, y, z); default 0.
    """
    radii = np.zeros(len(sites)) if radii is None else radii
    step = np.maximum(1, np.rint(COARSE / np.asarray(resolution)).astype(int))
    centre = [np.minimum(np.arange(0, n + s - 1, s) + s // 2, n - 1) for n, s in zip(shape, step, strict=True)]
    here = np.ix_(*centre)
    places = [warp[axis][here] + (centre[axis] * resolution[axis]).reshape(_along(axis)) for axis in range(3)]
    places += [np.zeros_like(places[0]) if lift is None else lift[here], np.zeros_like(places[0])]
    stacked = np.stack(places, axis=-1)

    best = np.full(stacked.shape[:-1], np.inf)
    found = np.zeros(best.shape, np.int32)
    # |x - p|^2 - r^2 is, up to a constant, the squared distance to (p, sqrt(R^2 - r^2)), where R is the largest radius.
    # Only sites of similar radius share a tree: small ones far up in the added dimension would widen searches.
    group = np.digitize(radii, RADIUS_CLASSES)
    for members in (np.flatnonzero(group == g) for g in np.unique(group)):
        largest = radii[members].max()
        tree = spatial.cKDTree(np.column_stack([sites[members], np.sqrt(largest**2 - radii[members] ** 2)]))
        distance, index = tree.query(stacked, workers=-1)
        power = distance**2 - largest**2
        better = power < best
        best[better] = power[better]
        found[better] = members[index[better]]
    weighted = np.column_stack([sites, radii**2]).astype(np.float32)
    return _refine(shape, resolution, weighted, warp, lift, found, step)


def _refine(
    shape: Triple,
    resolution: Any,
    sites: npt.NDArray[np.float32],
    warp: npt.NDArray[np.float32],
    lift: Any,
    coarse: npt.NDArray[np.int32],
    step: npt.NDArray[np.int64],
) -> npt.NDArray[np.int32]:
    """Assign to each voxel the best of the sites that were found for its coarse cell and the cells around it.

    Sites have shape (n, 5): four coordinates and the squared radius.
    """
    chosen = np.empty(shape, np.int32)
    columns = np.ascontiguousarray(sites.T)
    y, z = ((np.arange(n) * np.float32(r)).astype(np.float32) for n, r in zip(shape[1:], resolution[1:], strict=True))
    for start in range(0, shape[0], SLAB):
        slab = np.arange(start, min(start + SLAB, shape[0]))
        axes = [slab, np.arange(shape[1]), np.arange(shape[2])]
        ticks = [(slab * np.float32(resolution[0])).astype(np.float32), y, z]
        where = [warp[axis][slab[0] : slab[-1] + 1] + ticks[axis].reshape(_along(axis)) for axis in range(3)]
        if lift is not None:
            where.append(lift[slab[0] : slab[-1] + 1])
        best = np.full(where[0].shape, np.inf, np.float32)
        for shift in FACE_SHIFTS:
            cells = [np.clip(a // s + d, 0, n - 1) for a, s, d, n in zip(axes, step, shift, coarse.shape, strict=True)]
            candidate = coarse[np.ix_(*cells)]
            power = -columns[4][candidate]
            for axis, coordinate in enumerate(where):
                power += (coordinate - columns[axis][candidate]) ** 2
            better = power < best
            best[better] = power[better]
            chosen[start : start + len(slab)][better] = candidate[better]
    return chosen


def _along(axis: int) -> Triple:
    """Return the shape that lays a vector along one axis of a volume."""
    return (-1, 1, 1) if axis == 0 else (1, -1, 1) if axis == 1 else (1, 1, -1)


def _smooth_noise(
    random: np.random.Generator, shape: Triple, resolution: Any, scale: float, amplitude: float
) -> npt.NDArray[np.float32]:
    """Return three smooth random fields, shape (3, x, y, z), with a wavelength and standard deviation in nm."""
    spacing = scale / 2
    kernels = []
    for n, r in zip(shape, resolution, strict=True):
        knots = np.arange(-2, np.ceil(n * r / spacing) + 3) * spacing
        weights = np.exp(-0.5 * ((np.arange(n)[:, None] * r - knots) / (0.6 * spacing)) ** 2)
        kernels.append((weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32))
    x, y, z = kernels
    noise = random.normal(scale=amplitude, size=(3, x.shape[1], y.shape[1], z.shape[1])).astype(np.float32)
    fields = np.einsum("cijk,xi,yj,zk->cxyz", noise, x, y, z, optimize=True)
    return np.asarray(fields, np.float32)


def _divide_space(
    random: np.random.Generator,
    shape: Triple,
    resolution: Any,
    points: Float,
    radii: Float,
    process: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint32]:
    """Return the process of each voxel: the power diagram of the skeleton points."""
    warp = _smooth_noise(random, shape, resolution, 350, 40)
    warp += _smooth_noise(random, shape, resolution, 120, 7)
    sites = np.column_stack([points, np.zeros(len(points))])
    return np.asarray(process[_nearest(shape, resolution, sites, warp, radii)] + 1, np.uint32)


def _connected_bodies(bodies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Make each piece of a process a separate body; small pieces go to the nearest larger piece."""
    pieces = cc3d.connected_components(bodies, connectivity=6, out_dtype=np.uint32)
    small = np.bincount(pieces.ravel())[pieces] < SMALLEST_BODY
    nearest = ndimage.distance_transform_edt(small, return_distances=False, return_indices=True)
    filled = pieces[tuple(nearest)]
    return np.asarray(fastremap.renumber(cc3d.connected_components(filled, connectivity=6))[0], np.uint32)


def _cut_into_supervoxels(
    random: np.random.Generator, bodies: npt.NDArray[np.uint32], resolution: Any
) -> npt.NDArray[np.uint32]:
    """Divide each body into Voronoi cells of random seeds, with at least one seed in every body."""
    shape: Triple = bodies.shape
    n_seeds = int(bodies.size * np.prod(resolution) / SUPERVOXEL_SPACING**3)
    _, first = np.unique(bodies, return_index=True)
    flat = np.concatenate([random.choice(bodies.size, n_seeds, replace=False), first])
    places = np.stack(np.unravel_index(flat, bodies.shape), axis=-1) * np.asarray(resolution)
    far = 1e5  # nm; large enough that a voxel is never nearest to a seed of another body
    sites = np.column_stack([places, bodies.ravel()[flat] * far])
    warp = _smooth_noise(random, shape, resolution, 200, 30)
    lift = bodies.astype(np.float32) * np.float32(far)
    cells = _nearest(shape, resolution, sites, warp, lift=lift)
    both = bodies.astype(np.uint64) << np.uint64(32) | cells.astype(np.uint64)
    pieces = cc3d.connected_components(fastremap.renumber(both)[0], connectivity=6, out_dtype=np.uint32)
    return _absorb_crumbs(pieces.astype(np.uint32, copy=False), bodies)


def _absorb_crumbs(pieces: npt.NDArray[np.uint32], bodies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Join small pieces to the piece of their body with which they share most faces."""
    n = int(pieces.max()) + 1
    sizes = np.bincount(pieces.ravel(), minlength=n)
    body_of = np.zeros(n, np.uint32)
    body_of[pieces.ravel()] = bodies.ravel()
    contacts = face_contacts(pieces)
    pairs = np.concatenate([contacts.pairs, contacts.pairs[:, ::-1]])
    areas = np.concatenate([contacts.areas, contacts.areas])
    small = (sizes[pairs[:, 0]] < SMALLEST_SUPERVOXEL) & (body_of[pairs[:, 0]] == body_of[pairs[:, 1]])
    pairs, areas = pairs[small], areas[small]
    order = np.lexsort((areas, pairs[:, 0]))
    best = pairs[order][np.append(np.diff(pairs[order][:, 0]) != 0, True)] if len(pairs) else pairs
    links = sparse.coo_array((np.ones(len(best), bool), (best[:, 0], best[:, 1])), shape=(n, n))
    joined = sparse.csgraph.connected_components(links, directed=False)[1]
    return np.asarray(fastremap.renumber(joined[pieces].astype(np.uint32) + 1)[0], np.uint32)


# -- planted errors ---------------------------------------------------------------------------------------------------


def _merge_falsely(
    random: np.random.Generator, pieces: npt.NDArray[np.uint32], bodies: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """Join some supervoxels with a supervoxel of another body that they touch over a small area."""
    n = int(pieces.max()) + 1
    body_of = np.zeros(n, np.uint32)
    body_of[pieces.ravel()] = bodies.ravel()
    sizes = np.bincount(pieces.ravel(), minlength=n)
    contacts = face_contacts(pieces)
    a, b = contacts.pairs.T
    fit = (body_of[a] != body_of[b]) & (contacts.areas > 20) & (contacts.areas < 200)
    fit &= np.minimum(sizes[a], sizes[b]) > 500
    candidates = random.permutation(contacts.pairs[fit])
    # Each supervoxel is in at most one pair: the first in which it occurs.
    flat = candidates.ravel()
    _, first = np.unique(flat, return_index=True)
    is_first = np.zeros(len(flat), bool)
    is_first[first] = True
    chosen = candidates[is_first.reshape(-1, 2).all(axis=1)][: max(1, int(STRADDLING * n))]
    new = np.arange(n, dtype=np.uint32)
    new[chosen[:, 1]] = chosen[:, 0]
    present, merged = np.unique(new[pieces], return_inverse=True)
    segmentation = (merged.reshape(pieces.shape) + 1).astype(np.uint32)
    return segmentation, (np.searchsorted(present, np.sort(chosen[:, 0])) + 1).astype(np.uint64)


def _agglomerate(
    random: np.random.Generator, segmentation: npt.NDArray[np.uint32], bodies: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Assign each supervoxel to the body of most of its voxels, then merge some bodies and split others."""
    n_bodies = int(bodies.max()) + 1
    packed, counts = np.unique(segmentation.astype(np.int64) * n_bodies + bodies, return_counts=True)
    order = np.lexsort((counts, packed // n_bodies))
    label, body = np.divmod(packed[order], n_bodies)
    last = np.append(label[1:] != label[:-1], True)
    labels, objects = label[last], body[last]

    names = np.arange(n_bodies)
    pairs = face_contacts(bodies).pairs
    wrong = random.permutation(pairs)[: max(1, int(WRONG_MERGES * n_bodies))]
    names[wrong[:, 1]] = names[wrong[:, 0]]
    objects = names[objects]
    for k, body_name in enumerate(random.permutation(np.unique(objects))[: max(1, int(WRONG_SPLITS * n_bodies))]):
        members = np.flatnonzero(objects == body_name)
        objects[members[len(members) // 2 :]] = n_bodies + k
    return labels.astype(np.uint64), objects.astype(np.uint64)
