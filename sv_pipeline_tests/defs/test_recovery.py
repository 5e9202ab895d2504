"""The sensor finds dead edits once they have not moved for long enough; the job heals them; failures reach people."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from sv_pipeline.backoff import Backoff
from sv_pipeline.config import parse_config
from sv_pipeline.definitions import defs
from sv_pipeline.defs import recovery
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.edits import undo
from sv_pipeline.ingest import stages as ingest_stages
from sv_pipeline.operations import ownership
from sv_pipeline.recovery import Watched, find_unfinished, recover
from sv_pipeline.recovery.run import STAGES
from sv_pipeline.registry import default_home
from sv_pipeline.reports.alerts import WEBHOOK_VARIABLE, Alerts
from sv_pipeline.table.columns import INDEFINITE_LOCK
from sv_pipeline.table.interface import DeleteCells, RowMutation
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.conftest import fork_server as fork_server
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre

KILLED = -9


@pytest.fixture
def play(theatre: Callable[..., Theatre], home: str, monkeypatch: pytest.MonkeyPatch) -> Theatre:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    return theatre("sqlite", Path(home))


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A local server that keeps what is posted to it."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(WEBHOOK_VARIABLE, f"http://127.0.0.1:{server.server_port}/hook")
    yield got
    server.shutdown()
    server.server_close()


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    resources = {"pipeline": PipelineResource(home=default_home())}
    with dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs(), resources=resources) as context:
        return recovery.stuck_operations_sensor.evaluate_tick(context)


def run(instance: dg.DagsterInstance, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    job = defs().resolve_job_def("recover_operation_job")
    return job.execute_in_process(
        run_config=request.run_config, tags=request.tags, instance=instance, raise_on_error=False
    )


def test_a_killed_edit_is_found_and_healed(
    play: Theatre, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, webhook: list[dict[str, Any]]
) -> None:
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    monkeypatch.setenv(recovery.AGE_VARIABLE, "0s")
    found = tick(instance)
    (request,) = found.run_requests
    assert request.run_key == "stage:15:1"
    result = run(instance, request)
    assert result.success
    events = [e for e in result.all_events if e.event_type_value == "ASSET_OBSERVATION"]
    stages = {
        o.metadata["stage"].value: o.metadata for e in events if (o := e.asset_observation_data.asset_observation)
    }
    assert list(stages) == list(STAGES)
    assert stages["roll back"]["voxels put back"].value > 0
    assert stages["make again"]["outcome"].value == "replayed"
    assert stages["prove"]["status"].value == "SUCCESS"
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    assert "data:image/png;base64" in output.step_output_data.metadata["before_and_after"].value
    assert output.step_output_data.metadata["view it"].value.endswith(" view stage --operation 15")
    (news,) = webhook
    assert news["healed"]
    assert news["good"]
    assert "voxels of generation" in news["text"]
    play.scene.prove()
    assert play.scene.objects() == play.twin("supervoxel split")
    assert not tick(instance, found.cursor).run_requests
    # A second attempt, after one that died between its work and its news, tells people what it finds.
    assert run(instance, request).success
    assert len(webhook) == 1
    second = dg.RunRequest(run_config=request.run_config, tags={**request.tags, recovery.ATTEMPT_TAG: "2"})
    assert run(instance, second).success
    assert webhook[-1]["good"]
    assert len(webhook) == 2


def test_what_moves_or_is_young_is_left_alone(play: Theatre, instance: dg.DagsterInstance) -> None:
    assert play.do(**play.request("merge"), failpoint="half switched:kill") == KILLED
    first = tick(instance)
    assert not first.run_requests
    assert "has not moved for 0 s" in first.skip_message
    notes = json.loads(first.cursor)
    note = notes["stage"]["operation 15"]
    note["unchanged since"] = str(datetime.fromisoformat(note["unchanged since"]) - timedelta(seconds=601))
    assert len(tick(instance, json.dumps(notes)).run_requests) == 1
    note["owner"] = "another-owner 7"
    assert not tick(instance, json.dumps(notes)).run_requests, "it has moved since"


def test_what_the_sensor_has_watched_is_not_watched_again(play: Theatre, instance: dg.DagsterInstance) -> None:
    assert play.do(**play.request("merge"), failpoint="half switched:kill") == KILLED
    (one,) = find_unfinished(play.scene.graph)
    for seen, seen_for, watches in ((one.signature, 60.0, False), ("another 3", 60.0, True)):
        said: list[str] = []

        def tell(stage: str, _what: dict[str, Any], said: list[str] = said) -> None:
            said.append(stage)

        waited: list[float] = []
        if watches:
            assert play.do(**play.request("merge"), failpoint="half switched:kill") == KILLED
        operation = max(found.operation_id for found in find_unfinished(play.scene.graph))
        watched = Watched(seen, seen_for)
        recover(play.scene.graph, operation, watched=watched, progress=waited.append, tell=tell)
        assert bool(waited) is watches
        assert said == list(STAGES)
        if not watches:
            undo(play.scene.graph, operation, "tester")
    play.scene.prove()


def test_an_operation_that_does_not_exist_is_named_in_one_sentence(
    play: Theatre, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    result = run(instance, dg.RunRequest(run_config={"graph_id": "stage", "operation_id": 999}, tags={}))
    assert not result.success
    assert not [e for e in result.all_events if e.event_type_value in ("STEP_SUCCESS", "STEP_UP_FOR_RETRY")]
    (failure,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert "there is no operation 999 in graph 'stage'" in str(failure.step_failure_data.user_failure_data.description)
    (alert,) = webhook
    assert "there is no operation 999 in graph 'stage'" in alert["text"]


def test_an_operation_that_is_finished_is_proven_and_said_to_be_finished(
    play: Theatre, instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    result = run(instance, dg.RunRequest(run_config={"graph_id": "stage", "operation_id": 1}, tags={}))
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    assert "operation 1 was made: it is finished already" in metadata["nothing to do"].value
    assert metadata["hierarchy: nodes checked"].value
    assert not webhook


def test_a_graph_that_is_only_being_made_is_no_complaint(home: str, instance: dg.DagsterInstance) -> None:
    segmentation = Path(home) / "small.npz"
    segmentation.parent.mkdir(exist_ok=True)
    volume = synthetic_neuropil((64, 64, 32), seed=3)
    np.savez(segmentation, segmentation=volume.segmentation, resolution=np.asarray(volume.resolution))
    config = parse_config(
        {"graph_id": "young", "source": {"segmentation": str(segmentation)}, "data_source": {"watershed": f"{home}/ws"}}
    )
    made = ingest_stages.register(config, home)
    for prepare in (lambda: None, made.table.create):
        prepare()
        assert tick(instance).skip_message == "looked at 1 graphs: nothing is unfinished"


@pytest.mark.parametrize("name", ["recover_operation_job", "abandon_operation_job"])
def test_a_recovery_that_dies_without_a_word_is_told_of(
    play: Theatre, instance: dg.DagsterInstance, webhook: list[dict[str, Any]], name: str
) -> None:
    job = defs().resolve_job_def(name)
    config = {"graph_id": "stage", "operation_id": 15, **({"reason": "no"} if name == "abandon_operation_job" else {})}
    died = instance.create_run_for_job(job, run_config=config)
    instance.report_run_failed(died, "the worker was killed")
    said = run(instance, dg.RunRequest(run_config={"graph_id": "stage", "operation_id": 999}, tags={}))
    assert len(webhook) == 1
    for ended, alerts in ((said.dagster_run, 1), (instance.get_run_by_id(died.run_id), 2)):
        assert ended is not None
        (event,) = [e.dagster_event for e in instance.all_logs(ended.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)]
        context = dg.build_run_status_sensor_context(
            sensor_name="dead_recoveries_sensor", dagster_event=event, dagster_instance=instance, dagster_run=ended
        )
        recovery.dead_recoveries_sensor(context.for_run_failure())
        assert len(webhook) == alerts
    assert "operation 15 of graph stage failed: the worker was killed" in webhook[-1]["text"]
    monitored = {job.name for job in recovery.dead_recoveries_sensor._monitored_jobs}
    assert name in monitored


def test_failures_are_tried_again_then_people_are_told(
    play: Theatre, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, webhook: list[dict[str, Any]]
) -> None:
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    # Somebody has removed a lock by hand: what is stored does not fit, so nothing may be touched.
    key = next(k for k in play.scene.indefinite_locks() if len(k) == 10)
    play.scene.table.mutate([RowMutation(key, [DeleteCells(INDEFINITE_LOCK.key)])])
    before = play.scene.rows()
    monkeypatch.setenv(recovery.AGE_VARIABLE, "0s")
    monkeypatch.setattr(recovery, "RECOVERY_BACKOFF", Backoff(0.0))
    monkeypatch.setattr(recovery, "MOST_RECOVERIES", 2)
    cursor = None
    for attempt in (1, 2):
        found = tick(instance, cursor)
        (request,) = found.run_requests
        assert request.tags[recovery.ATTEMPT_TAG] == str(attempt)
        assert not run(instance, request).success
        cursor = found.cursor
    stopped = tick(instance, cursor)
    assert not stopped.run_requests
    assert "needs a person: 2 recoveries failed" in stopped.skip_message
    assert [(alert["final"], alert["good"]) for alert in webhook] == [(False, False), (True, False)]
    assert "holds" in webhook[-1]["text"]
    assert play.scene.rows() == before


def test_a_webhook_that_is_down_fails_nothing() -> None:
    assert not Alerts("http://127.0.0.1:9/nobody", timeout=0.5).send("text")
    assert not Alerts("file:///etc/hostname").send("text")
    assert Alerts().send("text")
