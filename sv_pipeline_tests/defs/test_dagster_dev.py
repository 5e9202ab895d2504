"""The project as an operator runs it: a real webserver and daemon, backfills, and workers that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.ingest import stages
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def server(place: Path):
    with dev_server(str(place / "home"), place / "dagster_home") as server:
        yield server


def registered(place: Path, segmentation: Path, graph_id: str, per_batch: int = 4) -> Dataset:
    """A graph with a watershed of its own, known to the running server through its sensor."""
    config = small_config(place / graph_id, segmentation, graph_id, ingest={"chunks_per_batch": per_batch})
    return stages.register(config, str(place / "home"))


def everything(graph_id: str) -> dict[str, list[str]]:
    layers = [f"{graph_id}|L{number:02d}" for number in (2, 3, 4)]
    return {
        "watershed": [graph_id],
        "base_ocdbt": [graph_id],
        "layer": layers,
        "fork": [graph_id],
        "reader_contract": [graph_id],
    }


def wait_for_partition(server: DevServer, graph_id: str) -> None:
    wait_for(lambda: graph_id in server.partitions("watershed"), "the sensor adds the graph as a partition")


def wait_for_backfill(server: DevServer, backfill_id: str) -> str:
    final = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED"}
    return str(wait_for(lambda: (s := server.backfill_status(backfill_id)) in final and s, "backfill", 400))


def test_a_backfill_of_everything_builds_a_sound_graph_bottom_up(
    server: DevServer, place: Path, small_segmentation: Path
) -> None:
    dataset = registered(place, small_segmentation, "whole", per_batch=9)
    wait_for_partition(server, "whole")
    status = wait_for_backfill(server, server.backfill(everything("whole")))
    assert status == "COMPLETED_SUCCESS"
    assert graph_status(dataset).complete
    assert verify_dataset(dataset).ok


def test_killed_run_worker_never_ends_as_success_with_chunks_missing(
    server: DevServer, place: Path, small_segmentation: Path
) -> None:
    """SIGKILL of a run's worker between batches; then "re-execute from failure"; then a plain materialization."""
    dataset = registered(place, small_segmentation, "killed", per_batch=2)
    prepared(dataset)
    wait_for_partition(server, "killed")
    run = server.materialize("layer", "killed", "L02")
    wait_for(lambda: 2 <= done_chunks(dataset) < 14, "some of the 18 chunks are done", 90)
    worker = server.worker(run)
    for process in [worker, *worker.children(recursive=True)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert server.wait_for_run(run) == "FAILURE"
    assert done_chunks(dataset) < 18

    again = server.reexecute_from_failure(run)
    outcome = server.wait_for_run(again)
    assert (outcome == "SUCCESS") == (done_chunks(dataset) == 18)

    runs = [server.materialize("layer", "killed", layer) for layer in ("L02", "L03", "L04")]
    assert [server.wait_for_run(run) for run in runs] == ["SUCCESS"] * 3
    stages.make_fork(dataset)
    assert verify_dataset(dataset).ok


def test_killed_step_process_is_tried_again_by_itself(server: DevServer, place: Path, small_segmentation: Path) -> None:
    dataset = registered(place, small_segmentation, "step", per_batch=2)
    prepared(dataset)
    wait_for_partition(server, "step")
    run = server.materialize("layer", "step", "L02")
    wait_for(lambda: done_chunks(dataset) >= 1, "work has begun", 90)
    killed = 0
    while killed < 2 and done_chunks(dataset) < 14:
        steps = server.step_processes(run)
        for process in steps[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.5)
    assert server.wait_for_run(run, 200) == "SUCCESS"
    assert done_chunks(dataset) == 18


def test_a_failed_layer_is_run_again_and_does_only_what_is_missing(
    server: DevServer, place: Path, small_segmentation: Path
) -> None:
    dataset = registered(place, small_segmentation, "broken", per_batch=6)
    prepared(dataset)
    wait_for_partition(server, "broken")
    edges = sorted(Path(dataset.config.edges_url.removeprefix("file://")).glob("edges_*"))
    content = edges[-1].read_bytes()
    edges[-1].write_bytes(content[: len(content) // 2])
    assert server.wait_for_run(server.materialize("layer", "broken", "L02")) == "FAILURE"
    layer = next(row for row in graph_status(open_dataset("broken", dataset.home)).stages if row.name == "layer 2")
    assert layer.state == "failed"
    assert edges[-1].name in str(layer.error)
    assert layer.done == 12

    edges[-1].write_bytes(content)
    again = server.materialize("layer", "broken", "L02")
    assert server.wait_for_run(again) == "SUCCESS"
    assert len(server.batches_of(again)) == 1


def prepared(dataset: Dataset) -> None:
    """The steps before the layers, in this process."""
    from sv_pipeline.ingest import run

    run.ingest(dataset, mode=IngestMode.SETUP, workers=1)


def done_chunks(dataset: Dataset) -> int:
    return next((row.done for row in graph_status(dataset).stages if row.name == "layer 2"), 0)
