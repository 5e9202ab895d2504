"""Steps per second on each engine, side by side on this machine: the same layer, one chunk per step.

``python benchmarks/scale_steps.py [--steps 32] [--workers 2]`` needs ``redis-server`` and the extra ``celery``. Each
engine builds layer 2 of a graph of its own. The local engines store their events in SQLite, and so does Celery here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline.config import IngestMode, parse_config
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.ingest import run, stages
from sv_pipeline.processes import interrupts_held
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.testing.servers.bigtable import die_with_parent
from sv_pipeline.testing.servers.redis import RedisServer

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 16


def graph(folder: Path, name: str, steps: int) -> Dataset:
    """A graph of ``steps`` chunks whose layers are not built yet."""
    shape = (2 * CHUNK, 2 * CHUNK, steps // 4 * CHUNK)
    volume = synthetic_neuropil(shape, seed=5)
    source = folder / "source.npz"
    np.savez(source, segmentation=volume.segmentation, bodies=volume.bodies, resolution=np.asarray(volume.resolution))
    raw = {
        "graph_id": name,
        "data_source": {"WATERSHED": str(folder / name)},
        "source": {"segmentation": f"{source}#segmentation", "agglomeration": f"{source}#bodies"},
        "graph_config": {"CHUNK_SIZE": [CHUNK] * 3},
        "ingest": {"mode": "graph", "chunks_per_batch": 1},
    }
    dataset = stages.register(parse_config(raw), str(folder / "home"))
    run.ingest(dataset, mode=IngestMode.SETUP, workers=1)
    return dataset


def in_the_terminal(dataset: Dataset, workers: int) -> float:
    """Seconds of layer 2 in the pool of ``sv-pipeline ingest``, with the start of its processes."""
    before = time.perf_counter()
    run.ingest(dataset, layers=[2], workers=workers)
    return time.perf_counter() - before


RUN = """
import json, sys, time
import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
graph, config = sys.argv[1], json.loads(sys.argv[2])
code = ReconstructableRepository.for_module("sv_pipeline.definitions", "defs", "/")
job = code.get_reconstructable_job("__ASSET_JOB")
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("graph_layers", [f"{graph}|L02"])
    tags = {"dagster/partition": f"{graph}|L02"}
    before = time.perf_counter()
    with dg.execute_job(
        job, instance, config, tags, raise_on_error=True, asset_selection=[dg.AssetKey("layer")]
    ) as result:
        assert result.success
    print(json.dumps(time.perf_counter() - before))
"""


def in_dagster(dataset: Dataset, config: dict[str, Any], environment: dict[str, str]) -> float:
    """Seconds of a run that builds layer 2, without the start of its own process."""
    command = [sys.executable, "-c", RUN, dataset.graph_id, json.dumps(config)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=32, help="chunks of layer 2; a multiple of 4")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dagster").mkdir()
        (folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DAGSTER_HOME": str(folder / "dagster"),
            "SV_PIPELINE_HOME": str(folder / "home"),
            "SV_PIPELINE_MAX_CONCURRENT": str(options.workers),
            "SV_PIPELINE_BATCHES_IN_STEP": "0",
        }
        (folder / "redis").mkdir()
        server = RedisServer(folder / "redis", ROOT / "deploy" / "celery" / "redis.conf")
        server.start()
        on_celery = {**environment, "SV_PIPELINE_EXECUTOR": "celery", "SV_PIPELINE_CELERY_BROKER": server.url}
        command = [sys.executable, "-m", "sv_pipeline.defs.celery.worker", "--concurrency", str(options.workers)]
        with interrupts_held():
            worker = subprocess.Popen(
                command,
                env=on_celery,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
        multiprocess = {"execution": {"config": {"multiprocess": {"max_concurrent": options.workers}}}}
        engines: dict[str, Callable[[Dataset], float]] = {
            "terminal, pool of processes": lambda d: in_the_terminal(d, options.workers),
            "Dagster, in one process": lambda d: in_dagster(
                d, {"execution": {"config": {"in_process": {}}}}, environment
            ),
            "Dagster, process per step": lambda d: in_dagster(d, multiprocess, environment),
            "Dagster, Celery, first run": lambda d: in_dagster(d, {}, on_celery),
            "Dagster, Celery": lambda d: in_dagster(d, {}, on_celery),
        }
        try:
            print_table(folder, engines, options.steps, options.workers)
        finally:
            worker.terminate()
            worker.wait()
            server.kill()


def print_table(folder: Path, engines: dict[str, Callable[[Dataset], float]], steps: int, workers: int) -> None:
    """Run each engine once, and print its seconds, its steps per second, and the ratio to the first."""
    print(f"{steps} steps of one chunk, {workers} workers, load {os.getloadavg()[0]:.1f}")
    print(f"{'engine':30} {'s':>7} {'steps/s':>8} {'s/step':>7} {'x terminal':>11}")
    first = 0.0
    for number, (name, build) in enumerate(engines.items()):
        dataset = graph(folder, f"g{number}", steps)
        seconds = build(dataset)
        first = first or seconds
        built = next(row for row in graph_status(dataset).stages if row.name == "layer 2")
        assert built.done == steps, built
        print(
            f"{name:30} {seconds:7.1f} {steps / seconds:8.2f} {seconds / steps:7.2f} {seconds / first:11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
