"""One process of an ingest dies, or two ingests meet: both end well. Real processes, SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from sv_pipeline.registry import Dataset
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.victims import Victim

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_linux() -> None:
    need(sys.platform == "linux", "/proc, to find the processes that are to be killed")


@pytest.mark.parametrize("step", ["edges", "voxels"])
def test_a_killed_worker_process_does_not_stop_the_ingest(tmp_path: Path, twin: Dataset, step: str) -> None:
    victim = Victim(tmp_path)
    process = victim.start()
    victim.wait_for(process, step, 1)
    workers = builds.workers_of(process)
    if workers:
        os.kill(workers[0], signal.SIGKILL)
    said = builds.end_of(process)
    assert said.code == 0, said.err
    victim.assert_as_if_nothing_had_happened(twin)


def test_workers_do_not_outlive_a_killed_ingest(tmp_path: Path, twin: Dataset) -> None:
    victim = Victim(tmp_path, ocdbt_config={"populate_method": "coordinator"})
    process = victim.start()
    builds.wait_until(lambda: len(builds.workers_of(process)) == 2 or process.poll() is not None, "two workers")
    victim.wait_for(process, "layer 2", 1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    builds.wait_until(lambda: not builds.group_is_alive(process), "the workers to end")
    victim.finish()
    victim.assert_as_if_nothing_had_happened(twin)


def test_a_killed_coordinator_is_replaced(tmp_path: Path, twin: Dataset) -> None:
    victim = Victim(tmp_path, ocdbt_config={"populate_method": "coordinator", "populate_layer": 2})
    process = victim.start()
    victim.wait_for(process, "voxels", 1)
    for coordinator in builds.coordinators_of(process):
        os.kill(coordinator, signal.SIGKILL)
    said = builds.end_of(process)
    assert said.code == 0, said.err
    assert victim.done("voxels") == 12
    victim.assert_as_if_nothing_had_happened(twin)


def test_two_operators_who_start_the_same_ingest_at_once_both_succeed(tmp_path: Path, twin: Dataset) -> None:
    victim = Victim(tmp_path)
    both = [victim.start(), victim.start()]
    ends = [builds.end_of(process) for process in both]
    assert [said.code for said in ends] == [0, 0], [said.err for said in ends]
    victim.assert_as_if_nothing_had_happened(twin)


def test_two_operators_of_whom_one_is_killed(tmp_path: Path, twin: Dataset) -> None:
    victim = Victim(tmp_path)
    one, other = victim.start(), victim.start()
    victim.wait_for(one, "layer 2", 2)
    builds.kill_group(one)
    said = builds.end_of(other)
    assert said.code == 0, said.err
    victim.assert_as_if_nothing_had_happened(twin)
