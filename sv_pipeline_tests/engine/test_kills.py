"""Processes die, at any moment: the next run ends as if nothing had happened. Real processes, SIGKILL."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.engine.run import ingest
from sv_pipeline.errors import NotFoundError
from sv_pipeline.ingest import progress
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation import kv, markers
from sv_pipeline_tests.engine import builds
from sv_pipeline_tests.requirements import need

pytestmark = pytest.mark.slow
STEPS = ("labels", "edges", "layer 2", "layer 3", "voxels")


@pytest.fixture(autouse=True)
def _needs_linux() -> None:
    need(sys.platform == "linux", "/proc, to find the processes that are to be killed")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same dataset, built by one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("twin")
    dataset = builds.register(builds.raw_config(folder), folder / "home")
    ingest(dataset)
    return dataset


class Victim:
    """A dataset whose ingest is run by the command line, and killed."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.home = folder / "home"
        raw = builds.raw_config(folder, ingest={"chunks_per_batch": 1}, **changes)
        self.config = builds.config_file(folder / "tissue.yaml", raw)
        self.dataset = builds.register(raw, self.home)

    def start(self, *options: object, **environment: str) -> Any:
        return builds.start_cli(self.home, "ingest", self.config, "--workers", 2, *options, **environment)

    def finish(self) -> None:
        """The run that nobody kills."""
        said = builds.end_of(self.start())
        assert said.code == 0, said.err

    def done(self, step: str) -> int:
        """Chunks of a step that have a marker."""
        url = self.dataset.watershed_url
        if step in ("labels", "edges"):
            return len(kv.list_keys(url, f".watershed/{step}/"))
        if step == "voxels":
            return len(markers.done_tasks(url))
        try:
            return progress.layer_status(self.dataset.graph)[int(step.split()[1])].done
        except NotFoundError:
            return 0

    def wait_for(self, process: Any, step: str, chunks: int) -> None:
        """Until a step has so many chunks, or the process has ended."""
        builds.wait_until(lambda: self.done(step) >= chunks or process.poll() is not None, f"{chunks} chunks of {step}")

    def assert_as_if_nothing_had_happened(self, twin: Dataset) -> None:
        builds.assert_same(self.dataset, twin)
        builds.assert_nothing_leaked(self.dataset)
        builds.assert_sound(self.dataset)


@pytest.mark.parametrize("method", ["parts", "coordinator"])
def test_killed_with_all_its_workers_in_every_stage_an_ingest_is_completed(
    tmp_path: Path, twin: Dataset, method: str
) -> None:
    victim = Victim(tmp_path, ocdbt_config={"populate_method": method})
    rng = random.Random(method)
    killed = []
    for step in STEPS:
        process = victim.start()
        victim.wait_for(process, step, rng.randint(1, 3))
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            killed.append(step)
        builds.kill_group(process)
    assert len(killed) >= 3, f"too fast to be killed: {killed}"
    victim.finish()
    victim.assert_as_if_nothing_had_happened(twin)


def test_killed_at_random_moments_an_ingest_is_completed(tmp_path: Path, twin: Dataset) -> None:
    victim = Victim(tmp_path)
    rng = random.Random(11)
    for _ in range(5):
        process = victim.start("--json")
        builds.wait_until(lambda p=process: builds.workers_of(p) or p.poll() is not None, "workers")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 3.0))
        builds.kill_group(process)
    victim.finish()
    victim.assert_as_if_nothing_had_happened(twin)


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
