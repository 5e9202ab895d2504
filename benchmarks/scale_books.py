"""Bookkeeping of a layer by its number of chunks: plan, status, end, a look of ``--watch``; and merges by their keys.

``python benchmarks/scale.py books [--chunks 10000 100000 1000000] [--keys 10000 100000 1000000] [--backends sqlite]``

Done-markers are inserted directly. Each measurement is made by a process of its own, whose peak memory is that of this
measurement alone. "half" has a random half of the chunks of layer 2 done, so that every block of chunks is partly done.
"first plan" counts all markers of a graph of an earlier version, once. Last, each curve is fitted by a + b n, and the
value for 10^7 is named; ``--chunks 10000000`` measures it on SQLite (3 GB of disk), but for the first plan: above two
million chunks the counts are stored directly too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline.config import DatasetConfig, IngestMode, PopulateMethod, parse_config
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ingest import progress, stages
from sv_pipeline.ingest.count_blocks import Block, n_blocks
from sv_pipeline.ingest.tallies import Markers, Tally
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import task_box
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.precomputed import create_volume, read_info
from sv_pipeline.table import keys
from sv_pipeline.table.columns import INGEST_DONE
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.servers.bigtable import find_emulator, running_emulator
from sv_pipeline.testing.tables import PLACE

CHUNK = 8
ROWS = 50_000
TARGET = 10_000_000
COUNTED = 2_000_000
"""Largest number of chunks whose counts are made by a scan here."""
STARTED, FINISHED = 1_790_000_000_000, 1_790_000_123_456
VOXELS = 64


# -- markers ----------------------------------------------------------------------------------------------------------


def dataset_of(folder: Path, backend: str, n_chunks: int) -> Dataset:
    """A registered dataset of about so many chunks, without voxels; its table may not exist yet."""
    edge = round(n_chunks ** (1 / 3))
    watershed = folder / "ws"
    if not watershed.exists():
        size = (CHUNK * edge,) * 3
        create_volume(watershed, resolution=(8, 8, 8), voxel_offset=(0, 0, 0), size=size, chunk_size=(CHUNK,) * 3)
    place = {"PROJECT": PLACE[0], "INSTANCE": PLACE[1]} if backend == "bigtable" else {"PATH": str(folder / "tables")}
    config: DatasetConfig = parse_config(
        {
            "graph_id": f"books{n_chunks}",
            "data_source": {"WATERSHED": str(watershed)},
            "graph_config": {"CHUNK_SIZE": [CHUNK] * 3},
            "backend_client": {"TYPE": backend, "CONFIG": place},
            "ingest": {"mode": "graph"},
        }
    )
    return Dataset(config, str(folder))


def insert(graph: ChunkedGraph, layer: int, chosen: np.ndarray) -> None:
    """Write done-markers as tasks do, but no nodes, and no counts."""
    numbers = {"nodes": 9, "supervoxels": 60, "edges": 300, "seconds": 0.1234, "worker": "node-17:12345"}
    marker = INGEST_DONE.encode({**numbers, "started": STARTED, "finished": FINISHED})
    shape = graph.grid.shape(layer)
    for first in range(0, len(chosen), ROWS):
        coordinates = np.stack(np.unravel_index(chosen[first : first + ROWS], shape), axis=-1)
        row_keys = keys.ingest_keys(layer, graph.layout.chunk_ids(layer, coordinates))
        if isinstance(graph.table, SqliteTable):  # without a disk write per two thousand rows
            with sqlite3.connect(graph.table.path) as connection:
                connection.execute("PRAGMA synchronous=OFF")
                rows = ((key, b"1:done", FINISHED, marker) for key in row_keys)
                connection.executemany("INSERT INTO cells (row, column, timestamp, value) VALUES (?, ?, ?, ?)", rows)
            connection.close()
        else:
            graph.table.mutate(RowMutation(key, [INGEST_DONE.set(INGEST_DONE.decode(marker))]) for key in row_keys)


def keep(graph: ChunkedGraph, layer: int, chosen: np.ndarray) -> None:
    """Store the counts of chunks with the markers of `insert`, without a scan of them."""
    for number in range(n_blocks(graph, layer)):
        block = Block(graph, layer, number)
        at = np.flatnonzero(chosen[block.first : block.first + block.size])
        one = {"nodes": 9, "supervoxels": 60, "edges": 300, "seconds": 1234, "started": STARTED, "finished": FINISHED}
        tally = Tally.empty(block.size)
        tally.add(np.arange(block.size), Markers(at, {name: np.full(len(at), n) for name, n in one.items()}, ()))
        block.replace(None, tally, ())


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def measured(folder: Path, backend: str, n_chunks: int, what: str) -> dict[str, float]:
    """Seconds of one thing, and the peak memory of this process."""
    dataset = dataset_of(folder, backend, n_chunks)
    _ = dataset.graph
    before = peak_memory()
    plan = {"plan": 2, "first plan": 2, "plan above": 3}.get(what)
    if plan is not None:
        seconds, found = timed(lambda: len(stages.plan_layer(dataset, plan, IngestMode.GRAPH)))
    elif what == "finish":
        seconds, found = timed(lambda: stages.finish_layer(dataset, 2, IngestMode.GRAPH).numbers["nodes"])
    elif what == "status":
        seconds, found = timed(lambda: graph_status(dataset).stages[0].done)
    else:
        looks = [timed(lambda: graph_status(dataset, exact=False).stages[0].done) for _ in range(7)]
        seconds, found = statistics.median(s for s, _ in looks), looks[-1][1]
    return {"seconds": seconds, "mb": peak_memory(), "mb_before": before, "found": found}


def books(backend: str, n_chunks: int) -> dict[str, dict[str, float]]:
    """All measurements of a layer of so many chunks."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = dataset_of(folder, backend, n_chunks)
        graph = create_chunked_graph(dataset.table, dataset.config)
        graph.table.mutate([RowMutation(keys.COUNTS_SIGN, [DeleteCells()])])
        some = np.random.default_rng(0).random(graph.grid.count(2)) < 0.5
        insert(graph, 2, np.flatnonzero(some))
        dataset.table.close()

        def measure(what: str, state: str = "") -> None:
            row = in_a_process(measured, folder, backend, n_chunks, what)
            results[f"{what}{state}"] = row
            shown = f"{row['seconds']:9.3f} s {row['mb'] - row['mb_before']:7.0f} MB above {row['mb_before']:.0f}"
            print(f"{backend:9} {graph.grid.count(2):>9} {what + state:18} {shown}  ({row['found']})", flush=True)

        for layer in range(3, graph.n_layers + 1):
            progress.missing_mask(graph, layer)
        counted = n_chunks <= COUNTED
        if counted:
            measure("first plan", ", half")
        else:
            keep(graph, 2, some)
        for what in ("plan", "status", "watch"):
            measure(what, ", half")
        insert(graph, 2, np.flatnonzero(~some))
        forget(graph)
        if counted:
            dataset.table.close()
            measure("first plan")
        else:
            keep(graph, 2, np.ones(graph.grid.count(2), np.bool_))
            dataset.table.close()
        for what in ("plan", "plan above", "status", "watch", "finish"):
            measure(what)
        dataset.table.drop()
    return results


