"""Stored and reachable bytes of a fork over many edits, with and without a retention policy; time of a collection.

``python benchmarks/store_life.py [--edits 1000] [--keep 100] [--picture store_life.png]``. Each edit rewrites two
storage chunks of 64^3 voxels at a random place of a synthetic segmentation, as a split of a supervoxel does. The same
edits are made in two forks of one base; the history of the second is pruned and collected every 50 edits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import grid_of, make_source

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.config import OcdbtConfig
from sv_pipeline.grid import Box
from sv_pipeline.retention import Retention
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.garbage import Needs, collect, prune, usage
from sv_pipeline.storage.precomputed import read_info
from sv_pipeline.testing.populating import populate_missing

GRAPHS = ("forever", "pruned")
CHUNK = 64


def edited(fork: Fork, operation_id: int, rng: np.random.Generator) -> EditCommit:
    """Return an edit of two storage chunks, in which a third of the voxels get another id."""
    bounds = fork.base.info().volume.bounds
    corner = rng.integers(0, np.asarray(bounds.shape) // CHUNK - 1) * CHUNK + bounds.start
    volume, blocks = fork.open(), []
    for offset in np.ndindex(2, 1, 1):
        start = corner + np.multiply(offset, CHUNK)
        box = Box.of(start, start + CHUNK)
        voxels = np.array(volume[box.slices].read(order="F").result(), np.uint64, order="F")
        voxels[: CHUNK // 3] += np.uint64(operation_id)
        blocks.append(VoxelBlock(box, voxels))
    return EditCommit(operation_id, blocks, fork.generation(), 1000 * operation_id, "benchmark")


def draw(rows: dict[str, list[tuple[int, int, int]]], keep: int, path: Path) -> None:
    """Draw the bytes over the edits."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=110)
    for graph_id, colour in zip(GRAPHS, ("tab:red", "tab:blue"), strict=True):
        edits, stored, latest = np.transpose(rows[graph_id])
        name = "whole history" if graph_id == "forever" else f"{keep} generations"
        axes.plot(edits, stored / 1e6, color=colour, label=f"stored, {name}")
        if graph_id == "pruned":
            axes.plot(edits, latest / 1e6, color="tab:gray", linestyle="--", label="used by the latest generation")
    axes.set(xlabel="edits of voxels", ylabel="MB", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--keep", type=int, default=100)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="store-life-"))
    policy, none = Retention(generations=options.keep), timedelta(0)
    try:
        make_source(scratch, (options.size,) * 3, 1)
        grid, config = grid_of(read_info(scratch), (128, 128, 128)), OcdbtConfig(populate_layer=3)
        Base(scratch).create(config, grid)
        plan = populate_plan(Base(scratch), grid, config)
        populate_missing(plan, workers=2)
        finish_populate(plan)
        rows: dict[str, list[tuple[int, int, int]]] = {}
        for graph_id in GRAPHS:
            fork, rng = Fork(scratch, graph_id), np.random.default_rng(0)
            fork.create()
            rows[graph_id] = []
            for number in range(1, options.edits + 1):
                fork.commit(edited(fork, number, rng))
                if number % 50:
                    continue
                seconds, removed = 0.0, 0
                if graph_id == "pruned":
                    began = time.perf_counter()
                    prune(fork, policy, Needs, grace=none)
                    removed = collect(fork, policy, Needs, grace=none).bytes
                    seconds = time.perf_counter() - began
                began = time.perf_counter()
                found = usage(fork, policy, Needs, grace=none)
                rows[graph_id].append((number, found.stored_bytes, found.latest_bytes))
                print(
                    f"{graph_id:8} {number:5} edits: {found.stored_bytes / 1e6:8.2f} MB in {found.stored_files:5} "
                    "files, "
                    f"latest {found.latest_bytes / 1e6:6.2f} MB, beside {found.beside_bytes / 1e6:6.2f} MB; report "
                    f"{time.perf_counter() - began:5.2f} s, clean-up {seconds:5.2f} s of {removed / 1e6:6.2f} MB",
                    flush=True,
                )
        fork = Fork(scratch, "forever")
        began = time.perf_counter()
        pruned = prune(fork, policy, Needs, grace=none)
        middle = time.perf_counter()
        done = collect(fork, policy, Needs, grace=none)
        print(
            f"at once: {pruned.removed} generations pruned in {middle - began:.2f} s, {done.files} files of "
            f"{done.bytes / 1e6:.2f} MB deleted in {time.perf_counter() - middle:.2f} s"
        )
        if options.picture is not None:
            draw(rows, options.keep, options.picture)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
