"""The recovery as it runs in Dagster, killed at every step: whatever Dagster runs again heals the edit.

Most cases are forks that run the job in their own process, as the worker of a run does, and are killed there; then the
job is run again. One is a real ``dagster job execute`` whose step process Dagster itself starts again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sv_pipeline.defs import executors
from sv_pipeline.operations.unfinished import Phase, read_unfinished
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.testing.harness.forkserver import ForkServer, running_fork_server
from sv_pipeline_tests.defs.dev_server import wait_for
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre
from sv_pipeline_tests.recovery.test_crash_matrix import DONE, KILLED, OF_RECOVERY, newest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A process that has Dagster imported."""
    with running_fork_server(*executors.PRELOAD, "sv_pipeline_tests.recovery.jobs") as process:
        yield process


def killed_edit(theatre: Callable[..., Theatre], home: Path, kind: str = "supervoxel split") -> tuple[Theatre, int]:
    play = theatre("sqlite", home)
    assert play.do(**play.request(kind), failpoint="half switched:kill") == KILLED
    return play, newest(play)


def judge(play: Theatre, kind: str = "supervoxel split") -> None:
    play.scene.prove()
    assert not find_unfinished(play.scene.graph)
    assert play.scene.objects() == play.twin(kind)


@pytest.mark.parametrize("step", OF_RECOVERY)
def test_a_run_that_is_killed_and_run_again_heals(theatre: Callable[..., Theatre], tmp_path: Path, step: str) -> None:
    kind = "supervoxel split" if step not in ("planned", "switch") else "merge"
    play, operation = killed_edit(theatre, tmp_path / "home", kind)
    task = {"do": "job", "operation": operation}
    assert play.do(**task, failpoint=f"{step}:kill") == KILLED
    assert play.said(**task) == (DONE, '"SUCCESS"')
    judge(play, kind)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.xdist_group("dagster_dev")
def test_a_step_that_dies_while_it_writes_is_retried_by_dagster_from_the_roll_back(
    theatre: Callable[..., Theatre], tmp_path: Path
) -> None:
    play, operation = killed_edit(theatre, tmp_path / "home")
    found = read_unfinished(play.scene.graph, operation)
    assert found is not None
    config = {"graph_id": "stage", "operation_id": operation, "own_process": True}
    config |= {"seen": found.signature, "seen_for": 60.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "dagster").mkdir()
    environment = {
        "SV_PIPELINE_HOME": str(tmp_path / "home"),
        "DAGSTER_HOME": str(tmp_path / "dagster"),
        "SV_PIPELINE_FAILPOINT": "half switched:pause:8",  # at each attempt; the first one is killed in it
    }
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "sv_pipeline.definitions"]
    command += ["-j", "recover_operation_job", "-c", str(tmp_path / "config.json")]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )

    def writing() -> bool:
        now = read_unfinished(play.scene.graph, operation)
        return now is not None and now.progress.phase == Phase.REPLAYING and bool(now.write_set[1])

    wait_for(writing, f"the replay: see {tmp_path / 'log'}", 180)
    time.sleep(1)
    (worker,) = re.findall(r"- (\d+) - recover_operation - STEP_START ", (tmp_path / "log").read_text())
    os.kill(int(worker), signal.SIGKILL)
    assert run.wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
    said = (tmp_path / "log").read_text()
    assert "STEP_UP_FOR_RETRY" in said
    assert said.count("roll back: ") == 2
    judge(play)
