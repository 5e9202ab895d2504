"""Geometry of the fragments of a supervoxel split: what they touch, and distances to others. Knows no edges.

Two nodes *touch* if two of their voxels share a face, an edge or a corner. All positions are absolute voxels in one
frame; distances are in nm, between centres of voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import fastremap
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.fragments import BoolArray, FragmentPlan, IntArray
from sv_pipeline.algorithms.numbering import numbered
from sv_pipeline.algorithms.voxel_blocks import Labels
from sv_pipeline.errors import InputError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout, UInt64Array

__all__ = ["NodeContacts", "SplitGeometry"]

FloatArray = npt.NDArray[np.float64]

_DIRECTIONS = tuple(d for d in product((-1, 0, 1), repeat=3) if any(d))
_ROWS_AT_ONCE = 1 << 21
_VOXELS_AT_ONCE = 1 << 15
"""Number of voxels whose neighbours are looked at in one go; what this needs stays in the processor's cache."""
_OUTSIDE = np.uint32(0xFFFFFFFF)
"""Stands for a voxel outside the box, among rows of nodes."""


@dataclass(frozen=True, eq=False)
class NodeContacts:
    """Contacts of the nodes of a plan with each other and with other supervoxels."""

    pairs: UInt64Array
    """Ids or placeholders, lower one first, unique, sorted; shape (c, 2)."""
    faces: IntArray
    """Number of shared voxel faces, shape (c,); 0 for pairs that share edges or corners only."""

    def find(self, one: npt.ArrayLike, other: npt.ArrayLike) -> IntArray:
        """Return the rows of the pairs (one, other), in either order, shape (n,); -1 for pairs that do not touch."""
        first, second = np.asarray(one, np.uint64), np.asarray(other, np.uint64)
        names = np.unique(self.pairs)
        known = find(names, self.pairs).reshape(-1, 2)
        low, high = find(names, np.minimum(first, second)), find(names, np.maximum(first, second))
        packed = (known[:, 0] * len(names) + known[:, 1]).astype(np.uint64)
        row = find(packed, np.where((low < 0) | (high < 0), 0, low * len(names) + high))
        return np.where((low < 0) | (high < 0), -1, row)


