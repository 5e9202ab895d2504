"""Merges and splits of a made-up graph: seconds, requests, and round trips one after the other.

    python benchmarks/edits.py [--chunks 8 8 4] [--per-chunk 60] [--edits 40] [--delay-ms 20] [--bigtable]

Requests in sequence are measured, not counted: the same edits run on a table every request of which is slowed down by
a delay; what they take longer, in delays, is how many requests had to wait for each other. The tables of Bigtable are
in the emulator that BIGTABLE_EMULATOR_HOST names.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections import defaultdict
from pathlib import Path

import numpy as np

from sv_pipeline import edits
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.queries import roots
from sv_pipeline.table.bigtable import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite import SqliteTable
from sv_pipeline_tests.graph.worlds import World, ingest, random_world

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)


def slowed_down(table: Table, seconds: float) -> Table:
    """The table, every request of which takes longer."""
    for name in ("read_rows", "mutate", "increment", "check_and_mutate"):
        method = getattr(table, name)

        def slow(*args, _method=method, **kwargs):  # type: ignore[no-untyped-def]
            time.sleep(seconds)
            return _method(*args, **kwargs)

        setattr(table, name, slow)
    return table


def run(graph: ChunkedGraph, world: World, n_edits: int) -> dict[str, list[tuple[float, int]]]:
    """Seconds and requests of each edit that was made, by kind; the same edits every time."""
    rng = np.random.default_rng(0)
    coordinates = world.layout.coordinates(world.supervoxels)
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for _ in range(n_edits):
        source = int(rng.choice(world.supervoxels))
        own = coordinates[world.supervoxels == source][0]
        near = world.supervoxels[np.abs(coordinates - own).max(axis=1) <= 1]
        sink = int(rng.choice(near[near != source]))
        one, other = roots(graph, [source, sink])
        sides = edits.Points.of([source]), edits.Points.of([sink])
        started, requests = time.perf_counter(), graph.table.round_trips
        try:
            if one == other:
                request = edits.SplitRequest("benchmark", *sides, offset=(8, 8, 8), disallow_isolating_cut=False)
                kind = edits.split(graph, request).kind
            else:
                kind = edits.merge(graph, edits.MergeRequest("benchmark", *sides, offset=(8, 8, 8))).kind
        except edits.EditRefused:
            kind = "refused"
        found[kind].append((time.perf_counter() - started, graph.table.round_trips - requests))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs=3, default=(8, 8, 4))
    parser.add_argument("--per-chunk", type=float, default=60)
    parser.add_argument("--objects", type=float, default=0.02)
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--bigtable", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = random_world(
            tuple(arguments.chunks), 1, per_chunk=arguments.per_chunk, objects=arguments.objects, cross=0.01
        )
        original, _ = ingest(world, SqliteTable("original", folder), folder)
        rows = [
            RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
            for key, row in original.table.scan([EVERYTHING])
        ]
        print(f"{len(world.supervoxels):,} supervoxels, {len(world.edges):,} edges, {original.n_layers} layers")
        results = []
        for delay in (0.0, arguments.delay_ms / 1000):
            table_name = f"t{uuid.uuid4().hex[:12]}"
            table: Table = (
                BigtableTable(table_name, "project", "instance")
                if arguments.bigtable
                else SqliteTable(table_name, folder)
            )
            table.create()
            table.mutate(rows)
            graph = open_chunked_graph(slowed_down(table, delay))
            results.append(run(graph, world, arguments.edits))
            table.drop()
        plain, slow = results
        for kind in sorted(plain):
            seconds = [s for s, _ in plain[kind]]
            requests = [r for _, r in plain[kind]]
            waits = [
                (b - a) / (arguments.delay_ms / 1000) for (a, _), (b, _) in zip(plain[kind], slow[kind], strict=False)
            ]
            print(
                f"{kind:<8} n={len(seconds):<3} median {1000 * statistics.median(seconds):6.1f} ms, "
                f"max {1000 * max(seconds):6.1f} ms, {statistics.median(requests):.0f} requests, "
                f"{statistics.median(waits):.1f} of them one after the other"
            )


if __name__ == "__main__":
    main()
