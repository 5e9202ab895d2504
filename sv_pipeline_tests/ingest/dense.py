"""A graph of chunks with many supervoxels each, for measurements of memory in a process of its own.

``python -m sv_pipeline_tests.ingest.dense FOLDER LAYER FIRST STOP BUDGET`` builds some chunks of a layer and prints, in
JSON, the process's memory before and at its peak, in bytes, and the number of chunks of each group.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms import components
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph, open_chunked_graph
from sv_pipeline.graph.edge_files import ChunkEdges, write_components, write_edges
from sv_pipeline.ingest.atomic import atomic_groups
from sv_pipeline.ingest.parents import parent_groups
from sv_pipeline.storage.precomputed import create_volume
from sv_pipeline.table.sqlite import table
from sv_pipeline.table.sqlite.table import SqliteTable

CHUNK = 8


def write_row(folder: Path, n_chunks: int, per_chunk: int) -> tuple[ChunkedGraph, DatasetConfig]:
    """A row of chunks along x: supervoxel i of a chunk touches i + 1, and i of both neighbours.

    Objects are three supervoxels wide and as long as the row.
    """
    ws = folder / "ws"
    create_volume(
        str(ws),
        resolution=(4, 4, 40),
        voxel_offset=(0, 0, 0),
        size=(n_chunks * CHUNK, CHUNK, CHUNK),
        chunk_size=(CHUNK,) * 3,
    )
    config = parse_config(
        {
            "graph_id": "dense",
            "data_source": {"WATERSHED": str(ws)},
            "graph_config": {"CHUNK_SIZE": [CHUNK] * 3},
            "ingest": {"read_isolated_supervoxels": False},
        }
    )
    graph = create_chunked_graph(SqliteTable("dense", folder / "table"), config)
    numbers = np.arange(1, per_chunk + 1).astype(np.uint64)
    ids = [graph.layout.node_ids(graph.layout.chunk_ids(1, (x, 0, 0)), numbers) for x in range(n_chunks)]
    for x, here in enumerate(ids):
        others = [ids[i] for i in (x - 1, x + 1) if 0 <= i < n_chunks]
        between = _edges(np.tile(here, len(others)), np.concatenate(others))
        write_edges(graph.edges_url, (x, 0, 0), ChunkEdges(_edges(here[:-1], here[1:]), between))
        around = np.stack([here, *others])
        groups = [around[:, i : i + 3].ravel() for i in range(0, per_chunk, 3)]
        write_components(graph.components_url, (x, 0, 0), groups)
    return graph, config


def _edges(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> Edges:
    return Edges(a, b, np.full(len(a), 0.5, np.float32), np.ones(len(a), np.uint64))


def peak() -> int:
    """The largest memory of this process so far, in bytes; ``ru_maxrss`` would begin with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def main(folder: str, layer: int, first: int, stop: int, budget: int) -> None:
    # SQLite's cache of pages, which grows to 64 MiB, would hide the memory of the work.
    table.PRAGMAS = tuple(p for p in table.PRAGMAS if "cache_size" not in p)
    # SciPy takes the same memory in each process that loads it, but only graphs with many edges need it.
    many = np.zeros((components.FEW_EDGES + 1, 2), np.int64)
    components.components(1, many)
    graph = open_chunked_graph(SqliteTable("dense", Path(folder) / "table"))
    coordinates = graph.grid.coordinates(layer)[first:stop]
    before = peak()
    if layer == 2:
        groups = atomic_groups(graph, coordinates, read_isolated_supervoxels=False, budget=budget)
    else:
        groups = parent_groups(graph, layer, coordinates, budget=budget)
    sizes = [len(group) for group in groups]
    sys.stdout.write(json.dumps({"before": before, "peak": peak(), "groups": sizes}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
