"""Downsample jobs that are killed at any moment, under a stream of edits, several at once: the mips end right."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from datetime import timedelta
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.pyramid.downsample import downsample
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.pyramid.pyramids import GRAPH, assert_up_to_date, edit, make_fork, random_boxes

SPAWN = multiprocessing.get_context("spawn")
EXPIRY = timedelta(seconds=1)
SMALL = 1 << 20


def work_until_killed(url: str, tables: str, started: Event, stop: Event) -> None:
    """What a sensor does: start the job whenever something is listed."""
    table = SqliteTable("t", Path(tables))
    started.set()
    while not stop.is_set():
        downsample(Fork(url, GRAPH), table=table, memory_budget=SMALL, lock_expiry=EXPIRY)
        time.sleep(0.01)


def start(url: str, tables: str, stop: Event) -> BaseProcess:
    started = SPAWN.Event()
    process = SPAWN.Process(target=work_until_killed, args=(url, tables, started, stop))
    process.start()
    assert started.wait(60)
    return process


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_killed_at_random_under_a_stream_of_edits_the_mips_end_right(tmp_path: Path, n_jobs: int) -> None:
    url, tables = str(tmp_path / "ws"), str(tmp_path / "tables")
    bounds = make_fork(url, size=(150, 130, 50), chunk_size=(256, 256, 128), storage_chunk=(16, 16, 8), mips=4)
    SqliteTable("t", tmp_path / "tables").create()
    random.seed(n_jobs)
    rng, stop, operation_id, killed = np.random.default_rng(n_jobs), SPAWN.Event(), 0, 0
    jobs = [start(url, tables, stop) for _ in range(n_jobs)]
    for _ in range(6 // n_jobs):
        until = time.monotonic() + random.uniform(0.05, 0.5)
        while time.monotonic() < until:
            operation_id += 1
            edit(url, operation_id, random_boxes(bounds, rng, 2), seed=operation_id)
        for number, job in enumerate(jobs):
            assert job.is_alive(), "no job ends by itself"
            assert job.pid is not None
            os.kill(job.pid, signal.SIGKILL)
            job.join()
            killed += 1
            jobs[number] = start(url, tables, stop)
    stop.set()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    table = SqliteTable("t", tmp_path / "tables")
    assert downsample(Fork(url, GRAPH), table=table, lock_expiry=EXPIRY).complete
    assert killed >= 6
    assert_up_to_date(url)
    assert Fork(url, GRAPH).pending() == []
    table.close()
