"""The rebuild of a pyramid beside igneous: the same labels, mips and disk, several settings of igneous, run in turn.

``benchmarks/pyramid.py`` calls this; ``--igneous-python PATH`` names a Python with igneous-pipeline, if it is another.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from volumes import make_source

from sv_pipeline.grid import Box
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import open_volume, read_info

SERVER = """
import json, sys, time
import numpy as np
from cloudvolume import CloudVolume
from igneous.task_creation import create_downsampling_tasks
from taskqueue import LocalTaskQueue
print("ready", flush=True)
for line in sys.stdin:
    path, steps, processes, compress, threads, small = json.loads(line)
    seconds, tasks_made, mip = 0.0, [], 0
    while mip < len(steps):
        step = tuple(steps[mip])
        same = next((n for n in range(mip, len(steps)) if steps[n] != steps[mip]), len(steps)) - mip
        more = {}
        if small:  # tasks of the smallest size that makes one mip at a time
            same = 1
            more = {"memory_target": int(8 * 64**3 * np.prod(step) * 1.5)}
        tasks = list(create_downsampling_tasks(
            path, mip=mip, num_mips=same, factor=step, compress=compress, codec_threads=threads, **more))
        tasks_made.append(len(tasks))
        queue = LocalTaskQueue(parallel=processes, progress=False)
        queue.insert(tasks)
        started = time.perf_counter()
        queue.execute(progress=False)
        seconds += time.perf_counter() - started
        mip = len(CloudVolume(path, progress=False).available_mips) - 1  # it makes fewer where its blocks are small
    print(json.dumps([seconds, tasks_made]), flush=True)
"""
ROUNDS = 3


@dataclass(frozen=True)
class Setting:
    """One way to run igneous."""

    processes: int
    compress: str | bool
    small: bool
    """Whether tasks are small: one mip at a time, of 2 x 2 x 1 or 2 x 2 x 2 storage chunks. Default: of 3.5 GB."""
    threads: int = 1
    """Threads of a process that decode and encode (``codec_threads``)."""

    def __str__(self) -> str:
        tasks = "small tasks" if self.small else "default tasks"
        return f"{self.processes} x {self.threads} threads, {self.compress or 'none'}, {tasks}"


SETTINGS = [
    *(Setting(processes, compress, small=False) for processes in (1, 2) for compress in ("gzip", "zstd", False)),
    *(Setting(processes, False, small=False, threads=2) for processes in (1, 2)),
    Setting(2, False, small=True),
]


def compare(
    folder: Path,
    bounds: Box,
    steps: Sequence[Any],
    python: str,
    ours: Callable[[], float],
    store: Callable[[], OcdbtStore],
) -> None:
    """Print a table: what each reads and writes, its rate, and the ratio of ours to it in the same rounds.

    Parameters
    ----------
    ours
        Empties the coarser mips of the fork, makes them again, and returns the seconds that this took.
    store
        Opens the fork.
    """
    if subprocess.run([python, "-c", "import igneous"], check=False, capture_output=True).returncode:
        print(f"igneous: not installed for {python} (extra 'benchmark', or --igneous-python), comparison skipped")
        return
    source = folder / "igneous"
    make_source(source, bounds.shape, 1)
    info = (source / "info").read_text()
    base = read_info(source).scales[0].key
    seconds: dict[Setting | None, list[float]] = {}
    written: dict[Setting | None, str] = {None: _stored(store())}
    with subprocess.Popen([python, "-c", SERVER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        for _ in range(ROUNDS):
            for setting in SETTINGS:
                seconds.setdefault(None, []).append(ours())
                _reset(source, info, base)
                asked = [f"file://{source}", steps, setting.processes, setting.compress, setting.threads, setting.small]
                server.stdin.write(json.dumps(asked) + "\n")
                server.stdin.flush()
                said = next((line for line in server.stdout if line.startswith("[")), None)  # igneous prints, too
                assert said is not None, f"igneous has failed with {setting}"
                took, tasks = json.loads(said)
                seconds.setdefault(setting, []).append(took)
                files = [f for f in source.rglob("*-*_*") if f.parent.name != base]
                written[setting] = (
                    f"{len(files)} files, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB; {tasks} tasks"
                )
                if not setting.compress:  # TensorStore does not read names that end with .gz
                    for mip in range(1, len(steps) + 1):
                        theirs, mine = open_volume(source, mip).read().result(), store().array(mip).read().result()
                        assert np.array_equal(theirs, mine), "it makes other voxels"
        server.stdin.close()
    mvox = bounds.volume / 1e6
    print(f"beside igneous, medians of {ROUNDS} rounds ({ROUNDS * len(SETTINGS)} of ours), run in turn:")
    print("| | written | Mvox/s | ours / it |")
    print("| --- | --- | --- | --- |")
    mine = seconds[None]
    print(f"| ours, 1 process | {written[None]} | {mvox / statistics.median(mine):.0f} | 1 |")
    for number, setting in enumerate(SETTINGS):
        theirs = seconds[setting]
        beside = [mine[number + round_ * len(SETTINGS)] for round_ in range(ROUNDS)]
        ratio = statistics.median(t / m for t, m in zip(theirs, beside, strict=True))
        print(f"| igneous, {setting} | {written[setting]} | {mvox / statistics.median(theirs):.0f} | {ratio:.2f} |")
    best = min(SETTINGS, key=lambda setting: statistics.median(seconds[setting]))
    ratio = statistics.median(seconds[best]) / statistics.median(mine)
    print(f"the best of igneous is {best}; ours is {ratio:.2f} times as fast (medians of all rounds)")
    shutil.rmtree(source)


def _reset(source: Path, info: str, base: str) -> None:
    """Leave only mip 0."""
    for child in source.iterdir():
        if child.is_dir() and child.name != base:
            shutil.rmtree(child)
    (source / "info").write_text(info)


def _stored(store: OcdbtStore) -> str:
    scales = tuple(f"{key}/".encode() for key in _coarser(store))
    keys = [key for key in store.kv.list().result() if key.startswith(scales)]
    size = sum(len(store.kv.read(key).result().value) for key in keys)
    return f"{len(keys)} chunks, {size / 1e6:.1f} MB, and their digests, in one commit"


def _coarser(store: OcdbtStore) -> list[str]:
    scales: list[dict[str, Any]] = json.loads(store.kv.read("info").result().value)["scales"]
    return [scale["key"] for scale in scales[1:]]
