"""Merges, splits and supervoxel splits of a graph with voxels: seconds, requests, and round trips in sequence.

    python benchmarks/edits.py [--supervoxels 1600 5400] [--edits 60] [--delay-ms 10] [--bigtable] [--folder DIR]
    python benchmarks/edits.py --trace merge [--supervoxels 5400] [--bigtable] [--fresh]

A volume of Voronoi cells, agglomerated, is ingested; the same edits run on a fresh fork and a copy of the table each
time. Requests in sequence are measured, not counted: the edits run once more on a table every request of which is
slowed down by a delay; what they take longer, in delays, is how many requests had to wait for each other. `floor` is
what the requests alone take: as many reads of one row, one after the other, as the edit has requests in sequence. The
tables of Bigtable are in the emulator that BIGTABLE_EMULATOR_HOST names. ``--folder`` keeps the graph for the next run.
The process has looked up the roots of the points before, as a viewer does; with ``--fresh`` it has forgotten all
parents that it has read, as a new process.

``--trace`` prints the requests of one edit of a kind instead: when each began and ended, counted in delays, its thread,
rows and columns, and the function that sent it. Requests with equal numbers of delays have not waited for each other.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

import quiet  # noqa: F401 - imported for its effect

from sv_pipeline import edits
from sv_pipeline.config import parse_config
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph, open_chunked_graph
from sv_pipeline.graph.parent_hints import forget_hints
from sv_pipeline.graph.queries import roots, supervoxels_at
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.stages import register
from sv_pipeline.registry import Dataset
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.interface import ColumnKey, RowKeyRange, RowMutation, SetCell, Table
from sv_pipeline.table.keys import META
from sv_pipeline.table.sqlite.table import SqliteTable

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
CHUNK = 32
KINDS = ("merge", "split", "supervoxel split")


@dataclass
class Measured:
    """One edit."""

    kind: str
    seconds: float
    requests: int


@dataclass
class Sent:
    """One request of a trace."""

    method: str
    began: float
    ended: float
    thread: str
    what: str
    sender: str


REQUESTS = (
    "read_rows",
    "mutate",
    "increment",
    "check_and_mutate",
    "increment_many",
    "check_and_mutate_many",
    "at_once",
)


def slowed_down(table: Table, seconds: float, trace: list[Sent] | None = None) -> Table:
    """The table, every request of which takes longer and is noted; several at once take as long as one."""
    inside = threading.local()
    for name in filter(partial(hasattr, table), REQUESTS):
        method = getattr(table, name)

        def slow(*args, _method=method, _name=name, **kwargs):  # type: ignore[no-untyped-def]
            if getattr(inside, "a_request", False):
                return _method(*args, **kwargs)
            began, args = time.perf_counter(), (_listed(args[0]), *args[1:])
            time.sleep(seconds)
            inside.a_request = True
            try:
                return _method(*args, **kwargs)
            finally:
                inside.a_request = False
                if trace is not None:
                    thread = threading.current_thread().name
                    what = _shown((*args, *kwargs.values()))
                    trace.append(Sent(_name, began, time.perf_counter(), thread, what, _sender()))

        setattr(table, name, slow)
    return table


def _listed(value: Any) -> Any:
    return value if isinstance(value, (bytes, Sequence)) else list(value)


def _shown(values: Any, limit: int = 3) -> str:
    """Keys and columns in arguments of a request, in short."""
    keys, columns, todo = [], set(), list(values)
    while todo:
        value = todo.pop(0)
        if isinstance(value, bytes):
            keys.append(value.decode(errors="replace"))
        elif isinstance(value, ColumnKey):
            columns.add(value.qualifier.decode(errors="replace"))
        elif isinstance(value, (list, tuple)) or hasattr(value, "__dataclass_fields__"):
            todo += (
                value
                if isinstance(value, (list, tuple))
                else [getattr(value, name) for name in value.__dataclass_fields__ if name != "value"]
            )
    more = f" +{len(keys) - limit}" if len(keys) > limit else ""
    return f"{' '.join(keys[:limit])}{more} ({' '.join(sorted(columns))})"


def _sender(depth: int = 3) -> str:
    """The functions of the package that sent a request, the innermost first."""
    names, frame = [], sys._getframe(2)
    while frame is not None and len(names) < depth:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("sv_pipeline.") and not module.startswith("sv_pipeline.table."):
            names.append(f"{module.rsplit('.', 1)[1]}.{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(names)


def build(folder: Path, n_supervoxels: int) -> Dataset:
    """A graph with about so many supervoxels."""
    chunks = (4, 4, 2) if n_supervoxels < 3000 else (8, 8, 2)
    shape = tuple(CHUNK * n for n in chunks)
    rng = np.random.default_rng(0)
    # Chunk faces cut cells into about two and a half pieces.
    n_cells = int(n_supervoxels / 2.6)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    labels = cKDTree(rng.uniform(0, shape, (n_cells, 3))).query(voxels, workers=2)[1].astype(np.uint32) + 1
    np.savez(folder / "cells.npz", segmentation=labels, resolution=np.array([16.0, 16.0, 40.0]))
    owners = np.arange(n_cells + 1) // 8
    rows = "\n".join(f"{label},{owner + 1}" for label, owner in enumerate(owners.tolist()) if label)
    (folder / "objects.csv").write_text("label,object\n" + rows)
    content = {
        "graph_id": "edits",
        "data_source": {"WATERSHED": str(folder / "ws")},
        "source": {
            "segmentation": f"{folder / 'cells.npz'}#segmentation",
            "agglomeration": str(folder / "objects.csv"),
        },
        "graph_config": {"CHUNK_SIZE": [CHUNK] * 3},
    }
    dataset = register(parse_config(content), str(folder / "home"))
    if not (folder / "ingested").exists():
        ingest(dataset)
        (folder / "ingested").touch()
    return dataset


def choose(
    graph: ChunkedGraph, volume: Any, cells: np.ndarray, wanted: str, rng: np.random.Generator
) -> np.ndarray | None:
    """Two voxels that call for a kind of edit; None if 4,000 random pairs have none."""
    bounds = graph.grid.bounds
    one = rng.integers(bounds.start, bounds.stop, (4000, 3))
    other = np.clip(one + rng.integers(-CHUNK, CHUNK + 1, one.shape), bounds.start, np.subtract(bounds.stop, 1))
    ids = [supervoxels_at(graph, volume, points) for points in (one, other)]
    objects = [roots(graph, some) for some in ids]
    cell = [cells[tuple(points.T)] for points in (one, other)]
    fits = {
        "merge": objects[0] != objects[1],
        "split": (objects[0] == objects[1]) & (cell[0] != cell[1]),
        "supervoxel split": (ids[0] == ids[1]) & (np.abs(one - other).max(axis=1) > CHUNK // 4),
    }[wanted]
    first = np.flatnonzero(fits)[:1]
    return np.concatenate([one[first], other[first]]) if len(first) else None


def run(
    graph: ChunkedGraph, cells: np.ndarray, n_edits: int, kinds: Sequence[str] = KINDS, *, fresh: bool = False
) -> list[Measured]:
    """Requests for merges, splits and supervoxel splits in turn; the same every time, if edits do the same."""
    volume = graph.fork.open()
    rng = np.random.default_rng(0)
    found = []
    for i in range(n_edits):
        wanted = kinds[i % len(kinds)]
        pair = choose(graph, volume, cells, wanted, rng)
        if pair is None:
            continue
        sides = [Points.of(coordinates=pair[k : k + 1]) for k in range(2)]
        if fresh:
            forget_hints()
        started, requests = time.perf_counter(), graph.table.round_trips
        try:
            if wanted == "merge":
                edit = edits.merge(graph, MergeRequest("benchmark", *sides, offset=(8, 8, 8)), volume=volume)
            else:
                request = SplitRequest("benchmark", *sides, offset=(8, 8, 8), disallow_isolating_cut=False)
                edit = edits.split(graph, request, volume=volume)
            kind = "supervoxel split" if len(edit.supervoxels) else edit.kind
        except edits.EditRefused:
            kind = "refused"
        found.append(Measured(kind, time.perf_counter() - started, graph.table.round_trips - requests))
    return found


def one_request(table: Table) -> float:
    """Median seconds of a read of one row."""
    times = []
    for _ in range(50):
        started = time.perf_counter()
        table.read_rows([META])
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure(dataset: Dataset, folder: Path, arguments: argparse.Namespace, backend: str) -> None:
    rows = [
        RowMutation(key, [SetCell(column, cell.value, cell.timestamp) for column in row for cell in row[column]])
        for key, row in dataset.graph.table.scan([EVERYTHING])
    ]
    with np.load(folder / "cells.npz") as file:
        cells = file["segmentation"]
    results, delay = [], arguments.delay_ms / 1000
    for seconds in (delay,) if arguments.trace else (0.0, delay):
        dataset.fork.create(recreate=True, force=True)
        name = f"t{uuid.uuid4().hex[:12]}"
        table: Table = SqliteTable(name, folder) if backend == "sqlite" else BigtableTable(name, "project", "instance")
        table.create()
        table.mutate(rows)
        floor = one_request(table)
        if arguments.trace:
            trace: list[Sent] = []
            graph = open_chunked_graph(slowed_down(table, seconds, trace))
            for _ in range(2):  # the first edit of a process loads modules
                started = len(trace), time.perf_counter()
                edit = run(graph, cells, 1, [arguments.trace], fresh=arguments.fresh)[0]
            print_trace(edit, trace[started[0] :], delay)
        else:
            graph = open_chunked_graph(slowed_down(table, seconds))
            results.append((run(graph, cells, arguments.edits, fresh=arguments.fresh), floor))
        table.drop()
    if arguments.trace:
        return
    (plain, floor), (slow, _) = results
    by_kind: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for a, b in zip(plain, slow, strict=True):
        if a.kind == b.kind:
            waits = (b.seconds - a.seconds) / (arguments.delay_ms / 1000)
            by_kind[a.kind].append((1000 * a.seconds, a.requests, waits))
    for kind in sorted(by_kind):
        milliseconds, requests, waits = np.array(by_kind[kind]).T
        in_sequence = float(np.median(waits))
        print(
            f"{backend:<8} {kind:<16} n={len(waits):<3} median {np.median(milliseconds):6.1f} ms, "
            f"p95 {np.percentile(milliseconds, 95):6.1f} ms, {np.median(requests):.0f} requests, "
            f"{in_sequence:.1f} in sequence; {np.median(milliseconds) / (1000 * floor * in_sequence):.1f} x floor",
            flush=True,
        )


def print_trace(edit: Measured, trace: list[Sent], delay: float) -> None:
    """Print the requests of an edit, which came last, in the order in which they were sent."""
    ended = max(one.ended for one in trace)
    began = ended - edit.seconds
    mine = sorted((one for one in trace if one.began >= began - delay / 2), key=lambda one: one.began)
    print(f"{edit.kind}: {len(mine)} requests in {edit.seconds / delay:.1f} delays")
    threads: dict[str, int] = {}
    for one in mine:
        thread = threads.setdefault(one.thread, len(threads))
        when = f"{(one.began - began) / delay:5.2f} - {(one.ended - began) / delay:5.2f}"
        print(f"{when}  t{thread:<2} {one.method:<21} {one.what:<90} {one.sender}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supervoxels", type=int, nargs="+", default=(1600, 5400))
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--delay-ms", type=float, default=10)
    parser.add_argument("--bigtable", action="store_true")
    parser.add_argument("--trace", choices=KINDS)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    for n_supervoxels in arguments.supervoxels:
        kept = None if arguments.folder is None else arguments.folder / str(n_supervoxels)
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() if kept is None else nullcontext(str(kept)) as name:
            dataset = build(Path(name), n_supervoxels)
            graph = dataset.graph
            n = len(np.unique(dataset.fork.open().read().result()))
            print(f"{n:,} supervoxels, {graph.grid.count(2)} chunks, {graph.n_layers} layers")
            for backend in ("sqlite", "bigtable"):
                if backend == "sqlite" or (arguments.bigtable and os.environ.get("BIGTABLE_EMULATOR_HOST")):
                    measure(dataset, Path(name), arguments, backend)


if __name__ == "__main__":
    main()
