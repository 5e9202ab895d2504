"""Time and bytes of backups against what changed since the last one.

``python benchmarks/store_backup.py [--volume PATH.npz#array] [--steps 1 4 16 64]``. A graph of a real segmentation is
backed up; then supervoxels are split, 1, 4, 16 and 64 of them, with a backup after each series. The last column is the
time of the backup over that of the first one, which copies everything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import quiet  # noqa: F401 - imported for its effect

import sv_pipeline
from sv_pipeline.config import parse_config
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.upkeep.backup import Backup, back_up


def splits(graph: sv_pipeline.OpenGraph, wanted: int, rng: np.random.Generator) -> int:
    """Split so many supervoxels between two random voxels of each; return how many were split."""
    volume, made = graph.dataset.fork.open(), 0
    voxels = np.asarray(volume.read(order="F").result())
    offset = np.asarray(graph.dataset.volume.bounds.start)
    labels, sizes = np.unique(voxels[voxels > 0], return_counts=True)
    for label in rng.permutation(labels[sizes > 500]).tolist():
        if made == wanted:
            break
        places = np.argwhere(voxels == label)
        one, other = places[rng.choice(len(places), 2, replace=False)] + offset
        try:
            graph.split([tuple(one.tolist())], [tuple(other.tolist())])
        except sv_pipeline.EditRefused:
            continue
        made += 1
    return made


def timed(graph: sv_pipeline.OpenGraph, place: Path) -> tuple[float, Backup]:
    """Back a graph up; return the seconds and what was copied."""
    began = time.perf_counter()
    done = back_up(graph.dataset, place)
    return time.perf_counter() - began, done


def main() -> None:
    """Print one line for each backup."""
    data = Path(__file__).parents[2] / "shared" / "data" / "fib_250.npz"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volume", default=f"{data}#supervoxels" if data.exists() else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 16, 64])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-backup-") as name:
        folder = Path(name)
        volume = options.volume
        if volume is None:
            volume = str(folder / "volume.npy")
            np.save(volume, synthetic_neuropil((256, 256, 128), seed=1).segmentation)
        config = parse_config(
            {
                "graph_id": "backed_up",
                "data_source": {"WATERSHED": str(folder / "watershed")},
                "source": {"segmentation": volume, "resolution": [10, 10, 10]},
                "graph_config": {"CHUNK_SIZE": [64, 64, 64]},
            }
        )
        sv_pipeline.register(config, home=str(folder / "home"))
        sv_pipeline.ingest("backed_up", home=str(folder / "home"))
        with sv_pipeline.open_graph("backed_up", home=str(folder / "home")) as graph:
            rng = np.random.default_rng(0)
            first, done = timed(graph, folder / "backups")
            print(f"first backup: {first:.2f} s; {done}")
            for step in options.steps:
                made = splits(graph, step, rng)
                seconds, done = timed(graph, folder / "backups")
                print(f"after {made} splits: {seconds:.2f} s ({seconds / first:.2f} of the first); {done}", flush=True)


if __name__ == "__main__":
    main()
