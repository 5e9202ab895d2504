"""A deployment with Celery workers as in production: ingest, edits, recovery, coarser mips; each part is killed."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from sv_pipeline.config import IngestMode, parse_config
from sv_pipeline.defs.coordinator import HOST_VARIABLE
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.ingest import run, stages
from sv_pipeline.proofreading import OpenGraph, open_graph
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline.testing.fixtures import need
from sv_pipeline.testing.servers.gcs_client import GcsControl
from sv_pipeline.testing.servers.postgres import find_postgres
from sv_pipeline.testing.servers.redis import find_redis
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.celery_deployment import WORKERS, Deployment, deployment, listens
from sv_pipeline_tests.defs.dev_server import wait_for
from sv_pipeline_tests.defs.edited import assert_mips_right
from sv_pipeline_tests.defs.test_dagster_dev import wait_for_backfill
from sv_pipeline_tests.editable import neighbours_of_two_objects, two_parts_of_an_object
from sv_pipeline_tests.ingest.builds import assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("celery")]

SHAPE = (64, 64, 32)
CHUNK = (32, 32, 16)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, gcs_process: GcsControl, bigtable_emulator: str
) -> Iterator[Deployment]:
    need(find_redis(), "a Redis server (redis-server)")
    need(find_postgres(), "a Postgres server (initdb)")
    gcs_process.clear()
    with deployment(tmp_path_factory.mktemp("deployment"), gcs_process, bigtable_emulator) as running:
        yield running
    gcs_process.clear()


def raw_config(folder: str, graph_id: str, **changes: Any) -> dict[str, Any]:
    """A graph whose source, watershed and table are all in ``folder`` and its table's store."""
    volume = synthetic_neuropil(SHAPE, seed=5)
    segmentation = volume.segmentation.copy()
    segmentation[:21, :21, :9] = 0
    for name, labels in (("segmentation", segmentation), ("bodies", volume.bodies)):
        url = f"{folder}source/{name}"
        create_volume(
            url,
            resolution=tuple(map(float, volume.resolution)),
            voxel_offset=(0, 0, 0),
            size=SHAPE,
            chunk_size=CHUNK,
        )
        open_volume(url, writable=True).write(labels.astype(np.uint64)).result()
    return {
        "graph_id": graph_id,
        "data_source": {"WATERSHED": f"{folder}watershed"},
        "source": {"segmentation": f"{folder}source/segmentation", "agglomeration": f"{folder}source/bodies"},
        "graph_config": {"CHUNK_SIZE": list(CHUNK), "ID_PREFIX": f"t{uuid.uuid4().hex[:8]}_"},
        "ocdbt_config": {"populate_layer": 2, "populate_method": "parts"},
        "ingest": {"workers": 1, "chunks_per_batch": 1},
        **changes,
    }


def registered(running: Deployment, graph_id: str, **changes: Any) -> Dataset:
    bigtable = {"TYPE": "bigtable", "CONFIG": {"PROJECT": "project", "INSTANCE": "instance"}}
    raw = raw_config(running.gcs.new_bucket(), graph_id, backend_client=bigtable, **changes)
    dataset = stages.register(parse_config(raw), running.home)
    wait_for(lambda: graph_id in running.ui.partitions("watershed"), "the sensor adds the graph as a partition")
    wait_for(lambda: f"{graph_id}|L02" in running.ui.partitions("layer"), "the sensor adds its layers")
    return dataset


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> OpenGraph:
    """The same graph, built and edited by one process on a local disk."""
    folder = tmp_path_factory.mktemp("twin")
    dataset = stages.register(parse_config(raw_config(f"{folder}/", "tissue")), str(folder / "home"))
    run.ingest(dataset)
    return open_graph("tissue", dataset.home)


@pytest.fixture(scope="module")
def graph(running: Deployment, twin: OpenGraph) -> OpenGraph:
    """A graph that the deployment has built while each of its parts was killed once."""
    dataset = registered(running, "tissue")
    running.gcs.add_fault(method="POST", delay=0.7)  # so that there is a middle to be killed in
    running.gcs.add_fault(method="GET", match="edges", delay=0.7)
    assets = ("watershed", "base_ocdbt", "chunked_graph", "fork", "reader_contract")
    backfill = running.ui.backfill({name: ["tissue"] for name in assets})

    pool_process = running.pool_of(running.worker_at("label_batch"))[0]
    pool_process.kill()

    worker = running.worker_at("edge_batch")
    orphans = running.pool_of(worker)
    running.processes[worker].kill()
    running.start(worker)
    assert not psutil.wait_procs(orphans, 10)[1], "the pool ends with its worker"

    running.worker_at("run_batch[graph")
    running.redis.kill()
    time.sleep(2)
    running.redis.start()

    running.worker_at("run_batch[voxels")
    running.processes["code"].kill()
    time.sleep(2)
    running.start("code")
    running.gcs.clear()

    assert wait_for_backfill(running.ui, backfill) == "COMPLETED_SUCCESS"
    return open_graph("tissue", dataset.home)


def test_an_ingest_in_which_each_part_was_killed_equals_an_ingest_alone(graph: OpenGraph, twin: OpenGraph) -> None:
    assert_same(graph.dataset, twin.dataset)
    assert verify_dataset(graph.dataset).ok


