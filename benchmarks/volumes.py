"""Owns the volumes that the benchmarks of the segmentation room run on. Measures nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.storage.precomputed import VolumeInfo, create_volume, open_volume, read_info

DATA = Path(__file__).resolve().parents[2] / "shared/data/em_256.npz"
RESOLUTION = (16.0, 16.0, 40.0)
STORAGE_CHUNK = (64, 64, 64)

Triple = tuple[int, int, int]


def tile() -> npt.NDArray[np.uint64]:
    """A block of 256^3 labels: real ones where there are any, else Voronoi cells."""
    if DATA.exists():
        labels = np.load(DATA)["segmentation"].astype(np.uint64)
    else:
        from scipy.spatial import cKDTree

        rng = np.random.default_rng(0)
        points = np.stack(np.indices((64, 64, 64)), axis=-1).reshape(-1, 3)
        _, nearest = cKDTree(rng.random((800, 3)) * 64).query(points)
        labels = (nearest.reshape(64, 64, 64) + 1).astype(np.uint64).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    # Supervoxels end at chunk borders, so ids differ from chunk to chunk.
    cells = np.indices((4, 4, 4)).reshape(3, -1).T
    for index, (x, y, z) in enumerate(cells * 64):
        block = labels[x : x + 64, y : y + 64, z : z + 64]
        block[block > 0] += np.uint64((index + 1) << 20)
    return np.asfortranarray(labels)


def make_source(folder: Path, size: Triple, n_mips: int) -> VolumeInfo:
    """A volume of tiles with distinct ids; all ``n_mips`` stored."""
    create_volume(
        folder,
        resolution=RESOLUTION,
        voxel_offset=(1000, 2000, 300),
        size=size,
        chunk_size=STORAGE_CHUNK,
        n_mips=n_mips,
    )
    info = read_info(folder)
    block = tile()
    stores = [open_volume(folder, mip, writable=True) for mip in range(n_mips)]
    counts = [-(-s // 256) for s in size]
    for number, position in enumerate(np.ndindex(*counts)):
        labels = np.where(block > 0, block + np.uint64((number + 1) << 40), block)
        start = np.multiply(position, 256)
        labels = labels[tuple(slice(0, max(0, s - a)) for s, a in zip(size, start, strict=True))]
        for mip, store in enumerate(stores):
            if mip:
                step = np.floor_divide(info.factors(mip), info.factors(mip - 1))
                labels = downsample(labels, (int(step[0]), int(step[1]), int(step[2])))
            offset = np.asarray(info.scales[mip].voxel_offset) + start // info.factors(mip)
            slices = tuple(slice(int(a), int(a) + n) for a, n in zip(offset, labels.shape, strict=True))
            store[slices].write(labels).result()
    return info


def grid_of(info: VolumeInfo, chunk_size: Triple) -> ChunkGrid:
    """The graph's chunks."""
    return ChunkGrid(info.bounds, chunk_size)
