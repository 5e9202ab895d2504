"""How long it takes to build a graph from edge files, beside a bare bulk write of the very rows it leaves.

    python benchmarks/graph_ingest.py --shape 8 8 4 --supervoxels 5400 --edges 39500

On SQLite and, where the emulator is installed, on Bigtable; both in one run. Prints one line of JSON per layer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sv_pipeline.config import DatasetConfig
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import create_chunked_graph
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator
from sv_pipeline_tests.graph.worlds import World, build, random_world, write_world


def main() -> None:
    """Build one graph on each backend and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(8, 8, 4), help="chunks per axis")
    parser.add_argument("--supervoxels", type=int, default=5_400)
    parser.add_argument("--edges", type=int, default=39_500)
    parser.add_argument("--batch", type=int, default=64, help="chunks per batch")
    options = parser.parse_args()
    world = random_world(
        tuple(options.shape),
        seed=1,
        per_chunk=options.supervoxels / int(np.prod(options.shape)),
        edges_per_supervoxel=options.edges / options.supervoxels,
        objects=0.05,
        cross=0.05,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = write_world(world, Path(folder))
        ingest("sqlite", lambda name: SqliteTable(name, Path(folder) / "tables"), world, config, options.batch)
        if (binary := find_emulator()) is None:
            say({"backend": "bigtable", "skipped": "the emulator is not installed"})
            return
        with running_emulator(binary):
            ingest("bigtable", lambda name: BigtableTable(name, "project", "instance"), world, config, options.batch)


def ingest(backend: str, make: Callable[[str], Table], world: World, config: DatasetConfig, per_batch: int) -> None:
    """Build a graph, layer by layer; then write the same rows again, in bulk, into an empty table."""
    table, copy = (make(f"b{uuid.uuid4().hex[:8]}") for _ in range(2))
    graph = create_chunked_graph(table, config)
    total = 0.0
    for layer in range(2, graph.n_layers + 1):
        coordinates = graph.grid.coordinates(layer)
        before, started, nodes = table.round_trips, time.perf_counter(), 0
        for first in range(0, len(coordinates), per_batch):
            reports = build(graph, config, layer, coordinates[first : first + per_batch])
            nodes += sum(report.nodes for report in reports)
        seconds = time.perf_counter() - started
        total += seconds
        row = {"backend": backend, "layer": layer, "chunks": len(coordinates), "nodes": nodes}
        say({**row, "seconds": round(seconds, 3), "requests": table.round_trips - before})
    started = time.perf_counter()
    roots = queries.roots(graph, world.supervoxels)
    seconds_roots = time.perf_counter() - started
    bare = bare_write(table, copy)
    say(
        {
            "backend": backend,
            "supervoxels": len(world.supervoxels),
            "edges": len(world.edges),
            "roots": len(np.unique(roots)),
            "seconds": round(total, 3),
            "seconds_of_bare_write": round(bare, 3),
            "ingest_over_bare_write": round(total / bare, 2),
            "seconds_roots": round(seconds_roots, 3),
        }
    )
    for used in (table, copy):
        used.drop()
        used.close()


def bare_write(table: Table, copy: Table) -> float:
    """Seconds that one bulk write of all cells of a table into an empty one takes."""
    rows = [
        RowMutation(
            key, [SetCell(column, cell.value, cell.timestamp) for column, cells in row.items() for cell in cells]
        )
        for key, row in table.scan([RowKeyRange(b"\x00", b"\xff")])
    ]
    copy.create()
    started = time.perf_counter()
    copy.mutate(rows)
    return time.perf_counter() - started


def say(row: dict[str, object]) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
