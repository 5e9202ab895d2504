"""Results of checks stay with their graph; each night and each change is verified; faults reach people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.defs import verification
from sv_pipeline.defs.assets import reader_contract
from sv_pipeline.defs.checks import red_checks
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.memory import MEMORY_VARIABLE
from sv_pipeline.registry import Dataset, default_home
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.verify import divide
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.edited import damage, edit
from sv_pipeline_tests.defs.test_recovery import webhook as webhook


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """One that a schedule can open again: it does."""
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def two(tmp_path: Path, home: str, small_segmentation: Path, instance: dg.DagsterInstance) -> tuple[Dataset, Dataset]:
    """Two graphs of one watershed."""
    found = []
    for graph_id in ("first", "second"):
        found.append(stages.register(small_config(tmp_path, small_segmentation, graph_id), home))
        ingest(found[-1], workers=1)
    instance.add_dynamic_partitions(str(graphs.name), ["first", "second"])
    return found[0], found[1]


def prove(instance: dg.DagsterInstance, graph_id: str) -> None:
    """Materialize the published spec, with all its checks."""
    job = defs().resolve_implicit_global_asset_job_def()
    selection = [reader_contract.key]
    result = job.get_subset(asset_selection=set(selection)).execute_in_process(
        partition_key=graph_id, instance=instance, raise_on_error=False
    )
    assert result.get_asset_check_evaluations()


def verify(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return (
        defs()
        .resolve_job_def("verify_job")
        .execute_in_process(
            run_config={"ops": {"verify_graph": {"config": config}}}, instance=instance, raise_on_error=False
        )
    )


def spoil_a_lineage(dataset: Dataset) -> None:
    damage(dataset, 0)


def test_a_red_check_stays_red_when_the_next_graph_is_green(
    two: tuple[Dataset, Dataset], instance: dg.DagsterInstance
) -> None:
    spoil_a_lineage(two[0])
    prove(instance, "first")
    assert red_checks(instance, "first") >= {"voxels"}
    prove(instance, "second")
    assert not red_checks(instance, "second")
    assert red_checks(instance, "first") >= {"voxels"}
    # Launched for no partition: each graph keeps a result of its own.
    job = defs().resolve_implicit_global_asset_job_def()
    checks = {dg.AssetCheckKey(reader_contract.key, "voxels")}
    job.get_subset(asset_check_selection=checks).execute_in_process(instance=instance, raise_on_error=False)
    assert "voxels" in red_checks(instance, "first")
    assert not red_checks(instance, "second")


def test_the_verification_of_a_graph_is_that_of_its_checks(
    two: tuple[Dataset, Dataset], instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    assert verify(instance, graph_id="second").success
    assert not webhook
    spoil_a_lineage(two[0])
    assert not verify(instance, graph_id="first").success
    (alert,) = webhook
    assert alert["graph"] == "first"
    assert "NOT sound" in alert["text"]
    assert "voxels" in red_checks(instance, "first")
    assert not red_checks(instance, "second")
    verify(instance, graph_id="first", sample=1, checks=["voxels"])
    verify(instance, graph_id="first", after=0)
    assert "voxels" in red_checks(instance, "first"), "a look at a part turns nothing green"


def tick(schedule: dg.ScheduleDefinition, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime(2026, 1, 2, 2, 30),
        resources={"pipeline": PipelineResource(home=default_home())},
    ) as context:
        return [answer for answer in schedule(context) if isinstance(answer, dg.RunRequest)]


def run(instance: dg.DagsterInstance, request: dg.RunRequest) -> bool:
    result = (
        defs()
        .resolve_job_def("verify_job")
        .execute_in_process(run_config=request.run_config, tags=request.tags, instance=instance, raise_on_error=False)
    )
    return result.success


def test_every_night_each_graph_is_verified_by_a_sample(
    two: tuple[Dataset, Dataset], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(verification.SAMPLE_VARIABLE, "3")
    first, second = tick(verification.verify_nightly_schedule, instance)
    two[0].table.mutate(
        [RowMutation(keys.node_key(counters.last_operation_id(two[0].table) + 1), [columns.LOCK.set(9)])]
    )
    assert run(instance, second)
    assert first.run_key != second.run_key
    spoil_a_lineage(
        two[0]
    )  # mip 0, at its first voxels: not in every sample, but always in what the fork has of its own
    assert not run(instance, first)
    assert red_checks(instance, "first")
    assert not red_checks(instance, "second")


def test_a_graph_that_is_only_being_made_is_not_verified(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    """Neither at night nor by checks that are launched for no partition, however far its making is."""
    job = defs().resolve_implicit_global_asset_job_def()
    checks = job.get_subset(asset_check_selection={dg.AssetCheckKey(reader_contract.key, "voxels")})
    for layer in (None, 2, 3):
        if layer is not None:
            ingest(dataset, layers=[layer], workers=1)
        assert tick(verification.verify_nightly_schedule, instance) == []
        assert tick(verification.verify_changes_schedule, instance) == []
        result = checks.execute_in_process(instance=instance, raise_on_error=False)
        assert [evaluation.passed for evaluation in result.get_asset_check_evaluations()] == [True]
    ingest(dataset, workers=1)
    (night,) = tick(verification.verify_nightly_schedule, instance)
    assert night.tags[verification.GRAPH_TAG] == dataset.graph_id


def test_what_operations_changed_is_verified_once(
    two: tuple[Dataset, Dataset], instance: dg.DagsterInstance, webhook: list[dict[str, Any]]
) -> None:
    assert not tick(verification.verify_changes_schedule, instance)
    dataset = two[1]
    number = counters.new_operation_id(dataset.table)
    dataset.table.mutate(
        [RowMutation(keys.node_key(number), [columns.USER.set("me"), columns.OPERATION_STATUS.set(2)])]
    )
    (request,) = tick(verification.verify_changes_schedule, instance)
    assert request.tags[verification.GRAPH_TAG] == "second"
    assert run(instance, request)
    assert not tick(verification.verify_changes_schedule, instance)
    assert not webhook
    # An edit whose voxels the table knows nothing of.
    edit(dataset, counters.new_operation_id(dataset.table))
    (request,) = tick(verification.verify_changes_schedule, instance)
    assert not run(instance, request)
    assert red_checks(instance, "second") >= {"pair", "lineage"}
    assert not red_checks(instance, "first")
    assert webhook[-1]["graph"] == "second"
    (again,) = tick(verification.verify_changes_schedule, instance)
    assert again.run_key == request.run_key, "the same changes are not verified twice"


def test_a_graph_that_is_gone_hides_no_other_and_one_that_is_made_anew_is_verified(
    two: tuple[Dataset, Dataset], instance: dg.DagsterInstance
) -> None:
    # A verification of a graph of this name, whose operations had other numbers.
    tags = {verification.GRAPH_TAG: "second", verification.UNTIL_TAG: "1000"}
    instance.add_run(dg.DagsterRun("verify_job", status=dg.DagsterRunStatus.SUCCESS, tags=tags))
    number = counters.new_operation_id(two[1].table)
    two[1].table.mutate([RowMutation(keys.node_key(number), [columns.OPERATION_STATUS.set(2)])])
    two[0].table.drop()
    (request,) = tick(verification.verify_changes_schedule, instance)
    assert request.tags[verification.GRAPH_TAG] == "second"
    assert run(instance, request)
    assert not tick(verification.verify_changes_schedule, instance)
    (night,) = tick(verification.verify_nightly_schedule, instance)
    assert night.tags[verification.GRAPH_TAG] == "second"
    # Checks that are launched for no partition look at all graphs.
    job = defs().resolve_implicit_global_asset_job_def()
    found = {dg.AssetCheckKey(reader_contract.key, "voxels")}
    result = job.get_subset(asset_check_selection=found).execute_in_process(instance=instance, raise_on_error=False)
    checked = {evaluation.partition: evaluation for evaluation in result.get_asset_check_evaluations()}
    assert checked["second"].passed
    assert not checked[None].passed
    assert "does not exist" in str(checked[None].description)


@pytest.mark.parametrize("value", ["on", "off"])
def test_one_switch_for_both_schedules(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(verification.SWITCH_VARIABLE, value)
    wanted = dg.DefaultScheduleStatus.STOPPED if value == "off" else dg.DefaultScheduleStatus.RUNNING
    assert verification.default_status() is wanted


def by_parts(instance: dg.DagsterInstance, graph_id: str, **config: Any) -> dg.ExecuteInProcessResult:
    job = defs().resolve_job_def("verify_by_parts_job")
    return job.execute_in_process(
        run_config={"ops": {"plan_verification": {"config": config}}},
        partition_key=graph_id,
        instance=instance,
        raise_on_error=False,
    )


def test_a_graph_is_verified_by_parts(
    two: tuple[Dataset, Dataset],
    instance: dg.DagsterInstance,
    webhook: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each step leaves a result, the last one adds up, and what is wrong makes the run fail and turns checks red."""
    monkeypatch.setattr(divide, "BYTES_PER_NODE", 1 << 20)
    monkeypatch.setenv(MEMORY_VARIABLE, "1")
    good = by_parts(instance, "first")
    assert good.success
    steps = {event.step_key for event in good.all_events if event.event_type_value == "ASSET_OBSERVATION"}
    assert len([step for step in steps if step.startswith("verify_parts")]) > 8
    assert [step for step in steps if step.startswith("verify_roots")]
    assert not red_checks(instance, "first")
    spoil_a_lineage(two[0])
    assert not by_parts(instance, "first").success
    assert red_checks(instance, "first") >= {"voxels"}
    assert webhook
    assert webhook[-1]["graph"] == "first"
    assert by_parts(instance, "second").success
