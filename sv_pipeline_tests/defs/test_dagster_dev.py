"""The project as an operator runs it: a real webserver and daemon, backfills, and workers that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.small_work import BATCHES_VARIABLE
from sv_pipeline.proofreading import open_graph
from sv_pipeline.registry import Dataset, open_dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.table import keys
from sv_pipeline.table.columns import INGEST_DONE
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.dev_server import DevServer, dev_server, wait_for
from sv_pipeline_tests.editable import two_parts_of_an_object

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("dagster_dev")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dev")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(place: Path, monkeypatch_module: pytest.MonkeyPatch):
    monkeypatch_module.setenv(BATCHES_VARIABLE, "2")  # layers with more batches are done in steps, which can be killed
    with dev_server(str(place / "home"), place / "dagster_home") as server:
        yield server


def registered(place: Path, segmentation: Path, graph_id: str, per_batch: int = 4) -> Dataset:
    """A graph with a watershed of its own, known to the running server through its sensor."""
    config = small_config(place / graph_id, segmentation, graph_id, ingest={"chunks_per_batch": per_batch})
    return stages.register(config, str(place / "home"))


def everything(graph_id: str) -> dict[str, list[str]]:
    return {asset: [graph_id] for asset in ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract")}


def wait_for_partition(server: DevServer, graph_id: str) -> None:
    wait_for(lambda: graph_id in server.partitions("watershed"), "the sensor adds the graph as a partition")
    wait_for(lambda: f"{graph_id}|L04" in server.partitions("layer"), "the sensor adds its layers")


def wait_for_backfill(server: DevServer, backfill_id: str) -> str:
    final = {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED"}
    return str(wait_for(lambda: (s := server.backfill_status(backfill_id)) in final and s, "backfill", 400))


def test_a_backfill_of_everything_builds_a_sound_graph_bottom_up(
    server: DevServer, place: Path, small_segmentation: Path
) -> None:
    dataset = registered(place, small_segmentation, "whole", per_batch=9)
    wait_for_partition(server, "whole")
    backfill = server.backfill(everything("whole"))
    assert wait_for_backfill(server, backfill) == "COMPLETED_SUCCESS"
    assert graph_status(dataset).complete
    assert verify_dataset(dataset).ok
    assert len(server.runs_with("dagster/backfill", backfill)) == 1
    assert server.materialized("layer") >= {f"whole|L{number:02d}" for number in (2, 3, 4)}
    assert [key for key in server.partitions("layer") if key.startswith("whole|")] == [
        f"whole|L{number:02d}" for number in (2, 3, 4)
    ]


def test_chosen_layers_are_built_in_one_run_bottom_up(server: DevServer, place: Path, small_segmentation: Path) -> None:
    dataset = registered(place, small_segmentation, "chosen")
    prepared(dataset)
    wait_for_partition(server, "chosen")
    backfill = server.backfill({"layer": ["chosen|L02", "chosen|L03", "chosen|L04"]})
    assert wait_for_backfill(server, backfill) == "COMPLETED_SUCCESS"
    assert len(server.runs_with("dagster/backfill", backfill)) == 1
    assert {row.name: row.state for row in graph_status(dataset).stages}["layer 4"] == "done"


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
    done = done_markers(dataset)

    edges[-1].write_bytes(content)
    again = server.materialize("layer", "broken", "L02")
    assert server.wait_for_run(again) == "SUCCESS"
    after = done_markers(dataset)
    assert len(after) == 18
    assert {chunk: after[chunk] for chunk in done} == done


def test_an_edit_starts_at_once_while_ingests_fill_their_slots(
    server: DevServer, place: Path, small_segmentation: Path
) -> None:
    edited = registered(place, small_segmentation, "edited", per_batch=18)
    ingest(edited, workers=1)
    busy = [registered(place, small_segmentation, f"busy{number}", per_batch=1) for number in range(3)]
    for dataset in busy:
        prepared(dataset)
        wait_for_partition(server, dataset.graph_id)
    ingests = [server.materialize("layer", dataset.graph_id, "L02") for dataset in busy]
    wait_for(lambda: sorted(map(server.status, ingests)) == ["QUEUED", "STARTED", "STARTED"], "two ingests run", 90)
    source, sink = two_parts_of_an_object(open_graph("edited", edited.home))
    edit = server.launch("split_job", {"graph_id": "edited", "source": [list(source)], "sink": [list(sink)]})
    assert server.wait_for_run(edit) == "SUCCESS"
    assert "QUEUED" in map(server.status, ingests), "the edit has overtaken an ingest that was asked for before it"
    assert [server.wait_for_run(each, 400) for each in ingests] == ["SUCCESS"] * 3


def prepared(dataset: Dataset) -> None:
    """The steps before the layers, in this process."""
    ingest(dataset, mode=IngestMode.SETUP, workers=1)


def done_markers(dataset: Dataset) -> dict[bytes, Any]:
    """The done-markers of the chunks of layer 2, with the time and the process of each."""
    rows = dataset.graph.table.scan([keys.ingest_range(2)], [INGEST_DONE.key], newest_only=True)
    return {key: INGEST_DONE.newest(row) for key, row in rows}


def done_chunks(dataset: Dataset) -> int:
    return next((row.done for row in graph_status(dataset).stages if row.name == "layer 2"), 0)
