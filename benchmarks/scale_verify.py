"""Time and peak memory of a verification, of the whole graph at once and by parts, side by side in one run.

``python benchmarks/scale_verify.py [--tiles 1 4 16] [--budget 64] [--large]`` ingests copies of a real segmentation
(``--data``) side by side, with new labels in each copy, in chunks of 64^3, and verifies the graph in processes of their
own. ``--large`` adds 64 tiles. Each line is one verification; ``ratio`` compares it with the whole graph at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import run, stages
from sv_pipeline.memory import MEMORY_VARIABLE
from sv_pipeline.registry import Dataset

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "fib_250.npz"
IN_BLOCKS = {"base", "fork", "pyramid"}
"""Checks that count blocks, whose size depends on the budget."""
WHOLE = 1 << 20
"""A budget in MiB that every graph fits."""

MEASURE = """
import json, re, sys, time
from pathlib import Path
from sv_pipeline.registry import open_dataset
from sv_pipeline.verify.dataset import verify_dataset
graph, home, checks, workers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
dataset = open_dataset(graph, home)
started = time.perf_counter()
parts = set()
report = verify_dataset(dataset, checks=checks, workers=workers, progress=lambda done, total: parts.add(total // 100))
seconds = time.perf_counter() - started
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps({"seconds": round(seconds, 2), "peak_MB": peak, "parts": max(parts), "sound": report.ok,
                  "checked": {r.name: r.checked for r in report.results}}))
"""


def _repeated(labels: np.ndarray, across: int, down: int) -> np.ndarray:
    """Copies of a volume side by side along x and y, each with labels of its own; 0 stays 0."""
    step = labels.max() + 1
    rows = [
        np.concatenate([np.where(labels == 0, 0, labels + step * (y * across + x)) for x in range(across)], axis=0)
        for y in range(down)
    ]
    return np.concatenate(rows, axis=1).astype(np.uint32)


def tiled(folder: Path, data: Path, tiles: int) -> Dataset:
    """Ingest copies of a segmentation side by side."""
    with np.load(data) as stored:
        arrays = {name: stored[name].astype(np.uint32) for name in ("supervoxels", "groundtruth")}
        resolution = np.asarray(stored["resolution"])
    across = 1 << (tiles.bit_length() // 2)
    source = folder / f"{tiles}.npz"
    large = {name: _repeated(labels, across, tiles // across) for name, labels in arrays.items()}
    np.savez(source, **large, resolution=resolution)
    raw = {
        "graph_id": f"tiles_{tiles}",
        "data_source": {"WATERSHED": str(folder / str(tiles))},
        "source": {"segmentation": f"{source}#supervoxels", "agglomeration": f"{source}#groundtruth"},
        "graph_config": {"CHUNK_SIZE": [64] * 3},
    }
    dataset = stages.register(parse_config(raw), str(folder / "home"))
    run.ingest(dataset, workers=2)
    return dataset


def measure(dataset: Dataset, budget: int, checks: list[str] | None, workers: int) -> dict[str, Any]:
    """Verify in a process of its own."""
    command = [sys.executable, "-c", MEASURE, dataset.graph_id, dataset.home, json.dumps(checks), str(workers)]
    done = subprocess.run(
        command, env={**os.environ, MEMORY_VARIABLE: str(budget)}, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one line for each verification."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 4, 16], help="numbers of tiles, powers of two")
    parser.add_argument("--large", action="store_true", help="64 tiles as well")
    parser.add_argument("--budget", type=int, nargs="+", default=[64], help="budgets in MiB")
    parser.add_argument("--rows", action="store_true", help="only the checks of rows and edges")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, help="npz with a segmentation (x, y, z)")
    options = parser.parse_args()
    checks = None
    if options.rows:
        from sv_pipeline.verify.part_checks import ROW_CHECKS

        checks = list(ROW_CHECKS)
    with tempfile.TemporaryDirectory() as folder:
        for tiles in [*options.tiles, *([64] if options.large else [])]:
            started = time.perf_counter()
            dataset = tiled(Path(folder), options.data, tiles)
            ingest = time.perf_counter() - started
            whole = measure(dataset, WHOLE, checks, options.workers)
            counted = whole.pop("checked")
            line = {
                "tiles": tiles,
                "chunks": dataset.grid.count(2),
                "nodes": counted["ids"],
                "ingest_s": round(ingest, 1),
            }
            print(json.dumps({**line, "budget_MB": None, **whole}), flush=True)
            for budget in options.budget:
                parts = measure(dataset, budget, checks, options.workers)
                found = parts.pop("checked")
                same = all(found[name] == counted[name] for name in found if name not in IN_BLOCKS)
                ratio = {
                    "time": round(parts["seconds"] / whole["seconds"], 2),
                    "memory": round(parts["peak_MB"] / whole["peak_MB"], 2),
                }
                print(json.dumps({**line, "budget_MB": budget, **parts, "same": same, "ratio": ratio}), flush=True)


if __name__ == "__main__":
    main()
