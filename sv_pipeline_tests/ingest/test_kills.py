"""Killed as a whole, at any moment: the next run ends as if nothing had happened. Real processes, SIGKILL."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sv_pipeline.ingest.pool import ALONE_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.fixtures import need
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.victims import Victim

pytestmark = pytest.mark.slow
STEPS = ("labels", "edges", "layer 2", "layer 3", "voxels")


@pytest.fixture(autouse=True)
def _needs_linux() -> None:
    need(sys.platform == "linux", "/proc, to find the processes that are to be killed")


@pytest.mark.parametrize("method", ["parts", "coordinator", "reference"])
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
    for number in range(6):
        alone = number % 2 == 1  # one process does all the work, as of any volume so small
        process = victim.start("--json", **{ALONE_VARIABLE: "60" if alone else "0"})
        builds.wait_until(lambda p=process, a=alone: a or builds.workers_of(p) or p.poll() is not None, "workers")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 3.0))
        builds.kill_group(process)
    victim.finish()
    victim.assert_as_if_nothing_had_happened(twin)
