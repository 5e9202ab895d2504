"""A run of an edit that is really killed: its events and tags name the operation, and its page says what follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.defs.edit_failures import failed_edits_sensor
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.operations import ownership
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.recovery import find_unfinished
from sv_pipeline.testing.harness.actors import DONE
from sv_pipeline_tests.defs.dev_server import PROJECT
from sv_pipeline_tests.recovery.conftest import Theatre
from sv_pipeline_tests.recovery.conftest import fork_server as fork_server
from sv_pipeline_tests.recovery.conftest import stages as stages
from sv_pipeline_tests.recovery.conftest import theatre as theatre

KILLED = -9


@pytest.fixture
def play(theatre: Callable[..., Theatre], home: str, monkeypatch: pytest.MonkeyPatch) -> Theatre:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.1)
    return theatre("sqlite", Path(home))


def execute(job: str, config: dict[str, object], folder: Path, failpoint: str) -> int:
    """Run a job as ``dagster job execute`` does; its exit code."""
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "sv_pipeline.definitions", "-j", job]
    return subprocess.run(
        [*command, "-c", str(folder / "config.json")],
        env={**os.environ, "DAGSTER_HOME": str(folder), "SV_PIPELINE_FAILPOINT": failpoint},
        cwd=PROJECT,
        check=False,
        capture_output=True,
    ).returncode


@pytest.mark.parametrize("job", ["split_job", "undo_job"])
def test_a_run_that_is_killed_while_it_writes_names_its_operation(play: Theatre, tmp_path: Path, job: str) -> None:
    folder = tmp_path / "dagster_home"
    folder.mkdir()
    shutil.copy(PROJECT / "instance" / "dagster.yaml", folder)
    kind = {"split_job": "supervoxel split", "undo_job": "undo of a supervoxel split"}[job]
    request = play.request(kind)
    config = {"graph_id": "stage"} | {k: request[k] for k in ("source", "sink", "operation") if k in request}
    assert execute(job, config, folder, "half switched:kill") == KILLED
    (dead,) = find_unfinished(play.scene.graph)
    operation = dead.operation_id
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        (run,) = instance.get_runs(dg.RunsFilter(job_name=job))
        assert run.tags["sv/op_id"] == str(operation)
        assert run.tags["sv/graph_id"] == "stage"
        assert f"operation {operation} of graph stage has begun" in messages(instance, run)
        instance.report_run_failed(run)  # as the monitor of a deployment does, once the process is gone
        (failure,) = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
        event = failure.event_log_entry.dagster_event
        assert event is not None
        with dg.build_run_status_sensor_context(
            sensor_name=failed_edits_sensor.name,
            dagster_event=event,
            dagster_instance=instance,
            dagster_run=instance.get_run_by_id(run.run_id) or run,
            resources={"pipeline": PipelineResource(home=os.environ["SV_PIPELINE_HOME"])},
        ) as context:
            failed_edits_sensor(context)
        assert f"Operation {operation} is unfinished, and recovery will bring it to its end" in messages(instance, run)
    assert play.do(do="heal") == DONE
    assert read_operations(play.scene.graph, [operation])[0].status is OperationStatus.SUCCESS
    play.scene.prove()
    assert play.scene.objects() == play.twin(kind)


def messages(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    return "\n".join(
        str(entry.dagster_event and entry.dagster_event.message) for entry in instance.all_logs(run.run_id)
    )


def test_an_operation_is_abandoned_by_a_job(play: Theatre, instance: dg.DagsterInstance) -> None:
    assert play.do(**play.request("supervoxel split"), failpoint="half switched:kill") == KILLED
    (dead,) = find_unfinished(play.scene.graph)
    config = {"graph_id": "stage", "operation_id": dead.operation_id, "reason": "it fails for ever", "user": "emma"}
    job = defs().resolve_job_def("abandon_operation_job")
    assert job.execute_in_process(run_config=config, instance=instance).success
    (found,) = read_operations(play.scene.graph, [dead.operation_id])
    assert found.status is OperationStatus.EXCEPTION
    assert "emma: it fails for ever" in (found.exception or "")
    play.scene.prove()
    assert play.scene.objects() == play.twin()
    again = job.execute_in_process(run_config=config, instance=instance)
    assert again.success
    assert any("it is finished already" in entry.user_message for entry in instance.all_logs(again.run_id))
    assert read_operations(play.scene.graph, [dead.operation_id])[0].row == found.row
    # What is complete is not said to be abandoned.
    complete = {**config, "operation_id": 1}
    assert not job.execute_in_process(run_config=complete, instance=instance, raise_on_error=False).success