class SplitGeometry:
    """The surroundings of a plan's fragments, measured on first access.

    Parameters
    ----------
    plan
        The fragments.
    segmentation
        Voxels of ``plan.box`` as they were read.
    resolution
        Size of a voxel in nm, (x, y, z).
    grid, layout
        Chunks and ids of the graph; they locate supervoxels that have no voxel in the box.
    """

    def __init__(
        self,
        plan: FragmentPlan,
        segmentation: Labels,
        resolution: Sequence[float],
        grid: ChunkGrid,
        layout: IdLayout,
    ) -> None:
        if segmentation.shape != plan.box.shape:
            raise InputError(f"voxels of shape {segmentation.shape} do not fill {plan.box}.")
        self.plan, self._grid, self._layout = plan, grid, layout
        contiguous = segmentation.flags.f_contiguous or segmentation.flags.c_contiguous
        self._segmentation = segmentation if contiguous else np.asfortranarray(segmentation)
        self._resolution = np.asarray(resolution, np.float64)

    def chunk_of(self, ids: UInt64Array) -> UInt64Array:
        """Return the chunk id of each supervoxel."""
        return self._layout.chunks(ids)

    def nodes_near(self, coordinates: npt.ArrayLike, side: int) -> UInt64Array:
        """Return the node on ``side`` at each absolute voxel, or else the nearest node on that side; (n, 3) to (n,).

        This serves the points of a request, which may have been moved to the object before it was cut.
        """
        places = np.asarray(coordinates, np.int64).reshape(-1, 3)
        nodes = self.plan.nodes_at(places)
        row = self.plan.rows(nodes)
        away = np.flatnonzero((row < 0) | (np.append(self.plan.node_sides, 0)[row] != side))
        if len(away):
            of_side = np.flatnonzero(self.plan.node_sides[self.plan.node_of_voxel] == side)
            if not len(of_side):
                raise InputError(f"no voxel is on side {side}.")
            voxels = self.plan.coordinates(self.plan.voxels[of_side])
        for index in away:
            squared = (((voxels - places[index]) * self._resolution) ** 2).sum(axis=1)
            nodes[index] = self.plan.nodes[self.plan.node_of_voxel[of_side[np.argmin(squared)]]]
        return nodes

    # -- contacts -----------------------------------------------------------------------------------------------------

    @cached_property
    def contacts(self) -> NodeContacts:
        """All contacts of fragments and kept members."""
        return self._measured[0]

    @cached_property
    def _measured(self) -> tuple[NodeContacts, BoolArray]:
        """Contacts, and a mask of the plan's voxels that lie at the surface of their node."""
        plan = self.plan
        order: Literal["F", "C"] = "F" if self._segmentation.flags.f_contiguous else "C"
        values = self._segmentation.ravel(order=order)
        steps = np.array(self._segmentation.strides) // self._segmentation.itemsize
        places = np.unravel_index(plan.voxels, plan.box.shape, order="F")
        own = plan.node_of_voxel + 1
        nodes, inner = _with_margin(places, own, plan.box.shape, order)
        inner_steps = np.array(nodes.strides) // nodes.itemsize
        flat_nodes = nodes.ravel(order=order)
        flat = np.ravel_multi_index(places, plan.box.shape, order=order)
        del places
        surface = np.zeros(len(flat), np.bool_)
        found = []
        # Counted from the first neighbour of the first voxel, so that the neighbours at a direction are a later view.
        reach = int(inner_steps.sum())
        inner -= reach
        for start in range(0, len(flat), _VOXELS_AT_ONCE):
            part = slice(start, start + _VOXELS_AT_ONCE)
            for direction in _DIRECTIONS:
                is_face = int(np.abs(direction).sum()) == 1
                other = np.take(flat_nodes[reach + int(np.dot(direction, inner_steps)) :], inner[part])
                differs = np.flatnonzero(other != own[part])
                if is_face:
                    surface[part][differs] = True
                differs = differs[other[differs] != _OUTSIDE]
                other = other[differs]
                target = np.where(other > 0, 0, flat[part][differs] + int(np.dot(direction, steps)))
                ids = np.where(other > 0, plan.nodes[np.maximum(other, 1).astype(np.int64) - 1], values[target])
                found.append(_runs(own[part][differs], ids, is_face))
        del nodes, flat_nodes, inner, flat
        one, other_ids, faces = (np.concatenate(parts) for parts in zip(*found, strict=True))
        del found
        return _summed(one.astype(np.int64) - 1, other_ids, faces, plan.nodes), surface

    # -- distances ----------------------------------------------------------------------------------------------------

    def distances(self, fragments: UInt64Array, others: UInt64Array) -> FloatArray:
        """Return the distance in nm between each fragment and the other of its row, shape (n,).

        The other may be a fragment, a kept member, or any supervoxel. The distance to one without voxels in the box is
        the distance to the nearest voxel of its chunk.
        """
        result = np.full(len(fragments), np.inf)
        if not len(fragments):
            return result
        fragment_points = self._points_of(fragments)
        other_points = self._points_of(others)
        has_voxels = other_points.counts(others) > 0
        rows = np.flatnonzero(has_voxels)
        result[rows] = _between(fragment_points, fragments[rows], other_points, others[rows])
        rows = np.flatnonzero(~has_voxels)
        result[rows] = self._to_chunks(fragment_points, fragments[rows], others[rows])
        return result

    def _to_chunks(self, points: _Points, fragments: UInt64Array, others: UInt64Array) -> FloatArray:
        size = np.asarray(self._grid.chunk_size)
        start = np.asarray(self._grid.bounds.start) + self._layout.coordinates(others) * size
        low, high = start * self._resolution, (start + size - 1) * self._resolution
        result = np.full(len(fragments), np.inf)
        for rows, owner, places in points.expand(fragments):
            nearest = np.clip(places, low[rows][owner], high[rows][owner])
            distance = np.sqrt(((places - nearest) ** 2).sum(axis=1))
            result[rows] = _minimum(distance, owner, len(rows))
        return result

    def _points_of(self, nodes: UInt64Array) -> _Points:
        """Return the positions (nm) of surface voxels of nodes of the plan, and of all voxels of other supervoxels."""
        ids = np.unique(nodes)
        known = np.flatnonzero(np.isin(self.plan.nodes, ids))
        rows = np.flatnonzero(np.isin(self.plan.node_of_voxel, known) & self._measured[1])
        names = [self.plan.nodes[self.plan.node_of_voxel[rows]]]
        places = [self.plan.coordinates(self.plan.voxels[rows])]
        for owner, found in self._foreign_voxels(np.setdiff1d(ids, self.plan.nodes)):
            names.append(owner)
            places.append(found)
        return _Points.of(np.concatenate(names), np.concatenate(places) * self._resolution)

    def _foreign_voxels(self, ids: UInt64Array) -> Iterator[tuple[UInt64Array, IntArray]]:
        """Yield the ids and absolute positions of the voxels in the box of non-members, chunk by chunk."""
        coordinates, chunk = np.unique(self._layout.coordinates(ids), axis=0, return_inverse=True)
        for index, coordinate in enumerate(coordinates):
            box: Box = self._grid.box(2, coordinate).clip(self.plan.box)
            if not box.volume:
                continue
            block = self._segmentation[box.shifted(np.negative(self.plan.box.start)).slices].copy(order="F")
            fastremap.mask_except(block, ids[chunk.ravel() == index].tolist(), in_place=True)
            places = np.nonzero(block)
            yield block[places], np.stack(places, axis=-1) + np.asarray(box.start)


