"""Populate against a bare TensorStore copy with the same specs, side by side in one run; and the memory of a task.

``python benchmarks/populate.py [--size 512] [--repeat 3]``. Ratios above 1: faster than the bare copy of one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import tensorstore as ts

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import grid_of, make_source

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.coordinator import running_coordinator
from sv_pipeline.storage.precomputed import open_volume, read_info

COPYING = [method for method in PopulateMethod if not method.refers]
"""Methods that copy all voxels; the others have nothing to measure here."""


def config_of(method: str, mips: int) -> OcdbtConfig:
    return OcdbtConfig(populate_layer=3, populate_method=PopulateMethod(method), mips=mips)


def bare_copy(folder: Path, mips: int) -> float:
    """TensorStore to TensorStore, whole volume per mip, nothing else."""
    info = read_info(folder)
    Base(folder).create(config_of("direct", mips), grid_of(info, (128, 128, 128)))
    base = Base(folder).info()
    store = ocdbt.OcdbtStore(base.spec())
    targets = [store.array(mip) for mip in range(mips)]
    sources = [open_volume(folder, mip) for mip in range(mips)]
    started = time.perf_counter()
    for write in [target.write(source) for target, source in zip(targets, sources, strict=True)]:
        write.result()
    return time.perf_counter() - started


def warm(_: int) -> None:
    time.sleep(0.3)


def populate(folder: Path, method: str, mips: int, workers: int) -> float:
    config = config_of(method, mips)
    grid = grid_of(read_info(folder), (128, 128, 128))
    Base(folder).create(config, grid)
    plan = populate_plan(Base(folder), grid, config)
    context = running_coordinator() if method == "coordinator" else nullcontext(None)
    with context as address:
        if workers == 1:
            started = time.perf_counter()
            for task in plan.missing:
                populate_task(plan, task, coordinator_address=address)
        else:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                list(pool.map(warm, range(2 * workers)))  # interpreters and imports are not what is measured
                started = time.perf_counter()
                futures = [pool.submit(populate_task, plan, t, coordinator_address=address) for t in plan.missing]
                for future in futures:
                    future.result()
        finish_populate(plan)
        return time.perf_counter() - started


def in_a_fresh_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--step", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def step(kind: str, folder: Path, mips: int, workers: int) -> None:
    Base(folder).wipe(force=True)
    seconds = bare_copy(folder, mips) if kind == "bare" else populate(folder, kind, mips, workers)
    print(json.dumps({"seconds": seconds, "cpu": cpu_seconds()}))


def cpu_seconds() -> float:
    """Of this process and its ended children; unlike the clock's, they hardly depend on what else the machine does."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def throughput(folder: Path, size: int, repeat: int) -> None:
    info = make_source(folder, (size, size, size), 3)
    megabytes = sum(np.prod(scale.size) for scale in info.scales) * 8 / 1e6
    cases = [(method.value, workers) for method in COPYING for workers in (1, 2)]
    ratios: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    speeds: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    efforts: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    bare: list[float] = []
    for _ in range(repeat):
        for case in cases:
            reference = in_a_fresh_process("bare", str(folder), "3", "1")
            measured = in_a_fresh_process(case[0], str(folder), "3", str(case[1]))
            bare.append(reference["seconds"])
            ratios[case].append(reference["seconds"] / measured["seconds"])
            speeds[case].append(megabytes / measured["seconds"])
            efforts[case].append(measured["cpu"] / reference["cpu"])
    print(f"{size}^3 uint64, 3 mips of the source, {megabytes:.0f} MB, tasks of 256^3; medians of {repeat}")
    print(f"  bare copy, one process: {megabytes / statistics.median(bare):6.0f} MB/s")
    for (method, workers), values in ratios.items():
        speed = statistics.median(speeds[method, workers])
        print(
            f"  {method:11} {workers} worker(s):  {speed:6.0f} MB/s  {statistics.median(values):5.2f} x bare "
            f"(from {min(values):.2f} to {max(values):.2f}), CPU time "
            f"{statistics.median(efforts[method, workers]):.2f} x bare"
        )


def memory(folder: Path, size: int) -> None:
    region = size**3 * 8 / 1e6
    for source_mips, what in ((3, "mips copied"), (1, "mips made here")):
        shutil.rmtree(folder)
        make_source(folder, (size, size, size), source_mips)
        limit = 2 * region + 500
        print(f"peak memory of one task of {size}^3 ({region:.0f} MB), {what}; limit {limit:.0f} MB")
        for method in COPYING:
            peak = in_a_fresh_process("one-" + method.value, str(folder), "3", "1")["peak_mb"]
            print(f"  {method.value:11} {peak:6.0f} MB  {peak / limit:5.2f} of the limit")


def one_task(kind: str, folder: Path, mips: int) -> None:
    """The whole volume as one task."""
    Base(folder).wipe(force=True)
    info = read_info(folder)
    grid = grid_of(info, info.scales[0].size)
    config = config_of(kind.removeprefix("one-"), mips)
    Base(folder).create(config, grid)
    plan = populate_plan(Base(folder), grid, config)
    context = running_coordinator() if kind == "one-coordinator" else nullcontext(None)
    with context as address:
        started = time.perf_counter()
        for task in plan.missing:
            populate_task(plan, task, coordinator_address=address)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        kind, folder, mips, workers = options.step
        if kind.startswith("one-"):
            one_task(kind, Path(folder), int(mips))
        else:
            step(kind, Path(folder), int(mips), int(workers))
        return
    scratch = Path(tempfile.mkdtemp(prefix="populate-"))
    try:
        print(f"tensorstore {getattr(ts, '__version__', '')} python {sys.version.split()[0]}")
        throughput(scratch / "ws", options.size, options.repeat)
        memory(scratch / "ws", options.size)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
