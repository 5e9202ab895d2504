"""The upkeep of stores in Dagster: an asset shows files, a job and a schedule clean up, a job removes a graph."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.defs.backup import PLACE_VARIABLE, backup_schedule
from sv_pipeline.defs.garbage import collect_garbage_schedule, fork_files, garbage_report_schedule
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset, Registry, default_home
from sv_pipeline.storage import kv
from sv_pipeline.upkeep.backup import backups_in
from sv_pipeline_tests.defs.edited import edit


def backup_requests(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 1, 2, 3, 30),
        resources={"pipeline": PipelineResource(home=default_home())},
    ) as context:
        return [answer for answer in backup_schedule(context) if isinstance(answer, dg.RunRequest)]


def test_a_graph_is_measured_cleaned_up_backed_up_and_removed(
    dataset: Dataset, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(dataset, workers=1)
    instance.add_dynamic_partitions(str(graphs.name), [dataset.graph_id])
    place = str(tmp_path / "backups")
    assert not backup_requests(instance), "no place is set"
    monkeypatch.setenv(PLACE_VARIABLE, place)
    (request,) = backup_requests(instance)
    defs().resolve_job_def("backup_job").execute_in_process(instance=instance, run_config=request.run_config)
    assert len(backups_in(place)[dataset.graph_id]) == 1

    edit(dataset, 1)
    orphan = f"{dataset.graph_id}_d/orphan"
    kv.write_bytes(dataset.fork.folder, orphan, b"unused")
    resources = {"pipeline": PipelineResource(home=default_home())}
    shown = dg.materialize(
        [fork_files], partition_key=dataset.graph_id, instance=instance, resources=resources, selection=[fork_files]
    )
    (event,) = shown.asset_materializations_for_node("fork_files")
    numbers = {name: value.value for name, value in event.metadata.items()}
    assert (numbers["orphan_files"], numbers["collectable_bytes"], numbers["policy"]) == (1, 0, "forever")
    assert numbers["latest_bytes"] <= numbers["reachable_bytes"] <= numbers["stored_bytes"]

    keys = set()
    for schedule in (garbage_report_schedule, collect_garbage_schedule):
        with dg.build_schedule_context(
            instance=instance, scheduled_execution_time=datetime(2026, 1, 2, 4, 15), resources=resources
        ) as context:
            (request,) = schedule(context)
        assert isinstance(request, dg.RunRequest)
        assert request.partition_key == dataset.graph_id
        keys.add(request.run_key)
    assert len(keys) == 2
    measure = defs().resolve_job_def("garbage_report_job")
    (event,) = measure.execute_in_process(
        instance=instance, partition_key=dataset.graph_id
    ).asset_materializations_for_node("fork_files")
    measured = event.metadata["report"].value
    assert isinstance(measured, dict)
    assert measured["collected"] is None, "nothing is deleted"
    result = (
        defs()
        .resolve_job_def("collect_garbage_job")
        .execute_in_process(instance=instance, partition_key=dataset.graph_id)
    )
    (event,) = result.asset_materializations_for_node("fork_files")
    report = event.metadata["report"].value
    assert isinstance(report, dict)
    assert report["collected"]["files"] == 0, "the orphan is younger than the grace period"
    assert kv.read_bytes(dataset.fork.folder, orphan) == b"unused"

    def retire(**config: object) -> set[str]:
        run_config = {"ops": {"retire_graph": {"config": {"graph_id": dataset.graph_id, **config}}}}
        defs().resolve_job_def("retire_graph_job").execute_in_process(instance=instance, run_config=run_config)
        return {*instance.get_dynamic_partitions(str(graphs.name))}

    assert retire() == {dataset.graph_id}, "it is only listed"
    assert retire(apply=True) == set()
    assert Registry(dataset.home).graph_ids() == []