@dataclass(frozen=True, eq=False)
class _Points:
    """Points of several nodes, grouped by node."""

    names: UInt64Array
    """Ids or placeholders of the nodes, sorted, unique, shape (k,)."""
    starts: IntArray
    """Row in ``places`` of the first point of each node, and the end; shape (k + 1,)."""
    places: FloatArray
    """Positions in nm, shape (n, 3)."""

    @classmethod
    def of(cls, owners: UInt64Array, places: FloatArray) -> _Points:
        order = np.argsort(owners, kind="stable")
        names, counts = np.unique(owners, return_counts=True)
        return cls(names, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), places[order])

    def counts(self, nodes: UInt64Array) -> IntArray:
        """Return the number of points of each node, shape (n,)."""
        index = find(self.names, nodes)
        counts = np.append(np.diff(self.starts), 0)
        return np.asarray(counts[index], np.int64)

    def expand(self, nodes: UInt64Array) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
        """Yield the points of nodes in portions: rows of the portion, row in the portion of each point, positions."""
        counts = self.counts(nodes)
        portions = np.cumsum(counts) // _ROWS_AT_ONCE
        for rows in np.split(np.arange(len(nodes)), np.flatnonzero(np.diff(portions)) + 1):
            rows = rows[counts[rows] > 0]
            if not len(rows):
                continue
            owner = np.repeat(np.arange(len(rows)), counts[rows])
            first = self.starts[find(self.names, nodes[rows])] - (np.cumsum(counts[rows]) - counts[rows])
            yield rows, owner, self.places[np.arange(len(owner)) + first[owner]]


def _between(points: _Points, nodes: UInt64Array, other_points: _Points, others: UInt64Array) -> FloatArray:
    """Return the smallest distance between the points of two nodes, row by row."""
    result = np.full(len(nodes), np.inf)
    if not len(nodes):
        return result
    # One tree holds the points of all nodes: a fourth axis keeps the nodes farther apart than any two points are.
    both = np.concatenate([points.places, other_points.places])
    gap = 1 + 2 * float(np.ptp(both, axis=0).sum())
    owner_of_point = np.repeat(np.arange(len(points.names)), np.diff(points.starts))
    tree = cKDTree(np.column_stack([points.places, owner_of_point * gap]))
    node = find(points.names, nodes)
    for rows, owner, places in other_points.expand(others):
        distance, _ = tree.query(np.column_stack([places, node[rows][owner] * gap]))
        result[rows] = _minimum(distance, owner, len(rows))
    return result


def _minimum(values: FloatArray, owner: IntArray, n: int) -> FloatArray:
    """Return the smallest value of each owner 0 .. n - 1; owners ascend and each has values."""
    return np.asarray(np.minimum.reduceat(values, np.searchsorted(owner, np.arange(n))), np.float64)


def _with_margin(
    places: tuple[IntArray, ...], own: npt.NDArray[np.uint32], shape: tuple[int, int, int], order: Literal["F", "C"]
) -> tuple[npt.NDArray[np.uint32], IntArray]:
    """Return an array around voxels in which each of them has all its neighbours.

    Parameters
    ----------
    places, own
        Positions of the voxels in a box of this shape, one array for each axis, and their values.
    shape
        Shape of the box.

    Returns
    -------
    (array, inner)
        The values of the voxels, ``_OUTSIDE`` beyond the box, and 0 elsewhere; and the index of each voxel in it.
    """
    low = [int(p.min()) - 1 for p in places]
    size = tuple(int(p.max()) + 2 - a for p, a in zip(places, low, strict=True))
    array = np.zeros(size, np.uint32, order=order)
    for axis in range(3):
        across = np.moveaxis(array, axis, 0)
        across[: -low[axis] if low[axis] < 0 else 0] = _OUTSIDE
        across[shape[axis] - low[axis] :] = _OUTSIDE
    inner = np.ravel_multi_index(tuple(p - a for p, a in zip(places, low, strict=True)), size, order=order)
    array.ravel(order=order)[inner] = own
    return array, np.asarray(inner, np.int64)


def _runs(
    own: npt.NDArray[np.uint32], ids: UInt64Array, count: bool
) -> tuple[npt.NDArray[np.uint32], Labels, IntArray]:
    """Combine consecutive contacts of the same pair; return nodes, ids and numbers of faces."""
    keep = ids != 0
    own, ids = own[keep], ids[keep]
    starts = np.flatnonzero(np.concatenate([[True], (own[1:] != own[:-1]) | (ids[1:] != ids[:-1])])[: len(own)])
    lengths = np.diff(np.append(starts, len(own)))
    return own[starts], ids[starts], lengths if count else np.zeros(len(starts), np.int64)


def _summed(rows: IntArray, ids: UInt64Array, faces: IntArray, nodes: UInt64Array) -> NodeContacts:
    """Sum the faces of each pair of a row of ``nodes`` and an id.

    Contacts of two nodes of the plan were counted from both sides.
    """
    distinct, of_contact = numbered(ids)
    names = np.union1d(nodes, distinct)
    one, other = find(names, nodes)[rows], find(names, distinct)[of_contact]
    packed, of_contact = numbered(np.minimum(one, other) * len(names) + np.maximum(one, other))
    totals = np.bincount(of_contact, weights=faces, minlength=len(packed)).astype(np.int64)
    pairs = names[np.stack(np.divmod(packed, len(names)), axis=1)]
    twice = np.isin(pairs, nodes).all(axis=1)
    return NodeContacts(pairs, np.where(twice, totals // 2, totals))
