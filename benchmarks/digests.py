"""What digests add to a commit of voxels and to a supervoxel split: CPU time, wall time and bytes, side by side.

    python benchmarks/digests.py [--storage-chunk 64 64 64] [--chunks 1 4 8] [--repeat 8]

A volume of Voronoi cells is populated and forked. Each round commits the same storage chunks twice on the same fork,
with digests and without, in turn, so that both meet the same load of the machine. CPU time is what digests cost where
all processors are busy.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.config import OcdbtConfig
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork import commit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info


class NoDigests:
    """In the place of the writer."""

    def add(self, *_: object) -> None: ...

    def keep(self, *_: object) -> None: ...

    def write(self, *_: object) -> None: ...


@contextlib.contextmanager
def no_digests(_: object) -> Iterator[NoDigests]:
    yield NoDigests()


def build(folder: Path, chunk: tuple[int, int, int]) -> str:
    """A volume of 4 x 2 x 1 storage chunks, forked as graph g."""
    size = tuple(np.multiply(chunk, (4, 2, 1)).tolist())
    rng = np.random.default_rng(0)
    seeds = rng.random((int(np.prod(size)) // 4000, 3)) * size
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    labels = cKDTree(seeds).query(grid.reshape(-1, 3), workers=-1)[1].reshape(size).astype(np.uint64) + (1 << 56)
    url = f"file://{folder}/ws"
    create_volume(url, resolution=(8, 8, 40), voxel_offset=(0, 0, 0), size=size, chunk_size=chunk)
    open_volume(url, writable=True).write(labels).result()
    chunks = ChunkGrid(read_info(url).bounds, chunk)
    config = OcdbtConfig(mips=1)
    Base(url).create(config, grid=chunks)
    plan = populate_plan(Base(url), chunks, config)
    for task in plan.missing:
        populate_task(plan, task)
    finish_populate(plan)
    Fork(url, "g").create()
    return url


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "ws/ocdbt/g").rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage-chunk", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--chunks", type=int, nargs="+", default=(1, 4, 8))
    parser.add_argument("--repeat", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = build(folder, tuple(options.storage_chunk))
        number, real = 0, commit.digest_writer
        grid = ChunkGrid(read_info(url).bounds, tuple(options.storage_chunk))
        boxes = [grid.box(2, coordinate) for coordinate in grid.coordinates(2)]
        for count in options.chunks:
            took: dict[str, list[tuple[float, float, int]]] = {"with": [], "without": []}
            for _ in range(options.repeat + 1):
                for kind in took:
                    number += 1
                    commit.digest_writer = real if kind == "with" else no_digests
                    took[kind].append(once(url, folder, number, boxes[:count]))
            for kind, values in took.items():
                cpu, wall, written = (statistics.median(v[i] for v in values[1:]) for i in range(3))
                print(
                    f"{count} chunks {kind:8} cpu {cpu * 1e3:7.1f} ms  wall {wall * 1e3:7.1f} ms  {written:9.0f} bytes"
                )


def once(url: str, folder: Path, number: int, boxes: list[Box]) -> tuple[float, float, int]:
    fork = Fork(url, "g").open()
    blocks = [VoxelBlock(b, np.asarray(fork[b.slices].read(order="F").result()) + np.uint64(1)) for b in boxes]
    edit = commit.EditCommit(number, blocks, Fork(url, "g").generation(), number, "me", identity="i", graph="g")
    before, cpu, wall = bytes_of(folder), time.process_time(), time.perf_counter()
    Fork(url, "g").commit(edit)
    return time.process_time() - cpu, time.perf_counter() - wall, bytes_of(folder) - before


if __name__ == "__main__":
    main()
