"""Layers of a graph as volumes: its supervoxels, its objects, and the two sides of a previewed split. Reads only.

Objects are not stored as voxels: whenever a box is looked at, the roots of the supervoxels in it are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt

from sv_pipeline.edits import SplitPreview, settled
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.viewer.pyramids import Pyramid, PyramidMip, factor_between

__all__ = ["SINK", "SOURCE", "View", "newest_roots", "objects", "sides_of", "supervoxels"]

Labels = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

SOURCE, SINK = 1, 2
"""Labels of the two sides in the layer of a preview."""


@dataclass(frozen=True, eq=False)
class View:
    """A graph as of now, or as of an earlier moment."""

    graph: ChunkedGraph
    time: int | None = None
    """Milliseconds since the epoch; None means now, so that each read shows the newest edits."""
    generation: int | None = None
    """Generation of the fork at that time; None means the newest."""

    @classmethod
    def at(cls, graph: ChunkedGraph, time: int, *, within: Box | None = None) -> View:
        """Return the view of a time in milliseconds; see :meth:`sv_pipeline.segmentation.fork.fork.Fork.generation_at`.

        Parameters
        ----------
        within
            Box in which the voxels have to be exact.
        """
        return cls(graph, time, graph.fork.generation_at(time, within=within))

    def roots(self, ids: UInt64Array) -> UInt64Array:
        """Return the root of each supervoxel, shape (n,); 0 for ids that were not in the graph."""
        return settled(self.graph, lambda graph: queries.roots(graph, ids, at=self.time, missing_ok=True))


def newest_roots(graph: ChunkedGraph, ids: Sequence[int]) -> list[int]:
    """Return the current successors of roots; a root that is current, or an id that is none, is its own."""
    return [int(root) for root in settled(graph, lambda now: latest_roots(now, np.asarray(ids, np.uint64)))]


def supervoxels(view: View) -> Pyramid:
    """Return the supervoxels of a view, with all mips of the fork."""
    fork = view.graph.fork
    scales = fork.base_info().volume.scales
    mips = []
    for mip, scale in enumerate(scales):
        opened = fork.open(mip, version=view.generation)
        factor = factor_between(scales[0].resolution, scale.resolution)
        mips.append(PyramidMip(factor, scale.bounds, _reader(opened)))
    return Pyramid(tuple(mips), scales[0].resolution, np.dtype(np.uint64))


def objects(view: View) -> Pyramid:
    """Return the objects of a view: each voxel has the root of its supervoxel, 0 for background."""
    return _mapped(supervoxels(view), lambda labels, _box, _factor: _relabelled(labels, view.roots))


def sides_of(view: View, preview: SplitPreview) -> Pyramid:
    """Return the sides of a previewed split: each voxel has the label SOURCE, SINK, or 0 for neither."""
    split = preview.supervoxels

    def side_of(ids: UInt64Array) -> UInt64Array:
        return settled(view.graph, lambda graph: preview.sides_of(graph, ids)).astype(np.uint64)

    volume = supervoxels(view)

    def side(labels: Labels, box: Box, mip: PyramidMip) -> Labels:
        sides = _relabelled(labels, side_of)
        if split is not None:
            step = np.asarray(mip.factor)
            first = np.asarray(volume.bounds.start) + (np.asarray(box.start) - mip.bounds.start) * step
            _overlay(sides, first, step, split.cut.box, split.cut.sides)
        return sides

    return _mapped(volume, side)


def _overlay(labels: Labels, first: IntArray, step: IntArray, cut: Box, sides: npt.NDArray[np.uint8]) -> None:
    """Set the labels of voxels of a mip to the sides of a cut, which consists of voxels of mip 0.

    Parameters
    ----------
    labels
        Labels of a box of the mip; changed in place where a voxel has a side.
    first, step
        Voxel of mip 0 at which the box begins, and factor of the mip. A voxel of the mip gets the side of the first
        voxel of mip 0 that it covers.
    """
    low = np.maximum(0, -((first - cut.start) // step))
    high = np.minimum(labels.shape, -((first - cut.stop) // step))
    if (high <= low).any():
        return
    begin, end = first + low * step - cut.start, first + (high - 1) * step - cut.start + 1
    given = sides[tuple(slice(a, b, s) for a, b, s in zip(begin, end, step, strict=True))]
    np.copyto(labels[Box.of(low, high).slices], given, where=given > 0)


def _mapped(volume: Pyramid, function: Callable[[Labels, Box, PyramidMip], Labels]) -> Pyramid:
    """Return a volume whose voxels a function makes of labels, given their box in voxels of the mip."""

    def mapped(mip: PyramidMip) -> PyramidMip:
        return PyramidMip(mip.factor, mip.bounds, lambda box: function(mip.read(box), box, mip))

    return Pyramid(tuple(map(mapped, volume.mips)), volume.resolution, volume.dtype)


def _relabelled(labels: Labels, value_of: Callable[[UInt64Array], UInt64Array]) -> Labels:
    """Return the value of each label; it is looked up once per distinct label. Background stays 0."""
    distinct, inverse = fastremap.unique(labels, return_inverse=True)
    values = np.zeros(len(distinct), np.uint64)
    there = distinct != 0
    if there.any():
        values[there] = value_of(distinct[there])
    mapped: Labels = values[inverse].reshape(labels.shape)
    return mapped


def _reader(opened: Any) -> Callable[[Box], Labels]:
    return lambda box: np.asarray(opened[box.slices].read(order="F").result(), np.uint64)