def test_the_workers_keep_nothing_and_their_logs_are_in_the_bucket(running: Deployment, graph: OpenGraph) -> None:
    logs = kv.list_keys(f"gs://{running.environment['SV_PIPELINE_LOG_BUCKET']}/compute_logs")
    assert any(name.endswith(".err") for name in logs)
    assert not [path for name in WORKERS for path in (running.folder / name / "work").iterdir()]
    servers = [
        path for name in ("code", "webserver", "daemon") for path in (running.folder / name / "dagster").iterdir()
    ]
    assert {path.name for path in servers} <= {"dagster.yaml", ".logs_queue", ".telemetry", "logs"}


def test_edits_through_jobs_and_a_recovered_edit_equal_edits_alone(
    running: Deployment, graph: OpenGraph, twin: OpenGraph
) -> None:
    source, sink = neighbours_of_two_objects(twin)
    request = {"graph_id": "tissue", "source": [list(source)], "sink": [list(sink)]}
    assert running.ui.wait_for_run(running.ui.launch("merge_job", request)) == "SUCCESS"
    twin.merge([source], [sink])

    source, sink = two_parts_of_an_object(twin)
    request = {"graph_id": "tissue", "source": [list(source)], "sink": [list(sink)]}
    assert running.ui.wait_for_run(running.ui.launch("split_job", request)) == "SUCCESS"
    twin.split([source], [sink])

    # The terminal of a proofreader dies in the middle of a split of a supervoxel. Sensors do the rest.
    source, sink = two_parts_of_an_object(twin, of_a_supervoxel=True)
    points = [f"--source={','.join(map(str, source))}", f"--sink={','.join(map(str, sink))}"]
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", running.home, "split", "tissue", *points]
    environment = {**running.environment, "SV_PIPELINE_FAILPOINT": "half switched:kill"}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    twin.split([source], [sink])
    recovered = wait_for(lambda: running.ui.runs_of("recover_operation_job"), "the sensor finds the edit", 120)
    assert running.ui.wait_for_run(recovered[0][0]) == "SUCCESS"
    wait_for(lambda: graph.dataset.fork.lag().entries == 0, "the coarser mips are brought up to date", 120)
    assert_mips_right(graph.dataset)
    assert_same_objects(graph, twin)
    assert verify_dataset(graph.dataset).ok


def assert_same_objects(graph: OpenGraph, twin: OpenGraph) -> None:
    """The same background, and the same objects but for their ids, at every third voxel along each axis."""
    one, other = (np.asarray(g.dataset.fork.open().read().result())[::3, ::3, ::3] for g in (graph, twin))
    np.testing.assert_array_equal(one > 0, other > 0)
    points = (3 * np.argwhere(one)).tolist()
    pairs = set(zip(graph.roots(points).tolist(), twin.roots(points).tolist(), strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


@pytest.fixture(scope="module")
def coordinated(running: Deployment) -> Dataset:
    """A graph whose populate tasks need a coordinator, set up but without layers."""
    method = {"populate_layer": 2, "populate_method": "coordinator"}
    dataset = registered(running, "coordinated", ocdbt_config=method)
    run.ingest(dataset, mode=IngestMode.SETUP, workers=1)
    return dataset


def test_a_run_that_needs_a_coordinator_says_what_to_set(running: Deployment, coordinated: Dataset) -> None:
    refused = running.ui.materialize("layer", "coordinated", "L02")
    assert running.ui.wait_for_run(refused) == "FAILURE"
    assert ADDRESS_VARIABLE in said_by(running, refused)
    assert HOST_VARIABLE in said_by(running, refused)


def test_without_workers_a_run_says_so_and_can_be_canceled(running: Deployment, coordinated: Dataset) -> None:
    for name in WORKERS:
        assert not running.processes[name].stop(30), "SIGTERM stops a worker and its pool"
    waiting = running.ui.materialize("layer", "coordinated", "L02")
    wait_for(lambda: "no Celery worker listens" in said_by(running, waiting), "the run says what is missing", 60)
    before = time.monotonic()
    terminate(running, waiting)
    assert running.ui.wait_for_run(waiting, 60) == "CANCELED"
    assert time.monotonic() - before < 45

    for name in WORKERS:
        running.processes[name].environment[HOST_VARIABLE] = "127.0.0.1"
        running.start(name)
    wait_for(lambda: running.queued() == 0, "the workers take the canceled step from the queue", 60)
    assert "STEP_START" not in said_by(running, waiting)


def test_a_run_starts_a_coordinator_that_ends_with_it(running: Deployment, coordinated: Dataset) -> None:
    built = running.ui.materialize("layer", "coordinated", "L02")
    assert running.ui.wait_for_run(built) == "SUCCESS"
    address = running.ui.tags(built)["sv/coordinator"]
    wait_for(lambda: not listens(int(address.rpartition(":")[2])), "the coordinator ends", 30)
    run.ingest(coordinated)
    assert verify_dataset(coordinated).ok


def said_by(running: Deployment, run_id: str) -> str:
    text = (
        "query($i:ID!){logsForRun(runId:$i){... on EventConnection{events{... on MessageEvent{message eventType}"
        " ... on ExecutionStepFailureEvent{failureMetadata{description}}}}}}"
    )
    events = running.ui.query(text, i=run_id)["logsForRun"]["events"]
    keys = ("eventType", "message", "failureMetadata")
    return "\n".join(" ".join(str(event.get(key)) for key in keys) for event in events)


def terminate(running: Deployment, run_id: str) -> None:
    text = "mutation($i:String!){terminateRun(runId:$i){__typename ... on TerminateRunFailure{message}}}"
    assert running.ui.query(text, i=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
