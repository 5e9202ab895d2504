"""Sets of boxes as arrays: cut at a grid, joined, subtracted, grouped. Knows no volume and no mip.

Boxes are int64 arrays of shape (n, 2, 3), axes (x, y, z): ``[:, 0]`` holds the inclusive starts, ``[:, 1]`` the
exclusive stops.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import Box

__all__ = ["as_array", "as_boxes", "clip", "joined", "parts_by_chunk", "subtract", "volumes"]

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]


def as_array(boxes: Iterable[Box]) -> IntArray:
    """Convert boxes to an array of shape (n, 2, 3)."""
    return np.array([(box.start, box.stop) for box in boxes], np.int64).reshape(-1, 2, 3)


def as_boxes(array: IntArray) -> list[Box]:
    """Convert an array of shape (n, 2, 3) to boxes."""
    return [Box.of(start, stop) for start, stop in array]


def volumes(array: IntArray) -> IntArray:
    """Return the number of voxels of each box, shape (n,)."""
    return np.asarray(np.maximum(array[:, 1] - array[:, 0], 0).prod(axis=1), np.int64)


def clip(array: IntArray, box: Box) -> IntArray:
    """Return the parts of the boxes inside ``box``; boxes entirely outside are dropped."""
    clipped = np.stack([np.maximum(array[:, 0], box.start), np.minimum(array[:, 1], box.stop)], axis=1)
    return np.asarray(clipped[(clipped[:, 0] < clipped[:, 1]).all(axis=1)])


def parts_by_chunk(array: IntArray, chunk: Triple, *, hull: bool) -> tuple[IntArray, IntArray]:
    """Cut boxes at the borders of chunks that start at the origin.

    Parameters
    ----------
    array
        Non-empty boxes; they may overlap.
    chunk
        Size of a chunk in voxels.
    hull
        Replace the parts in one chunk by their bounding box.

    Returns
    -------
    (chunks, parts)
        Chunk coordinates, shape (m, 3), and parts, shape (m, 2, 3), sorted by chunk. With ``hull`` each chunk occurs
        once.
    """
    size = np.asarray(chunk, np.int64)
    first = array[:, 0] // size
    shape = -(-array[:, 1] // size) - first
    counts = shape.prod(axis=1)
    owner = np.repeat(np.arange(len(array)), counts)
    running = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = shape[owner]
    place = np.stack(
        [running // (rows[:, 1] * rows[:, 2]), running // rows[:, 2] % rows[:, 1], running % rows[:, 2]], axis=1
    )
    chunks = first[owner] + place
    start = np.maximum(array[owner, 0], chunks * size)
    stop = np.minimum(array[owner, 1], (chunks + 1) * size)
    order = np.lexsort(chunks.T[::-1])
    chunks, start, stop = chunks[order], start[order], stop[order]
    if hull and len(chunks):
        is_first = np.concatenate([[True], (chunks[1:] != chunks[:-1]).any(axis=1)])
        groups = np.flatnonzero(is_first)
        chunks = chunks[groups]
        start, stop = np.minimum.reduceat(start, groups), np.maximum.reduceat(stop, groups)
    return chunks, np.stack([start, stop], axis=1)


def joined(array: IntArray) -> IntArray:
    """Cover the same voxels with fewer boxes: boxes that share a whole face are joined, along x, then y, then z.

    The result has no overlaps if the boxes have none. Equal boxes become one.
    """
    for axis in range(3):
        if len(array) < 2:
            return array
        others = [a for a in range(3) if a != axis]
        across = array[:, :, others].reshape(-1, 4)
        order = np.lexsort((array[:, 1, axis], array[:, 0, axis], *across.T))
        array, across = array[order], across[order]
        touches = (across[1:] == across[:-1]).all(axis=1) & (array[1:, 0, axis] == array[:-1, 1, axis])
        repeated = (array[1:] == array[:-1]).all(axis=(1, 2))
        groups = np.flatnonzero(np.concatenate([[True], ~(touches | repeated)]))
        ends = np.concatenate([groups[1:], [len(array)]]) - 1
        result = array[groups]
        result[:, 1, axis] = array[ends, 1, axis]
        array = result
    return array


def subtract(array: IntArray, box: Box) -> IntArray:
    """Return the parts of the boxes outside ``box``: up to six boxes for each, which do not overlap."""
    lower, upper = np.asarray(box.start), np.asarray(box.stop)
    meets = ((array[:, 0] < upper) & (lower < array[:, 1])).all(axis=1)
    pieces, rest = [array[~meets]], array[meets]
    for axis in range(3):
        before, after = rest.copy(), rest.copy()
        before[:, 1, axis] = np.minimum(rest[:, 1, axis], lower[axis])
        after[:, 0, axis] = np.maximum(rest[:, 0, axis], upper[axis])
        pieces += [side[side[:, 0, axis] < side[:, 1, axis]] for side in (before, after)]
        rest = rest.copy()
        rest[:, 0, axis] = np.maximum(rest[:, 0, axis], lower[axis])
        rest[:, 1, axis] = np.minimum(rest[:, 1, axis], upper[axis])
    return np.concatenate(pieces)
