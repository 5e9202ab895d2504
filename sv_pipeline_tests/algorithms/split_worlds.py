"""Small volumes of supervoxels with edges and sides, for tests of supervoxel splits; brute force, no code of ours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy import ndimage

from sv_pipeline.algorithms.local_edges import LocalEdges
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout

Triple = tuple[int, int, int]
Ids = npt.NDArray[np.uint64]
DIRECTIONS = [d for d in product((-1, 0, 1), repeat=3) if any(d)]
OBJECT = 1
"""Source label that is cut."""


@dataclass(frozen=True)
class World:
    """A volume, all of which is looked at."""

    grid: ChunkGrid
    layout: IdLayout
    source: npt.NDArray[np.int64]
    """Labels that chunk borders have not cut; the object is 1, background 0."""
    segmentation: Ids
    sides: npt.NDArray[np.uint8]
    """1 or 2 inside the object."""

    @property
    def box(self) -> Box:
        return self.grid.bounds

    @property
    def members(self) -> Ids:
        return np.unique(self.segmentation[self.source == OBJECT])


def pieces(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """26-connected pieces."""
    labels, n = ndimage.label(mask, np.ones((3, 3, 3)))
    return labels, n


def world_of(
    source: npt.NDArray[np.int64], sides: npt.NDArray[np.integer], chunk_size: Triple, offset: Triple = (0, 0, 0)
) -> World:
    """Cut source labels at chunk borders, and into pieces."""
    grid = ChunkGrid(Box.of(offset, np.add(offset, source.shape)), chunk_size)
    layout = IdLayout(max(3, grid.n_layers))
    segmentation = np.zeros(source.shape, np.uint64)
    for coordinate in grid.coordinates(2):
        at = grid.box(2, coordinate).shifted(np.negative(offset)).slices
        chunk_id, segment = layout.chunk_ids(1, coordinate), 0
        for label in np.unique(source[at][source[at] > 0]):
            found, n = pieces(source[at] == label)
            block = segmentation[at]
            block[found > 0] = layout.node_ids(chunk_id, found[found > 0].astype(np.uint64) + np.uint64(segment))
            segment += n
    return World(grid, layout, source, segmentation, np.where(source == OBJECT, sides, 0).astype(np.uint8))


def contacts(nodes: Ids) -> dict[tuple[int, int], int]:
    """Faces that every two ids share that touch in any of 26 directions; pairs in ascending order."""
    found: dict[tuple[int, int], int] = {}
    padded = np.pad(nodes, 1)
    core = (slice(1, -1),) * 3
    for direction in DIRECTIONS:
        other = np.roll(padded, direction, (0, 1, 2))[core]
        touching = (nodes < other) & (nodes > 0)
        is_face = sum(map(abs, direction)) == 1
        for one, two in zip(nodes[touching].tolist(), other[touching].tolist(), strict=True):
            found[one, two] = found.get((one, two), 0) + is_face
    return found


@st.composite
def worlds(draw: st.DrawFn, *, max_labels: int = 3) -> World:
    """Random ones: ragged labels, ragged or flat cuts, odd sizes and offsets; the object has at least two voxels."""
    shape = draw(st.tuples(*[st.integers(2, 10)] * 3))
    chunk_size = draw(st.tuples(*[st.integers(2, 5)] * 3))
    offset = draw(st.tuples(*[st.integers(-9, 9)] * 3))
    seed = draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    grain = draw(st.integers(1, 4))
    coarse = rng.integers(0, 1 + max_labels, tuple(-(-s // grain) for s in shape))
    source = coarse.repeat(grain, 0).repeat(grain, 1).repeat(grain, 2)[tuple(slice(0, s) for s in shape)].copy()
    source[0, 0, 0] = source[-1, -1, -1] = OBJECT
    if draw(st.booleans()):
        source[source == 0] = OBJECT
    axis = draw(st.integers(0, 2))
    flat = np.indices(shape)[axis] < draw(st.integers(0, shape[axis]))
    ragged = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.5]))
    return world_of(source, np.where(flat ^ ragged, 1, 2), chunk_size, offset)


def edges_of(world: World, seed: int = 0) -> LocalEdges:
    """As an ingest makes them: inf between pieces of one label across chunk faces, finite ones where labels touch.

    Also a few between supervoxels that are far apart, as merges by users make them.
    """
    rng = np.random.default_rng(seed)
    rows = []
    label_of = dict(zip(world.segmentation.ravel().tolist(), world.source.ravel().tolist(), strict=True))
    for (one, two), faces in contacts(world.segmentation).items():
        if label_of[one] == label_of[two]:
            rows.append((one, two, np.inf, 1, True))
        elif faces:
            rows.append((one, two, rng.uniform(0.01, 0.99), faces, bool(rng.random() < 0.7)))
    ids = np.unique(world.segmentation[world.segmentation > 0])
    rows += [(*rng.choice(ids, 2).tolist(), 1e-30, 0, True) for _ in range(3)]
    pairs, affinities, areas, active = zip(*[(r[:2], *r[2:]) for r in rows], strict=True)
    return LocalEdges.of(pairs, affinities, areas, active)
