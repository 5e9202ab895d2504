"""What it costs to keep coarser mips up to date, as ratios within one run.

``python benchmarks/pyramid.py [--size 512 512 256] [--edits 12] [--igneous-python PATH]``

- throughput of a full pyramid (storage to storage) over the bare kernel in memory, and over settings of igneous,
  on the same labels (``pyramid_igneous.py``);
- processor time of the parts of a rebuild (``pyramid_parts.py``);
- bytes of storage chunks that the downsample of an edit writes, over those of the chunks whose content changed;
- peak memory of a process, above what it had when it had opened the fork, against the budget and what is stated to
  come on top of it;
- seconds from an edit's commit to an empty ledger, by part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import tinybrain
from pyramid_igneous import compare
from pyramid_parts import print_parts
from volumes import grid_of, make_source

from sv_pipeline.algorithms.box_arrays import as_array
from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.downsample import OVERHEAD_BYTES, DownsampleReport, downsample, rebuild
from sv_pipeline.pyramid.mip_maker import open_pyramid
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import pending_key, pending_value, store_at
from sv_pipeline.storage.ocdbt import OWN_KEYS, fork_folder
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.populating import populate_missing

GRAPH = "g"
MIPS = 4


def make_fork(folder: Path, size: tuple[int, int, int]) -> Box:
    info = make_source(folder, size, 1)
    config = OcdbtConfig(populate_layer=3, populate_method=PopulateMethod.DIRECT, mips=MIPS)
    grid = grid_of(info, (256, 256, 256))
    Base(folder).create(config, grid)
    populate_missing(populate_plan(Base(folder), grid, config))
    finish_populate(populate_plan(Base(folder), grid, config))
    Fork(folder, GRAPH).create()
    SqliteTable("t", folder / "tables").create()
    return info.bounds


def table_of(folder: Path) -> SqliteTable:
    return SqliteTable("t", folder / "tables")


def empty_coarser_mips(folder: Path) -> None:
    store = Fork(folder, GRAPH).store()
    with store.transaction() as transaction:
        kv = store.kv.with_transaction(transaction)
        for scale in Base(folder).info().volume.scales[1:]:
            for key in store.kv.list().result():
                if key.startswith(f"{scale.key}/".encode()):
                    kv.write(key, None).result()


def throughput(folder: Path, bounds: Box) -> None:
    labels = Fork(folder, GRAPH).store().array(0).read(order="F").result()
    pyramid = open_pyramid(Fork(folder, GRAPH))
    steps = [level.step for level in pyramid.geometry.levels[1:]]
    kernel = []
    for _ in range(3):
        started, mip = time.perf_counter(), labels
        for step in steps:
            mip = tinybrain.downsample_segmentation(mip, step, num_mips=1)[0]
        kernel.append(time.perf_counter() - started)
    del labels, mip
    read, full, report = [], [], DownsampleReport(GRAPH)
    for _ in range(3):
        started = time.perf_counter()
        Fork(folder, GRAPH).store().array(0).read(order="F").result()
        read.append(time.perf_counter() - started)
        empty_coarser_mips(folder)
        started = time.perf_counter()
        report = rebuild(Fork(folder, GRAPH), table=table_of(folder))
        full.append(time.perf_counter() - started)
    mvox = bounds.volume / 1e6
    print(f"volume {bounds.shape}, steps {steps}, {mvox:.0f} Mvox")
    print(f"bare tinybrain in memory      {mvox / min(kernel):7.0f} Mvox/s")
    print(f"reading the base mip          {mvox / min(read):7.0f} Mvox/s")
    print(f"full pyramid, stored          {mvox / min(full):7.0f} Mvox/s  ({min(kernel) / min(full):.2f} of the kernel,"
          f" {(min(kernel) + min(read)) / min(full):.2f} of read + kernel)  {parts(report)}")  # fmt: skip
    started = time.perf_counter()
    report = rebuild(Fork(folder, GRAPH), table=table_of(folder))
    print(f"the same, nothing different   {mvox / (time.perf_counter() - started):7.0f} Mvox/s  {parts(report)}")


def igneous(folder: Path, bounds: Box, python: str) -> None:
    steps = [level.step for level in open_pyramid(Fork(folder, GRAPH)).geometry.levels[1:]]

    def ours() -> float:
        empty_coarser_mips(folder)
        return rebuild(Fork(folder, GRAPH), table=table_of(folder)).seconds

    ours()
    compare(folder, bounds, steps, python, ours, lambda: Fork(folder, GRAPH).store())


def parts(report: DownsampleReport) -> str:
    work = report.work
    return (
        f"[{report.blocks} blocks, {work.commits} commits, {work.chunks_written}/{work.chunks_made} chunks written; "
        f"voxels {work.seconds_voxels:.3f} s, commit {work.seconds_commit:.3f} s of {report.seconds:.3f} s]"
    )


def edit(folder: Path, operation_id: int, bounds: Box, rng: np.random.Generator) -> None:
    """A third of an object in a box gets a new id, as a supervoxel split does; whole chunks that changed are listed."""
    store = Fork(folder, GRAPH).store()
    size = np.array([48, 48, 24])
    start = np.array([int(rng.integers(a, b - n)) for a, b, n in zip(bounds.start, bounds.stop, size, strict=True)])
    box = Box.of(start, start + size)
    labels = store.array(0)[box.slices].read().result()
    labels[: size[0] // 3][labels[: size[0] // 3] > 0] += np.uint64(operation_id << 50)
    with store.transaction() as transaction:
        store.array(0).with_transaction(transaction)[box.slices].write(labels).result()
        store.kv.with_transaction(transaction).write(pending_key(operation_id), pending_value([box])).result()


def edits(folder: Path, bounds: Box, n: int) -> None:
    rng = np.random.default_rng(0)
    seconds: list[float] = []
    written = minimal = stored = 0
    last: list[DownsampleReport] = []
    for operation_id in range(1, n + 1):
        edit(folder, operation_id, bounds, rng)
        before, size = Fork(folder, GRAPH).generation(), folder_size(folder)
        started = time.perf_counter()
        last.append(downsample(Fork(folder, GRAPH), table=table_of(folder)))
        seconds.append(time.perf_counter() - started)
        stored += folder_size(folder) - size
        store = Fork(folder, GRAPH).store()
        then = store_at(store, before).kv
        keys = [key for key in store.kv.list().result() if not key.startswith(OWN_KEYS.encode())]
        old, new = ([kv.read(key) for key in keys] for kv in (then, store.kv))
        for a, b in zip(old, new, strict=True):
            left, right = a.result(), b.result()
            written += len(right.value) if left.stamp.generation != right.stamp.generation else 0
            minimal += len(right.value) if left.value != right.value else 0
    print(f"edit: bytes of chunks written / of chunks that changed  {written / max(1, minimal):.3f}"
          f"  ({written / n / 1e3:.0f} kB an edit; with tree and manifest {stored / n / 1e3:.0f} kB)")  # fmt: skip
    work = [report.work for report in last]
    print(
        f"edit: commit to empty ledger  median {1e3 * statistics.median(seconds):.0f} ms: voxels "
        f"{1e3 * statistics.median(w.seconds_voxels for w in work):.0f}, commit "
        f"{1e3 * statistics.median(w.seconds_commit for w in work):.0f}, open, list, lock and unlock "
        f"{1e3 * statistics.median(r.seconds - r.work.seconds_voxels - r.work.seconds_commit for r in last):.0f}"
    )


def folder_size(folder: Path) -> int:
    path = Path(fork_folder(str(folder), GRAPH).removeprefix("file://"))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


MEASURE = """
import json, sys, threading, time
import psutil
from sv_pipeline.pyramid.downsample import rebuild
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table.sqlite.table import SqliteTable
folder, budget = sys.argv[1], int(sys.argv[2])
fork = Fork(folder, "g")
fork.open()[1000:1064, 2000:2064, 300:364].read().result()
process = psutil.Process()
base = peak = process.memory_info().rss
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, process.memory_info().rss)
watcher = threading.Thread(target=watch); watcher.start()
started = time.perf_counter()
report = rebuild(fork, table=SqliteTable("t", folder + "/tables"), memory_budget=budget)
seconds = time.perf_counter() - started
done.set(); watcher.join()
print(json.dumps({"peak": peak - base, "commits": report.work.commits, "blocks": report.blocks, "seconds": seconds}))
"""


def memory(folder: Path, bounds: Box) -> None:
    for megabytes in (32, 128, 512, 2048):
        empty_coarser_mips(folder)
        command = [sys.executable, "-c", MEASURE, str(folder), str(megabytes << 20)]
        answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        pyramid = open_pyramid(Fork(folder, GRAPH))
        whole = pyramid.geometry.bytes_whole(pyramid.relative([bounds])) >> 20
        over = answer["peak"] - (megabytes << 20)
        print(f"budget {megabytes:5} MiB (all in memory would be {whole}): peak {answer['peak'] / 2**20:6.0f} MiB, "
              f"{over / 2**20:+.0f} to the budget ({'within' if over <= OVERHEAD_BYTES else 'NOT WITHIN'} what is "
              f"said); {answer['commits']} commits, {bounds.volume / 1e6 / answer['seconds']:.0f} Mvox/s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 256))
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--igneous-python", default=sys.executable, help="Python with igneous-pipeline installed.")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="pyramid-"))
    try:
        bounds = make_fork(scratch, tuple(options.size))
        geometry = open_pyramid(Fork(scratch, GRAPH)).geometry
        assert len(geometry.affected(as_array([Box.of((0, 0, 0), bounds.shape)]))) == MIPS - 1
        throughput(scratch, bounds)
        print_parts(open_pyramid(Fork(scratch, GRAPH), large=True))
        igneous(scratch, bounds, options.igneous_python)
        edits(scratch, bounds, options.edits)
        memory(scratch, bounds)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
