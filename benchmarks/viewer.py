"""What it costs to see objects instead of supervoxels as they are stored, as ratios within one run.

``python benchmarks/viewer.py [--sizes 64 128 256] [--repeat 3] [--chunks 24]``

For cubes of a segmentation with each side, chunks of 64^3, SQLite and local files:

- first chunk: from opening the graph in a new process to the bytes of the chunk in the middle of the volume, over
  HTTP as a browser asks for it; of the layer `objects` over that of `supervoxels`, and over that of the smallest cube;
- further chunks, at each mip and beyond the coarsest: median milliseconds for a chunk that was not asked for before.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import requests
from volumes import RESOLUTION, tile

from sv_pipeline.config import parse_config
from sv_pipeline.ingest import run, stages
from sv_pipeline.proofreading import open_graph
from sv_pipeline.testing.volumes import LabelledVolume
from sv_pipeline.testing.worlds import configuration
from sv_pipeline.viewer.window import ViewerWindow

GRAPH = "g"
CHUNK = 64
"""Voxels along each side of a chunk of the graph, and of a chunk that neuroglancer asks for."""
LAYERS = ("supervoxels", "objects")
"""Layers of the viewer; the first is stored as it is shown."""


def build_graph(folder: Path, size: int, workers: int) -> str:
    """Build a graph from a cube; return its home."""
    labels = tile()[:size, :size, :size]
    # Supervoxels that one label of the segmentation had before it was cut at chunk borders are one object.
    objects = {int(label): int(label) & ((1 << 20) - 1) for label in np.unique(labels) if label}
    raw = configuration(
        LabelledVolume(labels, objects, resolution=RESOLUTION), folder, GRAPH, chunk_size=(CHUNK, CHUNK, CHUNK)
    )
    dataset = stages.register(parse_config(raw), str(folder / "home"))
    began = time.perf_counter()
    run.ingest(dataset, workers=workers)
    seconds, count = time.perf_counter() - began, len(objects)
    print(f"{size}^3: {count:,} supervoxels, {len(set(objects.values())):,} objects, ingested in {seconds:.0f} s")
    return dataset.home


def look(home: str, layer: str, limit: int) -> dict[str, Any]:
    """Look at chunks of a layer; returns seconds to the first, and seconds of further ones for each factor."""
    began = time.perf_counter()
    window = ViewerWindow(open_graph(GRAPH, home))
    url = window.url.partition("/v/")[0]
    layers = {one["name"]: json.dumps(one["source"]) for one in window.viewer.shared_state.raw_state["layers"]}
    key = re.findall(r"python://volume/([\w.]+)", layers[layer])[0]
    shape = np.asarray(window.graph.dataset.volume.bounds.shape)
    mips = [mip.factor for mip in window._live[0].pyramid.mips]
    beyond = tuple(2 * axis for axis in mips[-1])

    def ask(factor: tuple[int, ...], start: tuple[int, ...]) -> float:
        stop = np.minimum(np.add(start, CHUNK), -(-shape // factor))
        address = "/".join(",".join(map(str, part)) for part in (factor, start, stop))
        asked = time.perf_counter()
        requests.get(f"{url}/neuroglancer/npz/{key}/{address}", timeout=600).raise_for_status()
        return time.perf_counter() - asked

    middle = tuple((shape // 2 // CHUNK * CHUNK).tolist())
    ask(mips[0], middle)
    first = time.perf_counter() - began
    times = {}
    for factor in (*mips, beyond):
        counts = np.ceil(np.ceil(shape / factor) / CHUNK).astype(int).tolist()
        starts = [tuple(CHUNK * axis for axis in at) for at in product(*map(range, counts))]
        fresh = [at for at in starts if (factor, at) != (mips[0], middle)] or starts
        chosen = np.random.default_rng(0).permutation(len(fresh))[:limit]
        times["x".join(map(str, factor))] = [ask(factor, fresh[number]) for number in chosen]
    window.close()
    return {"first": first, "further": times}


def measure(home: str, layer: str, chunks: int) -> dict[str, Any]:
    """Look in a new process."""
    command = [sys.executable, __file__, "--look", home, layer, "--chunks", str(chunks)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of cubes, at most 256")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=24, help="further chunks at each mip")
    parser.add_argument("--workers", type=int, default=2, help="processes of the ingest")
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(*options.look, options.chunks)))
        return
    scratch = Path(tempfile.mkdtemp(prefix="viewer-"))
    smallest: dict[str, float] = {}
    try:
        for size in options.sizes:
            home = build_graph(scratch / str(size), size, options.workers)
            # The layers take turns, so that what else runs on the machine meets both.
            seen: dict[str, list[dict[str, Any]]] = {layer: [] for layer in LAYERS}
            for _, layer in product(range(options.repeat), LAYERS):
                seen[layer].append(measure(home, layer, options.chunks))
            first = {layer: statistics.median(one["first"] for one in seen[layer]) for layer in LAYERS}
            smallest = smallest or first
            print(f"  first chunk: {' | '.join(f'{layer} {first[layer]:.2f} s' for layer in LAYERS)}", end="")
            print(f" | ratio {first['objects'] / first['supervoxels']:.2f}", end="")
            print(f" | objects over the smallest cube {first['objects'] / smallest['objects']:.2f}")
            for factor in seen["objects"][0]["further"]:
                stored, mapped = (
                    statistics.median(seconds for one in seen[layer] for seconds in one["further"][factor])
                    for layer in LAYERS
                )
                print(f"  factor {factor}: {1000 * stored:.0f} | {1000 * mapped:.0f} ms | ratio {mapped / stored:.2f}")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
