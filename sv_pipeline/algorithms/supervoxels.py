"""Supervoxels of one chunk: the 26-connected pieces of its labels, numbered. Knows no ids, no storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
import numpy.typing as npt

__all__ = ["ChunkPieces", "label_overlaps", "label_pieces"]


@dataclass(frozen=True)
class ChunkPieces:
    """The connected pieces of the labels in one chunk."""

    segments: npt.NDArray[np.uint32]
    """Segment number of each voxel, shape of the chunk, Fortran order; 0 = background."""
    labels: npt.NDArray[np.uint64]
    """Source label of segment i + 1, shape (n,)."""
    voxel_counts: npt.NDArray[np.uint64]
    """Number of voxels of segment i + 1, shape (n,)."""
    surfaces: npt.NDArray[np.uint64]
    """Surface of segment i + 1 in voxel faces, including those at the border of the chunk; shape (n,)."""


def label_pieces(labels: npt.NDArray[Any]) -> ChunkPieces:
    """Split every label into its 26-connected pieces.

    Pieces are numbered from 1 in the order of their first voxel, x fastest, then y, then z. Label 0 is background.

    Parameters
    ----------
    labels
        Source labels of one chunk, integers, shape (x, y, z).
    """
    # The component labeller is faster on small integers than on uint64.
    compact, _ = fastremap.renumber(np.asfortranarray(labels), preserve_zero=True, in_place=False)
    found = cc3d.connected_components(compact, connectivity=26, out_dtype=np.uint32)
    # cc3d numbers components in raster order of Fortran arrays, but does not guarantee it. Renumbering does.
    segments = np.asfortranarray(fastremap.renumber(found, preserve_zero=True)[0].astype(np.uint32, copy=False))
    n = int(segments.max(initial=0))
    flat = segments.ravel(order="F")
    source = np.zeros(n + 1, np.uint64)
    source[flat] = np.asfortranarray(labels).ravel(order="F").astype(np.uint64, copy=False)
    counts = np.bincount(flat, minlength=n + 1).astype(np.uint64)
    return ChunkPieces(segments, source[1:], counts[1:], (6 * counts - _inner_faces(segments, n))[1:])


def _inner_faces(segments: npt.NDArray[np.uint32], n: int) -> npt.NDArray[np.uint64]:
    """Return the number of voxel faces inside each segment 0 .. n, counted from both sides."""
    inner = np.zeros(n + 1, np.uint64)
    for axis in range(3):
        lower = np.moveaxis(segments, axis, 0)[:-1]
        upper = np.moveaxis(segments, axis, 0)[1:]
        inner += 2 * np.bincount(upper[lower == upper], minlength=n + 1).astype(np.uint64)
    return inner


def label_overlaps(
    labels: npt.NDArray[Any], objects: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Count the voxels that each label shares with each object; return labels, objects and counts, each of shape (n,).

    Parameters
    ----------
    labels, objects
        Integer arrays of the same shape (x, y, z). Voxels of label 0 are not counted; those of object 0 are.
    """
    inside = labels != 0
    label_names, label_index = fastremap.unique(labels[inside], return_inverse=True)
    object_names, object_index = fastremap.unique(objects[inside], return_inverse=True)
    packed = label_index.astype(np.int64) * len(object_names) + object_index.astype(np.int64)
    pairs, counts = np.unique(packed, return_counts=True)
    first, second = np.divmod(pairs, max(1, len(object_names)))
    return label_names[first].astype(np.uint64), object_names[second].astype(np.uint64), counts.astype(np.uint64)
