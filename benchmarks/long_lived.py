"""One process that edits for a long time: milliseconds and requests of an edit, and memory, in windows of edits.

    python benchmarks/long_lived.py [--edits 1000] [--window 100] [--supervoxels 1600] [--one-object] [--trace]

A volume of Voronoi cells is ingested as in `edits.py`. Objects are merged and split again, supervoxels are split, and
the splits undone, so the objects at the end are as large as at the start: whatever grows belongs to the process, or to
the history in table and fork. `in use` is what the C library has handed out, without what it keeps; `open files`
includes connections. With ``--one-object``, the same two objects are merged and split again all the time, so the nodes
near their root have a parent for each edit. The last line compares the last window with the second one (the first
fills caches). ``--trace`` names the lines of Python that hold more memory at the end than after two windows; it makes
everything slower.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import quiet  # noqa: F401 - imported for its effect
from edits import build, choose

from sv_pipeline import edits
from sv_pipeline.edits import MergeRequest, Points, SplitRequest
from sv_pipeline.graph.chunked_graph import ChunkedGraph

MEGABYTE = 1 << 20
OFFSET = (8, 8, 8)


class Mallinfo(ctypes.Structure):
    """What glibc says about its heap."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@dataclass
class Memory:
    """The memory of this process, in MB, and what it holds open."""

    resident: float
    in_use: float
    threads: int
    files: int
    objects: int

    @classmethod
    def now(cls) -> Memory:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        try:
            mallinfo2 = ctypes.CDLL(None).mallinfo2
            mallinfo2.restype = Mallinfo
            info = mallinfo2()
            in_use = (info.uordblks + info.hblkhd) / MEGABYTE
        except AttributeError:
            in_use = float("nan")
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        resident = pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE
        return cls(resident, in_use, threading.active_count(), files, len(gc.get_objects()))


def cycles(graph: ChunkedGraph, cells: np.ndarray, one_object: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Edits without end: their kind, and a function that makes one."""
    volume, rng = graph.fork.open(), np.random.default_rng(0)
    pair = None
    while True:
        if pair is None or not one_object:
            pair = choose(graph, volume, cells, "merge", rng)
        assert pair is not None
        sides = [Points.of(coordinates=pair[k : k + 1]) for k in range(2)]
        merge = MergeRequest("benchmark", *sides, offset=OFFSET)
        split = SplitRequest("benchmark", *sides, offset=OFFSET, disallow_isolating_cut=False)
        yield "merge", lambda merge=merge: edits.merge(graph, merge, volume=volume)  # type: ignore[misc]
        yield "split", lambda split=split: edits.split(graph, split, volume=volume)  # type: ignore[misc]
        if one_object:
            continue
        pair = choose(graph, volume, cells, "supervoxel split", rng)
        assert pair is not None
        sides = [Points.of(coordinates=pair[k : k + 1]) for k in range(2)]
        split = SplitRequest("benchmark", *sides, offset=OFFSET, disallow_isolating_cut=False)
        made: list[int] = []
        yield "sv split", lambda split=split, made=made: made.append(edits.split(graph, split, volume=volume).id)  # type: ignore[misc]
        if made:
            yield "undo", lambda made=made: edits.undo(graph, made[0], "benchmark")  # type: ignore[misc]


def run(
    edits_to_make: Iterator[tuple[str, Callable[[], Any]]],
    graph: ChunkedGraph,
    n_edits: int,
    per_window: int,
    trace: bool,
) -> None:
    """Print a line for each window."""
    medians: list[dict[str, float]] = []
    memories: list[Memory] = []
    for window in range(n_edits // per_window):
        times: dict[str, list[float]] = {}
        requests: dict[str, list[float]] = {}
        refused = 0
        for _ in range(per_window):
            kind, edit = next(edits_to_make)
            started, before = time.perf_counter(), graph.table.round_trips
            try:
                edit()
            except edits.EditRefused:
                refused += 1
                continue
            times.setdefault(kind, []).append(1000 * (time.perf_counter() - started))
            requests.setdefault(kind, []).append(graph.table.round_trips - before)
        medians.append({kind: float(np.median(values)) for kind, values in times.items()})
        memories.append(now := Memory.now())
        text = ", ".join(
            f"{kind} {medians[-1][kind]:.0f} ms ({np.median(requests[kind]):.0f} requests)" for kind in sorted(times)
        )
        print(
            f"{window * per_window:>5}-{(window + 1) * per_window:<5} {text}; {refused} refused; resident "
            f"{now.resident:.0f} MB, in use {now.in_use:.0f}, {now.threads} threads, {now.files} files, "
            f"{now.objects:,} objects",
            flush=True,
        )
        if trace and window == 1:
            tracemalloc.start(12)
            first = tracemalloc.take_snapshot()
            kinds = Counter(type(o).__name__ for o in gc.get_objects())
    if trace:
        for line in tracemalloc.take_snapshot().compare_to(first, "lineno")[:25]:
            print(line)
        more = Counter(type(o).__name__ for o in gc.get_objects())
        more.subtract(kinds)
        print("more objects:", more.most_common(12))
    ratios = ", ".join(f"{kind} {medians[-1][kind] / medians[1][kind]:.2f}" for kind in sorted(medians[-1]))
    print(
        f"last window to second: {ratios} x; resident {memories[-1].resident - memories[1].resident:+.0f} MB, "
        f"in use {memories[-1].in_use - memories[1].in_use:+.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--supervoxels", type=int, default=1600)
    parser.add_argument("--one-object", action="store_true", help="merge and split the same two objects all the time")
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset = build(Path(name), options.supervoxels)
        with np.load(Path(name) / "cells.npz") as file:
            cells = file["segmentation"]
        every = cycles(dataset.graph, cells, options.one_object)
        run(every, dataset.graph, options.edits, options.window, options.trace)
        table = sum(file.stat().st_size for file in dataset.graph.table.file.parent.iterdir())
        print(f"table {table / MEGABYTE:.0f} MB, generation {dataset.fork.generation()} of the fork")


if __name__ == "__main__":
    main()
