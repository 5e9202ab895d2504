"""Time, memory and bytes per chunk of a whole ingest, as a real volume is repeated along x and y.

    python benchmarks/scale.py ingest VOLUME.npz [--tiles 1 4 16] [--large] [--memory 64]

Each stage runs in a process of its own, as one batch of all its chunks, so that its peak of memory is that of a worker
with the largest possible batch. Prints one line of JSON per number of tiles, and the ratios to the first one: all but
``chunks`` should stay near 1. ``--large`` adds 64 tiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline.config import IngestMode, parse_config
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.storage.precomputed import create_volume, open_volume

CHUNK = (64, 64, 64)


def main() -> None:
    """Measure each number of tiles, or be the process of one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volume", help="an .npz with the array 'segmentation', or the home folder of a stage's process")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 16], help="square numbers")
    parser.add_argument("--large", action="store_true", help="64 tiles as well")
    parser.add_argument("--memory", type=int, default=64, help="MiB for the work of a process")
    parser.add_argument("--stage", nargs=2, metavar=("GRAPH", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(open_dataset(options.stage[0], options.volume), options.stage[1])
        return
    first: dict[str, Any] | None = None
    with np.load(options.volume) as arrays:
        labels = max((arrays[name] for name in arrays.files), key=lambda array: array.size)
    for tiles in [*options.tiles, *([64] if options.large else [])]:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(labels, tiles, Path(folder), options.memory)
        first = first or found
        ratios = {name: round(value / first[name], 2) for name, value in found.items() if first[name]}
        say({"tiles": tiles, **found, "ratios": ratios})


def measure(labels: np.ndarray, tiles: int, folder: Path, memory: int) -> dict[str, Any]:
    """Ingest so many tiles; the numbers per chunk, and the peak of each stage's process in MB."""
    source, home, graph_id = folder / "source", str(folder / "home"), f"tiles{tiles}"
    size = write_tiles(labels, math.isqrt(tiles), source)
    raw = {
        "graph_id": graph_id,
        "source": {"segmentation": str(source)},
        "data_source": {"WATERSHED": str(folder / "ws")},
        "graph_config": {"CHUNK_SIZE": CHUNK},
        "backend_client": {"TYPE": "sqlite", "CONFIG": {"PATH": str(folder / "table")}},
        "ocdbt_config": {"populate_method": "parts"},
        "ingest": {"workers": 1, "worker_memory_mb": memory, "chunks_per_batch": 1 << 20},
    }
    dataset = stages.register(parse_config(raw), home)
    found: dict[str, Any] = {}
    names = ["labels", "edges", "setup", *(f"graph {layer}" for layer in range(2, dataset.grid.n_layers + 1)), "voxels"]
    peaks: dict[str, int] = {}
    chunks = dataset.grid.count(2)
    for name in names:
        command = [sys.executable, __file__, home, "--stage", graph_id, name]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
        answer = json.loads(said.stdout)
        kind = name if not name.startswith("graph") else ("layer 2" if name == "graph 2" else "upper layers")
        found[f"{kind}, ms per chunk"] = round(
            found.get(f"{kind}, ms per chunk", 0) + answer["seconds"] * 1000 / chunks, 2
        )
        peaks[kind] = max(peaks.get(kind, 0), answer["peak_mb"])
    found |= {f"{kind}, peak MB": peak for kind, peak in peaks.items()}
    found["table, kB per chunk"] = round(size_of(folder / "table") / chunks / 1000, 2)
    found["base, bytes per voxel"] = round(size_of(folder / "ws" / "ocdbt") / math.prod(size), 4)
    return {"chunks": chunks, **found}


def write_tiles(labels: np.ndarray, side: int, folder: Path) -> tuple[int, int, int]:
    """Write a precomputed volume of ``side`` x ``side`` tiles with labels of their own; return its size in voxels."""
    size = (labels.shape[0] * side, labels.shape[1] * side, labels.shape[2])
    create_volume(str(folder), resolution=(8, 8, 8), voxel_offset=(0, 0, 0), size=size, chunk_size=CHUNK)
    volume, step = open_volume(str(folder), writable=True), np.uint64(int(labels.max()) + 1)
    for number in range(side * side):
        x, y = (number // side) * labels.shape[0], (number % side) * labels.shape[1]
        tile = np.where(labels > 0, labels.astype(np.uint64) + step * np.uint64(number), np.uint64(0))
        volume[x : x + labels.shape[0], y : y + labels.shape[1], :].write(tile).result()
    return size


def run_stage(dataset: Dataset, name: str) -> None:
    """Run one stage in this process, and print its time and the peak of the process's memory."""
    started = time.monotonic()
    if name == "setup":
        stages.setup(dataset)
    elif name in ("labels", "edges"):
        run_all(dataset, stages.plan_watershed(dataset, Stage(name)))
        stages.finish_labels(dataset) if name == "labels" else stages.finish_edges(dataset)
    else:
        mode = IngestMode.VOXELS if name == "voxels" else IngestMode.GRAPH
        layers = stages.layers_of(dataset) if name == "voxels" else [int(name.split()[1])]
        for layer in layers:
            run_all(dataset, stages.plan_layer(dataset, layer, mode))
            stages.finish_layer(dataset, layer, mode)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1000
    say({"seconds": round(time.monotonic() - started, 3), "peak_mb": peak})


def run_all(dataset: Dataset, batches: list[Batch]) -> None:
    """Run batches one after the other."""
    for batch in batches:
        stages.run_batch(dataset, batch)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def say(line: dict[str, Any]) -> None:
    """Print a line of JSON."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
