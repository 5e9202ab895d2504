"""Pairs of touching objects, merged and split again at the same two voxels: how many splits part what they should.

    python benchmarks/merge_then_split.py [--data FOLDER] [--chunk 64 64 64] [--pairs 193] [--offset X Y Z]

The objects are the true bodies of fib_250.npz (SQLite, files on disk). The two voxels are next to each other, one in
each object. A split that succeeds while its points are under one root, and does not say so, is counted as silent. Each
split is previewed first, and must come to what the preview says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorstore as ts

sys.path.insert(0, str(Path(__file__).resolve().parent))

import quiet  # noqa: F401 - imported for its effect
import voxel_cut_cases

from sv_pipeline import edits
from sv_pipeline.config import parse_config
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.queries import roots, supervoxels_at
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.stages import register
from sv_pipeline.registry import Dataset
from sv_pipeline.verify.run import verify


def build(folder: Path, source: Path, chunk: list[int]) -> Dataset:
    """The graph of the true bodies, ingested."""
    content = {
        "graph_id": "pairs",
        "data_source": {"WATERSHED": str(folder / "ws")},
        "source": {"segmentation": f"{source}#supervoxels", "agglomeration": f"{source}#groundtruth"},
        "graph_config": {"CHUNK_SIZE": chunk},
    }
    dataset = register(parse_config(content), str(folder / "home"))
    ingest(dataset)
    return dataset


def touching(bodies: npt.NDArray[np.integer], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Two voxels side by side for each pair of bodies that touch, in a random order; shape (n, 2, 3)."""
    found = []
    for axis in range(3):
        low = np.argwhere(np.diff(bodies, axis=axis) != 0)
        found.append(np.stack([low, low + np.eye(3, dtype=np.int64)[axis]], axis=1))
    pairs = rng.permutation(np.concatenate(found))
    names = np.sort(np.stack([bodies[tuple(pairs[:, side].T)] for side in (0, 1)], axis=-1), axis=1)
    return pairs[rng.permutation(np.unique(names, axis=0, return_index=True)[1])]


def split(
    dataset: Dataset, request: SplitRequest, volume: ts.TensorStore, pair: npt.NDArray[np.int64]
) -> tuple[str, list[float]]:
    """What comes of a split, and the seconds that it took if it was made."""
    graph = dataset.graph
    preview = edits.preview_split(graph, request, volume=volume)
    started = time.perf_counter()
    try:
        edit = edits.split(graph, request, volume=volume)
    except edits.EditRefused as refusal:
        said = preview.refusal
        agrees = said is not None and (said.reason, said.message) == (refusal.reason, refusal.message)
        if refusal.reason is edits.Reason.STILL_CONNECTED:
            print(refusal, flush=True)
        return f"refused: {refusal.reason}{'' if agrees else ', which the preview has not said'}", []
    seconds = time.perf_counter() - started
    one, other = roots(graph, supervoxels_at(graph, volume, pair)).tolist()
    agrees = preview.objects == len(edit.roots) and preview.still_one_object == edit.still_one_object
    outcome = (
        "parted in the first region" if not preview.enlarged else f"parted after {preview.enlarged} enlargement(s)"
    )
    if one == other:
        outcome = "still one object, and says so" if edit.still_one_object else "SILENT: still one object"
    return f"{outcome}{'' if agrees else ', which the preview has not said'}", [seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=voxel_cut_cases.DATA, help="folder of fib_250.npz")
    parser.add_argument("--chunk", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--pairs", type=int, default=193)
    parser.add_argument("--isolating", action="store_true", help="allow cuts that cut off nothing but the points")
    parser.add_argument("--region-memory", type=int, default=1 << 30, help="bytes; 0: no region is enlarged")
    parser.add_argument("--partial", action="store_true", help="allow what parts nothing")
    parser.add_argument("--offset", type=int, nargs=3, help="voxels around the points; default: of the graph")
    options = parser.parse_args()
    source, offset = options.data / "fib_250.npz", tuple(options.offset) if options.offset else None
    with np.load(source) as file:
        pairs = touching(file["groundtruth"].astype(np.int64), np.random.default_rng(0))
    outcomes: Counter[str] = Counter()
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        dataset = build(Path(name), source, list(options.chunk))
        graph, volume = dataset.graph, dataset.fork.open()
        for pair in pairs:
            if outcomes.total() == options.pairs:
                break
            sides = [Points.of(coordinates=pair[side : side + 1]) for side in (0, 1)]
            try:
                edits.merge(graph, MergeRequest("benchmark", *sides, offset), volume=volume)
            except edits.EditRefused:
                continue
            request = SplitRequest(
                "benchmark",
                *sides,
                offset,
                disallow_isolating_cut=not options.isolating,
                region_memory=options.region_memory,
                allow_partial=options.partial,
            )
            outcome, taken = split(dataset, request, volume, pair)
            outcomes[outcome] += 1
            seconds += taken
        report = verify(graph.table, dataset.fork)
    print(f"{outcomes.total()} pairs merged and split again:")
    for outcome, count in outcomes.most_common():
        print(f"  {count:4d} {outcome}")
    print(f"seconds: median {np.median(seconds):.2f}, p95 {np.percentile(seconds, 95):.2f}, max {max(seconds):.2f}")
    print(report.summary() if not report.ok else report.summary().splitlines()[0])


if __name__ == "__main__":
    main()
