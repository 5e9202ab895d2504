"""The fork server of steps imports much in advance, and a Celery worker little; it must survive the fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sv_pipeline.defs.executors import PRELOAD
from sv_pipeline_tests.defs.dev_server import PROJECT

FORKED = """
import multiprocessing, sys, time

def child(folder, results):
    started = time.process_time()
    from sv_pipeline.definitions import defs
    import numpy as np, scipy.linalg, tensorstore as ts
    from sv_pipeline.table.sqlite.table import SqliteTable
    defs().get_repository_def()
    spec = {"driver": "zarr", "kvstore": f"file://{folder}/volume", "metadata": {"shape": [64], "dtype": "<i4"}}
    volume = ts.open(spec, create=True).result()
    volume.write(np.arange(64, dtype="i4")).result()
    matrix = np.arange(40000.0).reshape(200, 200) + np.eye(200)
    scipy.linalg.inv(matrix @ matrix.T + np.eye(200))
    results.put((int(volume.read().result().sum()), time.process_time() - started))

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sys.argv[2:])
    results = context.Queue()
    for number in range(3):
        process = context.Process(target=child, args=(f"{sys.argv[1]}/{number}", results))
        process.start()
        print(*results.get(timeout=100))
        process.join(30)
        assert process.exitcode == 0, process.exitcode
"""


def test_a_step_has_little_left_to_import_and_can_use_what_was_imported(tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    command = [sys.executable, str(script), str(tmp_path), *PRELOAD]
    output = subprocess.run(command, check=True, cwd=PROJECT, capture_output=True, text=True, timeout=200).stdout
    sums, seconds = zip(*(map(float, line.split()) for line in output.splitlines()), strict=True)
    assert sums == (2016.0,) * 3
    assert min(seconds) < 0.6, "processor time of a step before its work: imports are missing in PRELOAD"


def test_a_celery_worker_forks_its_pool_before_tensorstore_and_grpc_are_loaded() -> None:
    """A pool process, and the one that replaces a dead one hours later, is a fork of the process that runs this."""
    pytest.importorskip("dagster_celery")
    loaded = "import sys, sv_pipeline.defs.celery.app; print({'tensorstore', 'grpc'} & set(sys.modules))"
    environment = os.environ | {"SV_PIPELINE_CELERY_BROKER": "redis://127.0.0.1:1/0"}
    done = subprocess.run([sys.executable, "-c", loaded], env=environment, cwd=PROJECT, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]
