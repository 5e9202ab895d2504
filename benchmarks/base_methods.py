"""A base by reference against copies, side by side in one run: time, bytes, reads; encoder and merge by size.

``python benchmarks/base_methods.py [--chunks 100000] [--copied 1728] [--keys 10000 100000 1000000] [--repeat 3]``.

The volume of ``--chunks`` storage chunks of 64^3 consists of real chunk files under many names (hard links). Copying
all of it would take a quarter of an hour, so the method ``parts`` is measured on ``--copied`` such chunks, and scaled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

sys.path.insert(0, str(Path(__file__).resolve().parent))

from volumes import RESOLUTION, make_source

from sv_pipeline.config import OcdbtConfig, PopulateMethod
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.segmentation.base import markers, parts
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import task_box
from sv_pipeline.segmentation.base.populate import PopulatePlan, finish_populate, populate_plan, populate_task
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.byte_strings import ByteStrings
from sv_pipeline.storage.chunk_names import ChunkNames
from sv_pipeline.storage.context import CONTEXT_OPTIONS, reset_context
from sv_pipeline.storage.ocdbt_tree import References, encode_tree
from sv_pipeline.storage.precomputed import create_volume, read_info

CHUNK = 64
GRAPH_CHUNK = (256, 256, 512)
LINKS = 20_000
"""Names of one file; file systems allow some ten thousand."""


def linked_volume(folder: Path, chunk_files: list[Path], n_chunks: int) -> int:
    """A volume of about so many chunks, each a name of one of some files; returns the number."""
    edge = round(n_chunks ** (1 / 3))
    create_volume(
        folder, resolution=RESOLUTION, voxel_offset=(0, 0, 0), size=(CHUNK * edge,) * 3, chunk_size=(CHUNK,) * 3
    )
    scale = read_info(folder).scales[0]
    place = folder / scale.key
    place.mkdir(parents=True)
    cells = np.stack(np.unravel_index(np.arange(edge**3), (edge,) * 3), axis=-1)
    for number, name in enumerate(ChunkNames(scale).names(cells).tolist()):
        if number % LINKS == 0:
            original = folder / f"file_{number}"
            shutil.copyfile(chunk_files[number // LINKS % len(chunk_files)], original)
        os.link(original, place / name.decode())
    return edge**3


def plan_of(folder: Path, method: PopulateMethod, layer: int = 4) -> PopulatePlan:
    config = OcdbtConfig(populate_layer=layer, populate_method=method, mips=1)
    grid = ChunkGrid(read_info(folder).bounds, GRAPH_CHUNK)
    Base(folder).create(config, grid)
    return populate_plan(Base(folder), grid, config)


def populate(folder: Path, method: PopulateMethod) -> float:
    plan = plan_of(folder, method)
    started = time.perf_counter()
    for task in plan.missing:
        populate_task(plan, task)
    finish_populate(plan)
    return time.perf_counter() - started


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def chunks_of(folder: Path) -> int:
    scale = read_info(folder).scales[0]
    return bytes_of(folder / scale.key)


# -- reads -------------------------------------------------------------------------------------------------------------


def reading(spec: dict[str, Any], repeat: int) -> tuple[float, float]:
    """Seconds to the first voxel of a fresh context, and voxels per second of reading everything; medians."""
    first, rates = [], []
    for _ in range(repeat):
        context = ts.Context(CONTEXT_OPTIONS)
        started = time.perf_counter()
        volume = ts.open(spec, context=context, open=True).result()[..., 0]
        corner = volume.domain.inclusive_min
        volume[tuple(corner)].read().result()
        first.append(time.perf_counter() - started)
        context = ts.Context(CONTEXT_OPTIONS)
        volume = ts.open(spec, context=context, open=True).result()[..., 0]
        started = time.perf_counter()
        for x in range(corner[0], volume.domain.exclusive_max[0], 256):
            volume[x : min(x + 256, volume.domain.exclusive_max[0])].read().result()
        rates.append(np.prod(volume.shape) / (time.perf_counter() - started))
    return statistics.median(first), statistics.median(rates)


# -- encoder and merge -------------------------------------------------------------------------------------------------


def encoded(n_keys: int) -> dict[str, float]:
    """Keys per second of the encoder."""
    edge = round(n_keys ** (1 / 3))
    measures: Any = {"voxel_offset": (0, 0, 0), "size": (CHUNK * edge,) * 3, "chunk_size": (CHUNK,) * 3}
    with folder_of() as folder:
        create_volume(folder, resolution=RESOLUTION, **measures)
        chunks = ChunkNames(read_info(folder).scales[0])
    names = chunks.names(chunks.cells(np.arange(len(chunks))))
    lengths = np.random.default_rng(0).integers(20_000, 40_000, len(names))
    references = References(
        ByteStrings.of(names), ByteStrings.of(np.strings.add(b"watershed/", names)), np.zeros_like(lengths), lengths
    )
    started, cpu = time.perf_counter(), time.process_time()
    tree = encode_tree(references, "parts/x/tree", max_node_bytes=262_144)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    n = len(names)
    rates = {"keys_per_second": n / seconds, "keys_per_cpu_second": n / cpu}
    return {"keys": n, **rates, "bytes_per_key": len(tree.data) / n}


def merged(n_keys: int) -> dict[str, float]:
    """Keys per second of the merge of parts whose references are made up, and the memory of the process."""
    edge = round(n_keys ** (1 / 3))
    with folder_of() as folder:
        create_volume(
            folder, resolution=RESOLUTION, voxel_offset=(0, 0, 0), size=(CHUNK * edge,) * 3, chunk_size=(CHUNK,) * 3
        )
        plan = plan_of(folder, PopulateMethod.REFERENCE)
        scale = plan.base.volume.scales[0]
        chunks, rng = ChunkNames(scale), np.random.default_rng(0)
        for task in plan.missing:
            box = task_box(plan.base.volume, 0, plan.grid, plan.layer, task)
            axes = [np.arange(a // CHUNK, -(-b // CHUNK)) for a, b in zip(box.start, box.stop, strict=True)]
            cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            cells = cells[np.argsort(chunks.ranks(cells))]
            keys = np.strings.add(scale.key.encode() + b"/", chunks.names(cells))
            files = np.strings.add(ocdbt.SOURCE_PREFIX.encode(), keys)
            lengths = rng.integers(20_000, 40_000, len(keys))
            references = References(ByteStrings.of(keys), ByteStrings.of(files), np.zeros_like(lengths), lengths)
            parts.begin_referring(plan.base, task, "made-up", references)
            markers.write_marker(str(folder), task, {"attempt": "made-up"})
        before = peak_memory()
        started = time.perf_counter()
        cpu = time.process_time()
        finish_populate(plan)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = peak_memory()
        stored = bytes_of(folder / "ocdbt/base/d")
    n = len(chunks)
    return {
        "keys": n,
        "tasks": plan.n_tasks,
        "seconds": seconds,
        "keys_per_second": n / seconds,
        "keys_per_cpu_second": n / cpu,
        "mb_before": before,
        "peak_mb": peak,
        "bytes_per_key": stored / n,
    }


def peak_memory() -> float:
    """MB; of this process alone, where ``getrusage`` counts the one that has started it as well."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The peak of a process's memory is that of all that it has done; so each measurement has one of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def folder_of() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--copied", type=int, default=1728)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with folder_of() as folder:
        make_source(folder / "tiles", (512, 512, 512), 1)
        files = sorted((folder / "tiles" / read_info(folder / "tiles").scales[0].key).iterdir())
        n_copied = linked_volume(folder / "copied", files, options.copied)
        n_referred = linked_volume(folder / "referred", files, options.chunks)
        copying = populate(folder / "copied", PopulateMethod.PARTS) / n_copied
        referring = populate(folder / "referred", PopulateMethod.REFERENCE) / n_referred
        stored = bytes_of(folder / "referred/ocdbt")
        results["populate"] = {
            "copied_chunks_per_second": 1 / copying,
            "referred_chunks": n_referred,
            "referred_chunks_per_second": 1 / referring,
            "times_faster": copying / referring,
            "bytes_stored_per_chunk": stored / n_referred,
            "bytes_stored_over_bytes_of_the_volume": stored / chunks_of(folder / "referred"),
        }
        print(json.dumps(results["populate"], indent=1), flush=True)
        reset_context()
        populate(folder / "tiles", PopulateMethod.REFERENCE)
        source = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder / 'tiles'}/"}
        base = ocdbt.array_spec(Base(folder / "tiles").info().spec(), 0)
        # Alternately, so that neither has the warmer disk or the quieter machine.
        pairs = [(reading(source, 1), reading(base, 1)) for _ in range(max(5, options.repeat))]
        results["reads"] = {
            "first_read_ms_source": 1e3 * statistics.median(s[0] for s, _ in pairs),
            "first_read_ms_base": 1e3 * statistics.median(b[0] for _, b in pairs),
            "mvoxel_per_second_source": statistics.median(s[1] for s, _ in pairs) / 1e6,
            "throughput_base_over_source": statistics.median(b[1] / s[1] for s, b in pairs),
        }
        print(json.dumps(results["reads"], indent=1), flush=True)
    for n_keys in options.keys:
        print("encoder", json.dumps(in_a_process(encoded, n_keys)), flush=True)
        print("merge  ", json.dumps(in_a_process(merged, n_keys)), flush=True)


if __name__ == "__main__":
    main()
