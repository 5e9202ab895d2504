"""Worlds of one large object, as long or as bushy as wanted; the surroundings of its middle keep their size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline_tests.graph.worlds import CHUNK_SIZE, VOXEL_OFFSET, World

__all__ = ["LargeObject", "brush", "bush", "tube"]

IntArray = npt.NDArray[np.int64]
SIDE = 3
"""Supervoxels of a chunk along each axis; all of a chunk hang together, as one node of layer 2."""


@dataclass(frozen=True)
class LargeObject:
    """A world of one object, and two supervoxels in the middle of it, on the two sides of a face between chunks."""

    world: World
    source: int
    sink: int


def tube(cross: int, length: int) -> LargeObject:
    """An elongated object: ``cross`` x ``cross`` chunks thick, and ``length`` chunks long."""
    shape = (length, cross, cross)
    faces = _faces(shape)
    return _object(shape, faces, _middle(shape, faces[faces[:, 2] == 0]))


def bush(side: int, seed: int = 0, loops: float = 0) -> LargeObject:
    """An object that branches all over a cube of chunks: a random spanning tree, and some of the other faces."""
    shape = (side, side, side)
    faces, rng = _faces(shape), np.random.default_rng(seed)
    n = side**3
    weights = sparse.coo_array((rng.uniform(1, 2, len(faces)), (faces[:, 0], faces[:, 1])), shape=(n, n))
    kept = sparse.csgraph.minimum_spanning_tree(weights.tocsr()).tocoo()
    names = faces[:, 0] * n + faces[:, 1]
    faces = faces[np.isin(names, kept.row.astype(np.int64) * n + kept.col) | (rng.random(len(faces)) < loops)]
    return _object(shape, faces, _middle(shape, faces))


def brush(side: int, seed: int = 0) -> LargeObject:
    """Like `bush`, but a random spanning tree of supervoxels: each chunk has many nodes of layer 2."""
    made = _object(shape := (side,) * 3, faces := _faces(shape), _middle(shape, faces))
    world, rng = made.world, np.random.default_rng(seed)
    ends = np.searchsorted(world.supervoxels, np.array([edge[:2] for edge in world.edges], np.uint64))
    n = len(world.supervoxels)
    weights = rng.uniform(1, 2, len(ends))
    points = np.searchsorted(world.supervoxels, np.array([made.source, made.sink], np.uint64))
    weights[(ends == points).all(axis=1)] = 0.5  # the two points are joined
    kept = sparse.csgraph.minimum_spanning_tree(
        sparse.coo_array((weights, (ends[:, 0], ends[:, 1])), shape=(n, n)).tocsr()
    ).tocoo()
    stays = np.isin(ends[:, 0] * n + ends[:, 1], kept.row.astype(np.int64) * n + kept.col)
    edges = [edge for edge, keep in zip(world.edges, stays.tolist(), strict=True) if keep]
    return replace(made, world=replace(world, edges=edges))


def _faces(shape: tuple[int, int, int]) -> IntArray:
    """All faces between chunks: the two chunks and the axis across, shape (n, 3)."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    found = []
    for axis in range(3):
        low, high = np.take(numbers, range(shape[axis] - 1), axis), np.take(numbers, range(1, shape[axis]), axis)
        found.append(np.stack([low.ravel(), high.ravel(), np.full(low.size, axis)], axis=-1))
    return np.concatenate(found)


def _middle(shape: tuple[int, int, int], faces: IntArray) -> IntArray:
    """The face nearest to the middle."""
    places = np.stack(np.unravel_index(faces[:, :2].ravel(), shape), axis=-1).reshape(-1, 2, 3).mean(axis=1)
    return np.asarray(faces[np.argmin(np.abs(places - (np.asarray(shape) - 1) / 2).sum(axis=1))])


def _object(shape: tuple[int, int, int], faces: IntArray, middle: IntArray) -> LargeObject:
    bounds = Box.of(VOXEL_OFFSET, np.asarray(VOXEL_OFFSET) + np.asarray(shape) * CHUNK_SIZE)
    grid = ChunkGrid(bounds, CHUNK_SIZE)
    layout = IdLayout(grid.n_layers)
    places = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=-1).astype(np.int64)
    chunks = layout.chunk_ids(1, places)
    cells = np.arange(SIDE**3).reshape((SIDE,) * 3)
    ids = layout.node_ids(np.repeat(chunks, SIDE**3), np.tile(np.arange(1, SIDE**3 + 1, dtype=np.uint64), len(chunks)))
    ids = ids.reshape(len(chunks), -1)
    edges: list[tuple[int, int, str]] = []
    for axis in range(3):
        low, high = np.take(cells, range(SIDE - 1), axis).ravel(), np.take(cells, range(1, SIDE), axis).ravel()
        inner = np.stack([ids[:, low], ids[:, high]], axis=-1).reshape(-1, 2)
        edges += [(a, b, "in") for a, b in inner.tolist()]
        low, high = np.take(cells, SIDE - 1, axis).ravel(), np.take(cells, 0, axis).ravel()
        here = faces[faces[:, 2] == axis]
        outer = np.stack([ids[here[:, :1], low], ids[here[:, 1:2], high]], axis=-1).reshape(-1, 2)
        edges += [(a, b, "between") for a, b in outer.tolist()]
    axis = int(middle[2])
    centre = SIDE // 2
    ends = [np.full(3, centre), np.full(3, centre)]
    ends[0][axis], ends[1][axis] = SIDE - 1, 0
    source, sink = (int(ids[chunk, cells[tuple(end)]]) for chunk, end in zip(middle[:2].tolist(), ends, strict=True))
    supervoxels = np.sort(ids.ravel())
    return LargeObject(World(layout, grid, supervoxels, edges, dict.fromkeys(supervoxels.tolist(), 0)), source, sink)
