"""Surfaces of objects, made when somebody selects them. Reads only.

The voxels of an object are read from the finest mip at which the box of its chunks is small enough. So an object of any
size gets a surface in bounded memory, a coarser one if it is large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import fastremap
import numpy as np
import numpy.typing as npt
import zmesh

from sv_pipeline.edits import settled
from sv_pipeline.graph import queries
from sv_pipeline.grid import Box
from sv_pipeline.viewer.labels import View
from sv_pipeline.viewer.pyramids import Pyramid, PyramidMip

__all__ = ["ObjectMeshes", "Surface"]

MOST_VOXELS = 1 << 24
"""Largest number of voxels that are read for one surface; they need about 200 MB."""
REMEMBERED = 64
"""Number of surfaces that are kept. A root never changes, so neither does its surface."""
FEWER_TRIANGLES = 20
"""About how many times fewer triangles a surface has than the faces of its voxels, within an error of a voxel."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface of triangles."""

    vertices: npt.NDArray[np.float32]
    """Corners, shape (n, 3), in voxels of mip 0 relative to the first voxel of the volume; (0, 0, 0) is its corner."""
    triangles: npt.NDArray[np.uint32]
    """Three vertices of each triangle, shape (m, 3)."""


class ObjectMeshes:
    """The surfaces of the objects of a view."""

    def __init__(self, view: View, supervoxels: Pyramid, *, most_voxels: int = MOST_VOXELS) -> None:
        """Make no surface yet.

        Parameters
        ----------
        supervoxels
            The supervoxels of the view.
        most_voxels
            Largest number of voxels to read for one surface.
        """
        self._view, self._supervoxels, self._most = view, supervoxels, most_voxels
        self.surface = lru_cache(REMEMBERED)(self._surface)
        """Returns the surface of a root; None if there is no such object, or it is too large even for the last mip."""

    def _surface(self, root: int) -> Surface | None:
        graph, volume = self._view.graph, self._supervoxels
        ids = np.asarray([root], np.uint64)
        leaves = settled(graph, lambda now: queries.leaves(now, ids)).values
        if not len(leaves):
            return None
        chunks = graph.layout.coordinates(leaves)
        size = np.asarray(graph.grid.chunk_size, np.int64)
        box = Box.of(chunks.min(axis=0) * size, (chunks.max(axis=0) + 1) * size).clip(
            Box.of((0, 0, 0), volume.bounds.shape)
        )
        found = self._finest(box)
        if found is None:
            return None
        mip, inside = found
        labels = volume.read(inside, mip.factor)
        mask = np.zeros(np.add(labels.shape, 2), np.uint8, order="F")  # a rim of background closes the surface
        mask[1:-1, 1:-1, 1:-1] = _is_in(labels, leaves)
        if not mask.any():
            return None
        mesher = zmesh.Mesher((1.0, 1.0, 1.0))
        mesher.mesh(mask, close=False)
        mesh = mesher.get(1, reduction_factor=FEWER_TRIANGLES, max_error=1)
        vertices = (mesh.vertices + inside.start - 0.5) * mip.factor
        return Surface(vertices.astype(np.float32), mesh.faces.astype(np.uint32))

    def _finest(self, box: Box) -> tuple[PyramidMip, Box] | None:
        """Return the finest mip at which a box in voxels of mip 0 is small enough, and the box in its voxels."""
        for mip in sorted(self._supervoxels.mips, key=lambda one: int(np.prod(one.factor))):
            factor = np.asarray(mip.factor)
            inside = Box.of(np.asarray(box.start) // factor, -(-np.asarray(box.stop) // factor))
            if inside.volume <= self._most:
                return mip, inside
        return None


def _is_in(labels: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    distinct, inverse = fastremap.unique(labels, return_inverse=True)
    inside: npt.NDArray[np.bool_] = np.isin(distinct, wanted)[inverse].reshape(labels.shape)
    return inside