def forget(graph: ChunkedGraph) -> None:
    """Remove the counts of layer 2."""
    rows = [key for key, _ in graph.table.scan([keys.counts_range(2)], newest_only=True)]
    graph.table.mutate(RowMutation(key, [DeleteCells()]) for key in rows)


# -- merges -----------------------------------------------------------------------------------------------------------


def merged(n_keys: int, value_bytes: int) -> dict[str, float]:
    """Merge made-up copied parts with about so many keys; seconds, memory, and what the base stores for it."""
    edge = round(n_keys ** (1 / 3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = (VOXELS * edge,) * 3
        create_volume(folder, resolution=(8, 8, 8), voxel_offset=(0, 0, 0), size=size, chunk_size=(VOXELS,) * 3)
        grid = ChunkGrid(read_info(folder).bounds, (256, 256, 512))
        config = parse_config(
            {
                "graph_id": "merge",
                "data_source": {"WATERSHED": str(folder)},
                "ocdbt_config": {"populate_method": PopulateMethod.PARTS, "mips": 1},
            }
        ).ocdbt_config
        base = Base(folder)
        base.create(config, grid=grid)
        plan = populate_plan(base, grid, config)
        scale = plan.base.volume.scales[0]
        chunks, rng = ChunkNames(scale), np.random.default_rng(0)
        for task in plan.missing:
            box = task_box(plan.base.volume, 0, plan.grid, plan.layer, task)
            axes = [np.arange(a // VOXELS, -(-b // VOXELS)) for a, b in zip(box.start, box.stop, strict=True)]
            cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            spec = plan.base.part_spec(markers.task_name(task), "made", creating=True)
            store = ocdbt.OcdbtStore(spec, context=uncached_context())
            with store.transaction() as transaction:
                target = store.kv.with_transaction(transaction)
                names = chunks.names(cells).tolist()
                for future in [target.write(f"{scale.key}/{name.decode()}", rng.bytes(value_bytes)) for name in names]:
                    future.result()
            markers.write_marker(str(folder), task, {"attempt": "made"})
        return {"keys": len(chunks), "tasks": plan.n_tasks, **in_a_process(finished, folder, grid, config)}


def finished(folder: Path, grid: ChunkGrid, config: Any) -> dict[str, float]:
    plan = populate_plan(Base(folder), grid, config)
    before = peak_memory()
    seconds, report = timed(lambda: finish_populate(plan))
    stored = sum(file.stat().st_size for file in (folder / "ocdbt/base/d").iterdir())
    files = sum(1 for _ in (folder / "ocdbt/base/d").iterdir())
    return {
        "seconds": seconds,
        "mb": peak_memory(),
        "mb_before": before,
        "base_mb": stored / 2**20,
        "files": files,
        "commits": report.generation - 1,
    }


# -- helpers ----------------------------------------------------------------------------------------------------------


def peak_memory() -> float:
    """MB of this process alone, where ``getrusage`` counts the one that has started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The peak of a process's memory is that of all that it has done; so each measurement has one of its own."""
    process = multiprocessing.get_context("spawn")
    with process.Pool(1) as pool:
        return pool.apply(function, arguments)


def fits(curves: dict[int, dict[str, dict[str, float]]]) -> Iterator[str]:
    """Lines a + b n through the two largest sizes, at ten million chunks."""
    sizes = sorted(curves)
    if len(sizes) < 2 or sizes[-1] >= TARGET:
        return
    small, large = sizes[-2:]
    for what, row in curves[large].items():
        before = curves[small][what]
        slope = {name: (row[name] - before[name]) / (large - small) for name in ("seconds", "mb")}
        at = {name: row[name] + slope[name] * (TARGET - large) for name in slope}
        shown = f"{at['seconds']:9.3f} s {at['mb']:7.0f} MB in all"
        yield f"{what:18} {shown} (fit through {small} and {large}, not measured)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--keys", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--value-bytes", type=int, nargs="*", default=[2000, 5000])
    parser.add_argument("--backends", nargs="*", choices=["sqlite", "bigtable"], default=["sqlite", "bigtable"])
    options = parser.parse_args()
    for backend in options.backends:
        emulator = running_emulator(str(find_emulator())) if backend == "bigtable" else nullcontext()
        with emulator:
            curves = {n: books(backend, n) for n in sorted(options.chunks)}
        for line in fits(curves):
            print(f"{backend:9} {TARGET:>9} {line}", flush=True)
    for value_bytes, n_keys in itertools.product(options.value_bytes, options.keys):
        print(f"merge, values of {value_bytes} bytes", json.dumps(merged(n_keys, value_bytes)), flush=True)


if __name__ == "__main__":
    main()
