from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.definitions import defs
from sv_pipeline.defs.launch import materialize_graph
from sv_pipeline.defs.partitions import add_partitions, graph_layers
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.small_work import BATCHES_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.conftest import small_config


def every_asset() -> dg.JobDefinition:
    return defs().resolve_implicit_global_asset_job_def()


def run_asset(
    instance: dg.DagsterInstance, asset: str, partition: str, config: dict[str, object] | None = None
) -> dg.ExecuteInProcessResult:
    job = every_asset()
    return job.execute_in_process(
        instance=instance,
        partition_key=partition,
        asset_selection=[dg.AssetKey(asset)],
        run_config={
            "execution": {"config": {"in_process": {}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            **(config or {}),
        },
        raise_on_error=False,
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    failures = [e for e in result.all_events if e.is_step_failure]
    data = failures[0].step_failure_data.user_failure_data
    assert data is not None, failures[0].step_failure_data.error
    return data.description or ""


def event_of(instance: dg.DagsterInstance, asset: str, partition: str) -> dg.AssetMaterialization:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
    ).records
    assert records[0].asset_materialization is not None
    return records[0].asset_materialization


def batches_of(result: dg.ExecuteInProcessResult) -> list[str]:
    return [e.step_key for e in result.all_events if e.is_step_success and "run_batch" in (e.step_key or "")]


def prepare(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    add_partitions(instance, [dataset])
    for asset in ("watershed", "base_ocdbt"):
        assert run_asset(instance, asset, dataset.graph_id).success


def test_the_assets_of_a_graph_build_it_and_prove_it(
    dataset: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SV_PIPELINE_VIEWER_URL", "https://lab.org/open/abc")
    materialize_graph(every_asset(), dataset, instance)
    assert graph_status(dataset).complete
    assert verify_dataset(dataset).ok
    contract = instance.get_latest_materialization_event(dg.AssetKey("reader_contract"))
    assert contract is not None
    assert "data:image/png" in contract.asset_materialization.metadata["roots"].value
    fork = instance.get_latest_materialization_event(dg.AssetKey("fork"))
    assert fork is not None
    for event in (contract, fork):
        link = event.asset_materialization.metadata["view it"]
        assert link == dg.MetadataValue.url(f"https://lab.org/open/abc/{dataset.graph_id}")
    top = event_of(instance, "layer", f"{dataset.graph_id}|L04")
    assert {"chunks", "nodes", "chunks_per_second", "nodes_picture"} <= set(top.metadata)


def test_a_complete_graph_has_no_missing_partition(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    materialize_graph(every_asset(), dataset, instance)
    done = instance.get_materialized_partitions(dg.AssetKey("layer"))
    assert done == {f"{dataset.graph_id}|L{number:02d}" for number in (2, 3, 4)}
    assert done == set(instance.get_dynamic_partitions(str(graph_layers.name)))


def test_every_invariant_is_evaluated_with_the_graph_named(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    materialize_graph(every_asset(), dataset, instance)
    result = run_asset(instance, "reader_contract", dataset.graph_id)
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) >= 15
    assert all(e.passed for e in evaluations)
    assert {e.metadata["graphs"].value for e in evaluations} == {dataset.graph_id}


def test_a_layer_refuses_before_the_one_below_is_complete(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    prepare(dataset, instance)
    result = run_asset(instance, "layer", f"{dataset.graph_id}|L03")
    assert not result.success
    assert "layer 2" in failure_of(result)
    assert "18 of 18" in failure_of(result)


def test_a_layer_run_again_has_no_batches(
    dataset: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BATCHES_VARIABLE, "0")
    prepare(dataset, instance)
    partition = f"{dataset.graph_id}|L02"
    first, second = (run_asset(instance, "layer", partition) for _ in range(2))
    assert first.success
    assert second.success
    ran = [
        [e.step_key for e in r.all_events if e.is_step_success and "run_batch" in (e.step_key or "")]
        for r in (first, second)
    ]
    assert len(ran[0]) == 5  # 18 chunks in batches of 4
    assert ran[1] == []


@pytest.mark.parametrize("mode", [IngestMode.GRAPH, IngestMode.VOXELS])
def test_modes_do_their_half_and_the_other_can_follow(
    mode: IngestMode, dataset: Dataset, instance: dg.DagsterInstance
) -> None:
    prepare(dataset, instance)
    other = IngestMode.VOXELS if mode is IngestMode.GRAPH else IngestMode.GRAPH
    for chosen in (mode, other):
        for number in (2, 3, 4):
            config = {"ops": {"layer": {"config": {"mode": chosen.name}}}}
            assert run_asset(instance, "layer", f"{dataset.graph_id}|L{number:02d}", config).success
    assert run_asset(instance, "fork", dataset.graph_id).success
    assert graph_status(dataset).complete
    assert verify_dataset(dataset).ok


def test_a_fork_before_the_voxels_is_refused_with_what_to_do(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    prepare(dataset, instance)
    result = run_asset(instance, "fork", dataset.graph_id)
    assert not result.success
    assert "populate" in failure_of(result)


def test_purge_job_makes_a_layer_build_again(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    materialize_graph(every_asset(), dataset, instance)
    job = defs().resolve_job_def("purge_layer_job")
    config = {"ops": {"purge_layer": {"config": {"graph_id": dataset.graph_id, "layer": 3}}}}
    assert job.execute_in_process(instance=instance, run_config=config).success
    states = {row.name: row.state for row in graph_status(dataset).stages}
    assert (states["layer 2"], states["layer 3"], states["layer 4"]) == ("done", "waiting", "waiting")
    for number in (3, 4):
        assert run_asset(instance, "layer", f"{dataset.graph_id}|L{number:02d}").success
    assert verify_dataset(dataset).ok


def test_setup_alone(tmp_path: Path, home: str, small_segmentation: Path, instance: dg.DagsterInstance) -> None:
    dataset = stages.register(small_config(tmp_path, small_segmentation), home)
    prepare(dataset, instance)
    assert dataset.table.exists()
    assert {row.state for row in graph_status(dataset).stages if row.name.startswith("layer")} == {"waiting"}


def test_verify_job_fails_with_the_finding(dataset: Dataset, instance: dg.DagsterInstance) -> None:
    materialize_graph(every_asset(), dataset, instance)
    job = defs().resolve_job_def("verify_job")
    config = {"ops": {"verify_graph": {"config": {"graph_id": dataset.graph_id}}}}
    assert job.execute_in_process(instance=instance, run_config=config).success
    layout = dataset.graph.layout
    orphan = int(layout.node_ids(layout.chunk_ids(1, (0, 0, 0)), 1000))
    dataset.table.mutate([RowMutation(keys.node_key(orphan), [columns.PARENT.set(99)])])
    result = job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)
    assert not result.success
    assert str(orphan) in failure_of(result)
