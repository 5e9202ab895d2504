"""One supervoxel split from request to commit, in a large box: time, memory, and bytes written.

    python benchmarks/supervoxel_split.py [--voxels 1000000] [--chunk X Y Z] [--storage-chunk X Y Z] [--repeat N]

The network of tubes of supervoxel_split_parts.py, as one label in a volume of 512 x 512 x 64, is ingested (SQLite,
files on disk) and split between two of its ends by `edits.split`, in a process of its own. Peak memory is that of the
process, with imports. `written / changed` is what the fork's folder has grown by, over the bytes of the storage chunks
whose voxels changed. `parts` is what the voxel cut alone takes of the time, measured on the same mask in the same run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import quiet  # noqa: F401 - imported for its effect
from supervoxel_split_parts import OFFSET, RESOLUTION, SHAPE, chunk_bytes, peak_megabytes, stored, tubes
from volumes import tile

from sv_pipeline import edits
from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.config import parse_config
from sv_pipeline.edits import Points, SplitRequest
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.stages import register
from sv_pipeline.registry import open_dataset
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.verify.dataset import verify_dataset

GRAPH = "g"


def build(folder: Path, options: argparse.Namespace) -> list[list[int]]:
    """Ingest the volume; the two points."""
    mask, points = tubes(options.voxels)
    source = np.tile(tile()[:, :, 64:128], (2, 2, 1)).astype(np.uint32) + 1
    source[mask] = 1
    np.savez(folder / "tubes.npz", segmentation=source, resolution=np.array(RESOLUTION))
    content = {
        "graph_id": GRAPH,
        "data_source": {"WATERSHED": str(folder / "ws")},
        "source": {"segmentation": f"{folder / 'tubes.npz'}#segmentation", "voxel_offset": OFFSET},
        "graph_config": {"CHUNK_SIZE": list(options.chunk)},
        "ocdbt_config": {"storage_chunk_size": list(options.storage_chunk)},
    }
    ingest(register(parse_config(content), str(folder / "home")))
    return (points + OFFSET).tolist()


def split(folder: Path, points: list[list[int]]) -> dict[str, Any]:
    """The edit, measured."""
    dataset = open_dataset(GRAPH, str(folder / "home"))
    graph, volume = dataset.graph, Fork(dataset.watershed_url, GRAPH).open()
    imports, before = peak_megabytes(), stored(str(folder / "ws"))
    generation = Fork(dataset.watershed_url, GRAPH).generation()
    sides = [Points.of(coordinates=[point]) for point in points]
    started = time.perf_counter()
    edit = edits.split(graph, SplitRequest("benchmark", *sides), volume=volume)
    seconds, peak = time.perf_counter() - started, peak_megabytes()
    record = Fork(dataset.watershed_url, GRAPH).record(edit.id)
    assert record is not None
    written = stored(str(folder / "ws")) - before
    report = verify_dataset(dataset)
    mask = np.load(folder / "tubes.npz")["segmentation"] == 1
    started = time.perf_counter()
    cut_mask(mask, *[np.array([point]) - OFFSET for point in points], RESOLUTION)
    return {
        "seconds": round(seconds, 2),
        "seconds_of_voxel_cut_alone": round(time.perf_counter() - started, 2),
        "peak_mb": peak,
        "peak_mb_of_imports": imports,
        "mask_voxels": int(mask.sum()),
        "box_voxels": int(np.prod(SHAPE)),
        "new_supervoxels": len(edit.supervoxels),
        "roots": len(edit.roots),
        "generations": Fork(dataset.watershed_url, GRAPH).generation() - generation,
        "storage_chunks": len(record.boxes),
        "written_over_changed": round(written / chunk_bytes(str(folder / "ws"), record.boxes, GRAPH), 3),
        "verify": report.ok,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, nargs=3, default=(256, 256, 512))
    parser.add_argument("--storage-chunk", type=int, nargs=3, default=(64, 64, 64))
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as name:
            points = build(Path(name), options)
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                print(json.dumps(pool.submit(split, Path(name), points).result()), flush=True)


if __name__ == "__main__":
    main()
