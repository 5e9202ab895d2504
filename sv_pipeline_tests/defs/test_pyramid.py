"""Coarser mips in Dagster: a sensor that starts runs, an asset that shows the lag, a check, and a rebuild."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.backoff import Backoff
from sv_pipeline.definitions import defs
from sv_pipeline.defs import pyramid_sensor
from sv_pipeline.defs.partitions import MAX_MIP, graphs, mip_key
from sv_pipeline.defs.pyramid_sensor import downsample_sensor
from sv_pipeline.defs.resources import LAG_VARIABLE
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.run import ingest
from sv_pipeline.pyramid.mip_maker import open_pyramid
from sv_pipeline.pyramid.rebuild import begin_rebuild
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.fork.records import pending_key
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.edited import assert_mips_right, damage, edit
from sv_pipeline_tests.defs.test_assets import failure_of

QUIET = {
    "execution": {"config": {"in_process": {}}},
    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
}


@pytest.fixture
def built(dataset: Dataset, instance: dg.DagsterInstance) -> Dataset:
    ingest(dataset, workers=1)
    instance.add_dynamic_partitions(str(graphs.name), [dataset.graph_id])
    return dataset


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    definitions = defs()
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, definitions=definitions, resources=definitions.resources
    ) as context:
        result = downsample_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def run(instance: dg.DagsterInstance, request: dg.RunRequest, job: str = "downsample_job") -> dg.ExecuteInProcessResult:
    return (
        defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=QUIET,
            raise_on_error=False,
        )
    )


def pending(dataset: Dataset) -> list[int]:
    return [entry.operation_id for entry in dataset.fork.pending()]


def reason(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_edits_become_one_run_that_brings_all_mips_up_to_date(built: Dataset, instance: dg.DagsterInstance) -> None:
    assert "up to date" in reason(tick(instance))
    edit(built, 1)
    edit(built, 2, at=(20, 10, 8))
    (request,) = tick(instance).run_requests or []
    assert request.partition_key == built.graph_id
    assert request.tags["sv/operations"] == "1, 2"
    assert run(instance, request).success
    assert pending(built) == []
    assert_mips_right(built)
    assert "up to date" in reason(tick(instance))


def test_the_run_shows_the_lag_and_all_mips_around_the_edit(built: Dataset, instance: dg.DagsterInstance) -> None:
    edit(built, 1, age=120)
    (request,) = tick(instance).run_requests or []
    result = run(instance, request)
    (event,) = result.asset_materializations_for_node("pyramid")
    numbers = {name: value.value for name, value in event.metadata.items()}
    assert numbers["operations_found"] == numbers["boxes_found"] == 1
    assert numbers["oldest_waited_seconds"] == pytest.approx(120, abs=30)
    assert numbers["operations_behind"] == numbers["boxes_behind"] == numbers["seconds_behind"] == 0
    assert numbers["storage_chunks_written"] > 0
    assert "data:image/png" in str(numbers["mips_around_the_edit"])


def test_the_sensor_reports_the_lag_over_time_until_nothing_is_behind(
    built: Dataset, instance: dg.DagsterInstance
) -> None:
    edit(built, 1, age=50)
    late = tick(instance)
    (observed,) = late.asset_events
    assert isinstance(observed, dg.AssetObservation)
    assert observed.partition == built.graph_id
    assert observed.metadata["operations_behind"].value == 1
    assert float(str(observed.metadata["seconds_behind"].value)) >= 50
    assert run(instance, (late.run_requests or [])[0]).success
    done = tick(instance, late.cursor)
    assert [event.metadata["operations_behind"].value for event in done.asset_events] == [0]
    assert tick(instance, done.cursor).asset_events == []


def checks_of(events: Sequence[object]) -> list[tuple[bool, str]]:
    return [(e.passed, e.severity.value) for e in events if isinstance(e, dg.AssetCheckEvaluation)]


def test_the_check_alerts_above_the_threshold_and_is_taken_back(
    built: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAG_VARIABLE, "100")
    edit(built, 1, age=50)
    assert checks_of(tick(instance).asset_events) == []
    edit(built, 2, age=150)
    late = tick(instance)
    assert checks_of(late.asset_events) == [(False, "WARN")]
    assert run(instance, (late.run_requests or [])[0]).get_asset_check_evaluations()[0].passed
    assert checks_of(tick(instance, late.cursor).asset_events) == [(True, "WARN")]


def test_a_tick_while_a_run_is_at_it_starts_no_second_one(built: Dataset, instance: dg.DagsterInstance) -> None:
    edit(built, 1)
    (request,) = tick(instance).run_requests or []
    queued = instance.create_run_for_job(
        defs().resolve_job_def("downsample_job"),
        tags={**request.tags, "dagster/partition": str(request.partition_key)},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert f"run {queued.run_id[:8]} is working on it" in reason(tick(instance))


def test_after_runs_that_failed_the_sensor_waits_and_then_tries_again(
    built: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(built, 1)
    (first,) = tick(instance).run_requests or []
    for _ in range(2):
        instance.create_run_for_job(
            defs().resolve_job_def("downsample_job"),
            tags={**first.tags, "dagster/partition": str(first.partition_key)},
            status=dg.DagsterRunStatus.FAILURE,
        )
    assert "2 runs failed in a row; next attempt in" in reason(tick(instance))
    monkeypatch.setattr(pyramid_sensor, "PYRAMID_BACKOFF", Backoff(0.0))
    (again,) = tick(instance).run_requests or []
    assert again.run_key != first.run_key
    assert run(instance, again).success
    assert pending(built) == []


def test_one_graph_that_cannot_be_read_does_not_stop_the_others(
    built: Dataset, tmp_path: Path, small_segmentation: Path, instance: dg.DagsterInstance
) -> None:
    other = stages.register(small_config(tmp_path / "other", small_segmentation, "other"), built.home)
    ingest(other, workers=1)
    stages.register(small_config(tmp_path / "unbuilt", small_segmentation, "unbuilt"), built.home)
    edit(other, 1)
    store = built.fork.store()
    with store.transaction() as transaction:
        store.kv.with_transaction(transaction).write(pending_key(7), b"rubbish").result()
    result = tick(instance)
    (request,) = result.run_requests or []
    assert request.partition_key == "other"
    assert [list(r.partition_keys) for r in result.dynamic_partitions_requests or []] == [["other"]]
    assert checks_of(result.asset_events) == [(False, "ERROR")]
    instance.add_dynamic_partitions(str(graphs.name), ["other"])
    assert run(instance, request).success
    assert "does not list boxes" in reason(tick(instance))


def test_two_runs_at_once_share_the_work_and_end_right(built: Dataset, instance: dg.DagsterInstance) -> None:
    """What happens if somebody presses the button while the sensor's run is at it."""
    from concurrent.futures import ThreadPoolExecutor

    for number in range(1, 7):
        edit(built, number, at=(9 * number, 7 * number, 3 * number))
    (request,) = tick(instance).run_requests or []

    def run_apart(_: int) -> dg.ExecuteInProcessResult:
        # Deployments of their own: two threads cannot write to one that is in memory.
        with dg.DagsterInstance.ephemeral() as own:
            own.add_dynamic_partitions(str(graphs.name), [built.graph_id])
            return run(own, request)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run_apart, range(2)))
    assert all(result.success for result in results)
    assert pending(built) == []
    assert_mips_right(built)


