"""How long it takes to build a graph from edge files: time and requests per layer, on SQLite or Bigtable (emulator).

    python benchmarks/graph_ingest.py --backend bigtable --shape 8 8 4 --supervoxels 5400 --edges 39500

With ``--backend bigtable`` BIGTABLE_EMULATOR_HOST must be set. Prints one line of JSON per layer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import create_chunked_graph
from sv_pipeline.table.bigtable import BigtableTable
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite import SqliteTable
from sv_pipeline_tests.graph.worlds import build, random_world, write_world


def main() -> None:
    """Build one graph and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["sqlite", "bigtable"], default="sqlite")
    parser.add_argument("--shape", type=int, nargs=3, default=(8, 8, 4), help="chunks per axis")
    parser.add_argument("--supervoxels", type=int, default=5_400)
    parser.add_argument("--edges", type=int, default=39_500)
    parser.add_argument("--batch", type=int, default=64, help="chunks per batch")
    options = parser.parse_args()
    chunks = int(np.prod(options.shape))
    per_supervoxel = options.edges / options.supervoxels
    world = random_world(
        tuple(options.shape),
        seed=1,
        per_chunk=options.supervoxels / chunks,
        edges_per_supervoxel=per_supervoxel,
        objects=0.05,
        cross=0.05,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = write_world(world, Path(folder))
        name = f"b{uuid.uuid4().hex[:8]}"
        table: Table
        if options.backend == "sqlite":
            table = SqliteTable(name, Path(folder) / "tables")
        else:
            table = BigtableTable(name, "project", "instance")
        graph = create_chunked_graph(table, config)
        total = 0.0
        for layer in range(2, graph.n_layers + 1):
            coordinates = graph.grid.coordinates(layer)
            before, started, nodes = table.round_trips, time.perf_counter(), 0
            for first in range(0, len(coordinates), options.batch):
                reports = build(graph, config, layer, coordinates[first : first + options.batch])
                nodes += sum(report.nodes for report in reports)
            seconds = time.perf_counter() - started
            total += seconds
            row = {"layer": layer, "chunks": len(coordinates), "nodes": nodes, "seconds": round(seconds, 3)}
            sys.stdout.write(json.dumps({**row, "requests": table.round_trips - before}) + "\n")
        started = time.perf_counter()
        roots = queries.roots(graph, world.supervoxels)
        summary = {
            "supervoxels": len(world.supervoxels),
            "edges": len(world.edges),
            "active": len(world.active),
            "roots": len(np.unique(roots)),
            "seconds": round(total, 3),
            "seconds_roots": round(time.perf_counter() - started, 3),
        }
        sys.stdout.write(json.dumps(summary) + "\n")
        table.drop()
        table.close()


if __name__ == "__main__":
    main()
