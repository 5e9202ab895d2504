"""The status of a running ingest: throughput, time that is left, workers, failures, and what a layer took."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.errors import InputError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.kept_counts import open_blocks
from sv_pipeline.ingest.pace import pace_of, workers_seen
from sv_pipeline.ingest.progress import LayerStatus, mark_failed
from sv_pipeline.ingest.reservations import worker_name
from sv_pipeline.ingest.run import ingest
from sv_pipeline.reports.status import graph_status
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine

MINUTE = 60_000
START = 30_000_000  # a minute since the epoch

DEAD_WORKER = """
import os, signal, sys
from sv_pipeline.ingest.kept_counts import open_blocks
from sv_pipeline.registry import open_dataset

graph = open_dataset("tissue", sys.argv[1]).graph
graph.table.mutate(open_blocks(2, [0]).mutations)
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def status_of(chunks: int, per_minute: list[int]) -> LayerStatus:
    """A layer of which so many chunks were done in each minute since its start."""
    return LayerStatus(
        layer=2,
        chunks=chunks,
        done=sum(per_minute),
        failed=0,
        nodes=0,
        supervoxels=0,
        edges=0,
        seconds=0.0,
        first_started=START * MINUTE if per_minute else None,
        last_finished=(START + len(per_minute)) * MINUTE - 1 if per_minute else None,
        error=None,
        recent=tuple((START + i, n) for i, n in enumerate(per_minute) if n),
    )


@given(per_minute=st.lists(st.integers(0, 500), max_size=30), missing=st.integers(0, 10_000))
def test_the_time_left_is_what_is_missing_at_the_present_throughput(per_minute: list[int], missing: int) -> None:
    status = status_of(sum(per_minute) + missing, per_minute)
    pace = pace_of(status, (START + len(per_minute)) * 60.0 - 0.001)
    if status.complete:
        assert pace.seconds_left == 0
    elif (rate := pace.now or pace.overall) is None or rate == 0:
        assert pace.seconds_left is None
    else:
        assert pace.seconds_left == pytest.approx(missing / rate)
        assert pace.now is None or pace.now == pytest.approx(
            sum(per_minute[-5:]) / (60.0 * min(5, len(per_minute))), rel=1e-3
        )


def test_a_layer_that_became_slow_shows_it() -> None:
    pace = pace_of(status_of(100_000, [600] * 10 + [60] * 5), (START + 15) * 60.0 - 0.001)
    assert pace.now == pytest.approx(1, rel=0.01)
    assert pace.overall == pytest.approx(7, rel=0.01)


def test_a_stopped_ingest_has_no_present_throughput() -> None:
    pace = pace_of(status_of(1000, [60, 60]), (START + 60) * 60.0)
    assert pace.now is None
    assert pace.seconds_left == pytest.approx(880, rel=0.01)


def test_a_killed_worker_is_silent_and_a_running_one_alive(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset, layers=[])
    assert workers_seen(dataset.graph, [2]).alive == ()
    dataset.table.mutate(open_blocks(2, [0]).mutations)
    dead = subprocess.run([sys.executable, "-c", DEAD_WORKER, str(tmp_path / "home")], capture_output=True, text=True)
    seen = workers_seen(dataset.graph, [2])
    assert seen.alive == (worker_name(),)
    assert seen.silent == (f"{worker_name().rpartition(':')[0]}:{dead.stdout.strip()}",)
    assert graph_status(dataset).workers == seen


def test_the_status_says_what_failed_what_is_left_and_what_a_layer_took(cli: CommandLine, tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    cli.home = tmp_path / "home"
    ingest(dataset, layers=[2])
    mark_failed(dataset.graph, 3, [(0, 0, 0)], InputError("the file is broken."))
    shown = cli("status", "tissue").out
    for text in ("left for all layers", "1 failed (input), first (0, 0, 0): the file is broken.", "were forecast"):
        assert text in shown.replace("\n", " ")
    layer2, layer3 = (s for s in graph_status(dataset).stages if s.name in ("layer 2", "layer 3"))
    assert layer2.rows == 12 + layer2.nodes + 169
    assert layer2.work_seconds is not None
    assert layer2.work_seconds > 0
    assert layer2.wall_seconds is not None
    assert layer3.seconds_left == layer3.predicted_wall_seconds
    assert [f.kind for f in layer3.failures] == ["input"]


def test_a_status_without_a_forecast_is_shown(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset, layers=[2])
    forecast = tmp_path / "home" / "forecasts" / "tissue.json"
    for content in (None, "{}"):
        forecast.unlink() if content is None else forecast.write_text(content)
        status = graph_status(dataset)
        assert status.seconds_left is None
        assert all(row.predicted_work_seconds is None for row in status.stages)
    assert replace(status, workers=status.workers) == status
    assert stages.plan_layer(dataset, 3)