# -- rebuild ----------------------------------------------------------------------------------------------------------


def rebuild(instance: dg.DagsterInstance, dataset: Dataset, mip: int) -> dg.ExecuteInProcessResult:
    key = dg.MultiPartitionKey({"graph": dataset.graph_id, "mip": mip_key(mip)})
    return run(instance, dg.RunRequest(partition_key=key), "rebuild_mip_job")


def test_mips_are_rebuilt_one_partition_each_bottom_up(built: Dataset, instance: dg.DagsterInstance) -> None:
    mips = len(Base(built.watershed_url).info().volume.scales)
    for mip in range(1, mips):
        damage(built, mip)
    for mip in range(1, mips):
        assert rebuild(instance, built, mip).success
    assert_mips_right(built)
    (request,) = tick(instance).run_requests or []
    assert request.tags["sv/operations"] == "0"
    assert run(instance, request).success
    assert_mips_right(built)
    assert pending(built) == []


def test_a_mip_refuses_while_the_one_below_is_being_rebuilt(built: Dataset, instance: dg.DagsterInstance) -> None:
    begin_rebuild(open_pyramid(built.fork), 1)
    refused = rebuild(instance, built, 2)
    assert not refused.success
    assert "of mip 1, which it is made from, are left" in failure_of(refused)
    assert rebuild(instance, built, 1).success
    assert rebuild(instance, built, 2).success


def test_a_rebuild_that_lost_a_batch_never_ends_as_success(
    built: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sv_pipeline.pyramid.rebuild_batches import MipRebuild

    monkeypatch.setattr("sv_pipeline.pyramid.rebuild_batches.BATCH_VOXELS", 1 << 16)
    whole, real = MipRebuild(built, 1).plan(), MipRebuild.run
    assert len(whole) > 2
    with monkeypatch.context() as patch:
        patch.setattr(MipRebuild, "plan", lambda self: whole[:-1])  # as a re-execution from failure may drop steps
        lost = rebuild(instance, built, 1)
    assert not lost.success
    assert "is not rebuilt" in failure_of(lost)
    ran: list[str] = []

    def noted(self: MipRebuild, key: str) -> object:
        ran.append(key)
        return real(self, key)

    monkeypatch.setattr(MipRebuild, "run", noted)
    assert rebuild(instance, built, 1).success
    assert ran == whole[-1:], "finished boxes are not rebuilt twice"
    assert_mips_right(built)


def test_a_mip_that_a_graph_does_not_have_is_refused_with_those_that_it_has(
    built: Dataset, instance: dg.DagsterInstance
) -> None:
    last = len(Base(built.watershed_url).info().volume.scales) - 1
    refused = rebuild(instance, built, MAX_MIP)
    assert not refused.success
    assert f"there is no mip {MAX_MIP} to rebuild: mip {last} is the last one of the graph" in failure_of(refused)
    assert f"There are mips 1 to {last}." in failure_of(refused)
