"""Coarser mips as an operator sees them: the daemon's sensor starts runs by itself, and again when they are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for
from sv_pipeline_tests.defs.edited import assert_mips_right, damage, edit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]
JOB = "downsample_job"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def dataset(place: Path, small_segmentation: Path) -> Dataset:
    dataset = stages.register(small_config(place / "ws", small_segmentation), str(place / "home"))
    ingest(dataset, workers=1)
    return dataset


@pytest.fixture(scope="module")
def server(place: Path, dataset: Dataset) -> Iterator[DevServer]:
    with dev_server(str(place / "home"), place / "dagster_home") as server:
        yield server


def up_to_date(dataset: Dataset) -> bool:
    return dataset.fork.lag().entries == 0


def test_a_stream_of_edits_is_caught_up_with_though_a_run_is_killed(server: DevServer, dataset: Dataset) -> None:
    """SIGKILL of the first run's worker and its steps; the sensor starts another one by itself."""
    edit(dataset, 1)
    run_id = wait_for(lambda: server.runs_of(JOB), "the sensor starts a run", 90)[0][0]
    edit(dataset, 2, at=(20, 10, 8))
    worker = server.worker(run_id)
    for process in (worker, *worker.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
    assert server.wait_for_run(run_id) == "FAILURE"
    edit(dataset, 3, at=(40, 20, 16))
    wait_for(lambda: up_to_date(dataset), "the ledger is empty", 180)
    assert_mips_right(dataset)
    wait_for(lambda: server.runs_of(JOB)[0][1] == "SUCCESS", "the run that did it ends")
    before = len(server.runs_of(JOB))
    time.sleep(20)  # more than a tick
    assert len(server.runs_of(JOB)) == before, "nothing to do, nothing started"


def test_a_backfill_of_all_mips_makes_them_again_bottom_up(server: DevServer, dataset: Dataset) -> None:
    mips = len(dataset.base.info().volume.scales)
    for mip in range(1, mips):
        damage(dataset, mip)
    backfill = server.backfill_of_job("rebuild_mip_job", [f"{dataset.graph_id}|M{mip:02d}" for mip in range(1, mips)])
    final = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED"}
    status = wait_for(lambda: (s := server.backfill_status(backfill)) in final and s, "backfill", 300)
    assert status == "COMPLETED_SUCCESS"
    assert_mips_right(dataset)
    wait_for(lambda: up_to_date(dataset), "what the rebuild listed is done by the sensor's run", 120)
    assert_mips_right(dataset)
