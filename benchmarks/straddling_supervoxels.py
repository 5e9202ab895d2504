"""Real false mergers split in a graph: how many commit, how right they are, how long they take, and what verify says.

    python benchmarks/straddling_supervoxels.py [--data FOLDER] [--chunk 64 64 64] [--seeds 1] [--cases 64]

The supervoxels of fib_250.npz that straddle true bodies (64 of them) are split one after the other, with seeds in the
true bodies, in a graph of the whole volume (SQLite, files on disk). Accuracy is balanced over the two bodies: of the
voxels of each body inside the supervoxel, those whose object afterwards is that of its seed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

sys.path.insert(0, str(Path(__file__).resolve().parent))

import quiet  # noqa: F401 - imported for its effect
import voxel_cut_cases

from sv_pipeline import edits
from sv_pipeline.config import parse_config
from sv_pipeline.edits import Points, SplitRequest
from sv_pipeline.graph.queries import roots, supervoxels_at
from sv_pipeline.grid import Box
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.stages import register
from sv_pipeline.registry import Dataset
from sv_pipeline.verify.run import verify


def build(folder: Path, source: Path, chunk: list[int]) -> Dataset:
    """The graph of a source, ingested."""
    content = {
        "graph_id": "straddling",
        "data_source": {"WATERSHED": str(folder / "ws")},
        "source": {"segmentation": str(source)},
        "graph_config": {"CHUNK_SIZE": chunk},
    }
    dataset = register(parse_config(content), str(folder / "home"))
    ingest(dataset)
    return dataset


@dataclass
class Outcome:
    """What became of one case."""

    name: str
    reason: str
    seconds: float
    score: float = 0.5
    parted: bool = False
    new_supervoxels: int = 0


def run(dataset: Dataset, case: voxel_cut_cases.Case, corner: np.ndarray) -> Outcome:
    """Split one supervoxel, and measure."""
    graph, volume = dataset.graph, dataset.fork.open()
    seeds = [points + corner for points in (case.source, case.sink)]
    sides = [Points.of(coordinates=points) for points in seeds]
    started = time.perf_counter()
    try:
        edit = edits.split(graph, SplitRequest("benchmark", *sides), volume=volume)
    except edits.EditRefused as refusal:
        return Outcome(case.name, f"{refusal.reason}: {refusal}", time.perf_counter() - started)
    seconds = time.perf_counter() - started
    box = Box.of(corner, corner + case.mask.shape)
    ids, inverse = np.unique(volume[box.slices].read().result()[case.mask], return_inverse=True)
    root_of_voxel = roots(graph, ids)[inverse]
    own = [roots(graph, supervoxels_at(graph, volume, points[:1]))[0] for points in seeds]
    truth = case.truth[case.mask]
    score = float(np.mean([(root_of_voxel[truth == side] == own[side - 1]).mean() for side in (1, 2)]))
    parted = bool(own[0] != own[1])
    return Outcome(case.name, "committed", seconds, score if parted else 0.5, parted, len(edit.supervoxels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=voxel_cut_cases.DATA, help="folder of fib_250.npz")
    parser.add_argument("--chunk", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--seeds", type=int, default=1, help="of each side")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--only", help="one case, by its name")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    with np.load(options.data / "fib_250.npz") as file:
        boxes = find_objects(file["supervoxels"])
    cases = [
        case
        for half in (False, True)
        for case in voxel_cut_cases.straddling_cases(options.data, options.seeds, options.cases, held_out=half)
        if options.only in (None, case.name)
    ]
    with tempfile.TemporaryDirectory() as name:
        dataset = build(Path(name), options.data / "fib_250.npz", list(options.chunk))
        outcomes = []
        for case in cases[: options.cases]:
            corner = np.array([side.start for side in boxes[int(case.name.removeprefix("fib-")) - 1]])
            outcomes.append(run(dataset, case, corner))
            if options.verbose:
                print(outcomes[-1], flush=True)
        report = verify(
            dataset.graph.table,
            dataset.fork,
        )
    committed = [outcome for outcome in outcomes if outcome.reason == "committed"]
    scores, seconds = [o.score for o in committed], [o.seconds for o in committed]
    print(f"cases {len(outcomes)}, committed {len(committed)}, parted {sum(o.parted for o in committed)}")
    for reason, count in Counter(o.reason for o in outcomes if o.reason != "committed").items():
        print(f"  {count} refused: {reason}")
    print(f"accuracy: mean {np.mean(scores):.3f}, median {np.median(scores):.3f}, p10 {np.percentile(scores, 10):.3f}")
    print(f"seconds: median {np.median(seconds):.2f}, p95 {np.percentile(seconds, 95):.2f}, max {max(seconds):.2f}")
    print(f"new supervoxels: {sum(o.new_supervoxels for o in committed)}")
    print(report.summary() if not report.ok else report.summary().splitlines()[0])


if __name__ == "__main__":
    main()
