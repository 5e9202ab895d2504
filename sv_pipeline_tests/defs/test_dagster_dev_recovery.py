"""An edit in a terminal is killed; the sensor of a real ``dg dev`` finds and heals it, and nobody asks for it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.conftest import fork_server as fork_server
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]
log = logging.getLogger(__name__)

RUNS = (
    "query($t:[ExecutionTag!]){runsOrError(filter:{tags:$t}){... on Runs{results{runId status creationTime startTime "
    "endTime stepStats{stepKey startTime endTime}}}}}"
)


def split_in_a_terminal(home: Path, request: dict[str, Any], failpoint: str) -> int:
    points = [f"--{side}={','.join(map(str, request[side][0]))}" for side in ("source", "sink")]
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(home), "split", "stage", *points]
    return subprocess.run(command, env={**os.environ, "SV_PIPELINE_FAILPOINT": failpoint}, check=False).returncode


def runs(server: DevServer, operation: int) -> list[dict[str, Any]]:
    tags = [{"key": "sv/graph_id", "value": "stage"}, {"key": "sv/op_id", "value": str(operation)}]
    return list(server.query(RUNS, t=tags)["runsOrError"]["results"])


def test_a_worker_that_is_killed_is_healed_without_being_asked(
    theatre: Callable[..., Theatre], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("SV_PIPELINE_HOME", str(home))
    play = theatre("sqlite", home)
    monkeypatch.setenv("SV_PIPELINE_RECOVERY_MIN_AGE", "20s")
    with dev_server(str(home), tmp_path / "dagster_home") as server:
        assert split_in_a_terminal(home, play.request("supervoxel split"), "half switched:kill") == -9
        killed = time.time()
        assert play.scene.indefinite_locks()
        (run,) = wait_for(lambda: runs(server, 15), "the sensor asks for a run", 180)
        run_id = str(run["runId"])
        assert server.wait_for_run(run_id, 180) == "SUCCESS"
        healed = time.time()
        (run,) = runs(server, 15)
        asked, started = run["creationTime"], run["startTime"]
        parts = {"found and asked for": asked - killed, "queued and started": started - asked}
        parts |= {s["stepKey"]: s["endTime"] - s["startTime"] for s in run["stepStats"]}
        log.warning("from kill to healed %.1f s: %s", healed - killed, {k: round(v, 1) for k, v in parts.items()})
        if target := os.environ.get("SV_PIPELINE_SCREENSHOTS"):
            screenshot(f"{server.url}/runs/{run_id}", Path(target) / "recovery_run.png")
            screenshot(f"{server.url}/automation", Path(target) / "recovery_sensor.png")
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")


def screenshot(url: str, path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no Chromium to take pictures with")
    subprocess.run(
        [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,1000",
            f"--user-data-dir={path.parent / '.chromium'}", "--virtual-time-budget=20000", f"--screenshot={path}", url,
        ],
        check=False, timeout=120, capture_output=True,
    )  # fmt: skip
