"""Splits, previews and merges in the middle of objects of 20,000 to 320,000 supervoxels: seconds, and rows read.

    python benchmarks/large_root.py [--folder FOLDER] [--supervoxels 20000 80000 320000] [--shape tube bush]

The graphs are in SQLite and have no voxels: a tube of 4 x 4 chunks, and a random tree of chunks in a cube. They are
built once and stay in the folder. The box around the points has the same size in all of them. An object is previewed,
split and merged again several times; the medians are printed, with the rows and the cells that were read. The last
lines compare each size with the smallest one.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quiet  # noqa: F401 - imported for its effect

from sv_pipeline import edits
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.large_objects import LargeObject, brush, bush, tube
from sv_pipeline_tests.graph.worlds import CHUNK_SIZE, ingest

CROSS = 4
PER_CHUNK = 27
MARGIN = 2
SHAPES: dict[str, Callable[[int], LargeObject]] = {
    "tube": lambda n: tube(CROSS, round(n / PER_CHUNK / CROSS**2)),
    "bush": lambda n: bush(round((n / PER_CHUNK) ** (1 / 3))),
    "net": lambda n: bush(round((n / PER_CHUNK) ** (1 / 3)), loops=0.02),
    "brush": lambda n: brush(round((n / PER_CHUNK) ** (1 / 3))),
}


class CountingTable(SqliteTable):
    """A table that counts the rows that are read, and those that are written."""

    rows_read = rows_written = 0

    def _read_rows(self, keys, wanted):  # type: ignore[no-untyped-def]
        self.rows_read += len(keys)
        return super()._read_rows(keys, wanted)

    def mutate(self, mutations):  # type: ignore[no-untyped-def]
        rows = list(mutations)
        self.rows_written += len(rows)
        super().mutate(rows)


def build(folder: Path, shape: str, supervoxels: int) -> tuple[ChunkedGraph, dict[str, int]]:
    """The graph, from the folder if it is there."""
    place = folder / f"{shape}_{supervoxels}"
    done = place / "points.json"
    table = CountingTable("graph", place / "tables")
    if not done.exists():
        started = time.perf_counter()
        made = SHAPES[shape](supervoxels)
        ingest(made.world, table, place)
        points = {"source": made.source, "sink": made.sink, "supervoxels": len(made.world.supervoxels)}
        done.write_text(json.dumps(points))
        print(f"built {shape} of {points['supervoxels']:,} supervoxels in {time.perf_counter() - started:.0f} s")
    return open_chunked_graph(table), json.loads(done.read_text())


def measure(
    graph: ChunkedGraph, points: dict[str, int], repeat: int, offset: tuple[int, int, int]
) -> dict[str, dict[str, float]]:
    """Medians of each kind."""
    table, found = graph.table, defaultdict(list)
    assert isinstance(table, CountingTable)
    sides = [Points.of([points["source"]]), Points.of([points["sink"]])]
    split = SplitRequest("benchmark", *sides, offset=offset, disallow_isolating_cut=False)
    merge = MergeRequest("benchmark", *sides, offset=offset)
    steps: dict[str, Callable[[], object]] = {
        "preview": lambda: edits.preview_split(graph, split),
        "split": lambda: edits.split(graph, split),
        "merge": lambda: edits.merge(graph, merge),
    }
    for _ in range(repeat):
        for name, step in steps.items():
            before = table.rows_read, table.rows_written, table.round_trips
            started = time.perf_counter()
            step()
            seconds = time.perf_counter() - started
            after = table.rows_read, table.rows_written, table.round_trips
            found[name].append((seconds, *np.subtract(after, before).tolist()))
    names = ("seconds", "rows read", "rows written", "requests")
    return {
        name: dict(zip(names, np.median(np.array(values), axis=0).tolist(), strict=True))
        for name, values in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sv_pipeline_large_root")
    parser.add_argument("--supervoxels", type=int, nargs="+", default=(20_000, 80_000, 320_000))
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--margin", type=int, default=MARGIN, help="chunks around the points that belong to the box")
    parser.add_argument("--profile", action="store_true", help="print where the time of each object goes")
    options = parser.parse_args()
    x, y, z = (options.margin * size for size in CHUNK_SIZE)
    for shape in options.shape:
        first: dict[str, dict[str, float]] = {}
        for supervoxels in options.supervoxels:
            graph, points = build(options.folder, shape, supervoxels)
            profile = cProfile.Profile()
            if options.profile:
                profile.enable()
            results = measure(graph, points, options.repeat, (x, y, z))
            if options.profile:
                profile.disable()
                pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
            first = first or results
            for name, result in results.items():
                ratio = result["seconds"] / first[name]["seconds"]
                print(
                    f"{shape} {points['supervoxels']:>7,} supervoxels, {graph.n_layers} layers: {name:<8} "
                    f"{result['seconds']:6.3f} s ({ratio:4.2f} x the smallest), {result['rows read']:,.0f} rows read, "
                    f"{result['rows written']:,.0f} written, {result['requests']:.0f} requests",
                    flush=True,
                )


if __name__ == "__main__":
    main()
