"""The coordinator's address reaches the steps, a run starts its own, and a worker among others refuses without one."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from sv_pipeline.definitions import defs
from sv_pipeline.defs.coordinator import HOST_VARIABLE
from sv_pipeline.defs.executors import EXECUTOR_VARIABLE
from sv_pipeline.defs.partitions import graphs
from sv_pipeline.defs.resources import PipelineResource
from sv_pipeline.ingest import stages
from sv_pipeline.registry import Dataset
from sv_pipeline.storage.coordinator import ADDRESS_VARIABLE, running_coordinator
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.conftest import small_config
from sv_pipeline_tests.defs.test_assets import failure_of, prepare, run_asset


@pytest.fixture
def coordinated(
    tmp_path: Path, home: str, small_segmentation: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Dataset:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    config = small_config(
        tmp_path, small_segmentation, ocdbt_config={"populate_layer": 3, "populate_method": "coordinator"}
    )
    dataset = stages.register(config, home)
    instance.add_dynamic_partitions(str(graphs.name), [dataset.graph_id])
    prepare(dataset, instance)
    assert run_asset(instance, "layer", f"{dataset.graph_id}|L02").success
    return dataset


def test_a_task_without_the_address_refuses_and_names_the_variable(
    coordinated: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "k8s")
    result = run_asset(instance, "layer", f"{coordinated.graph_id}|L03")
    assert not result.success
    assert ADDRESS_VARIABLE in failure_of(result)
    assert HOST_VARIABLE in failure_of(result)


def test_on_one_machine_a_run_starts_its_own_coordinator(coordinated: Dataset, instance: dg.DagsterInstance) -> None:
    for number in (3, 4):
        assert run_asset(instance, "layer", f"{coordinated.graph_id}|L{number:02d}").success
    assert run_asset(instance, "fork", coordinated.graph_id).success
    assert verify_dataset(coordinated).ok


def test_the_address_of_the_deployment_reaches_the_steps(
    coordinated: Dataset, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_coordinator() as address:
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
        resource = defs().resources["pipeline"]
        assert isinstance(resource, PipelineResource)
        assert resource.coordinator_address(coordinated) == address
        for number in (3, 4):
            assert run_asset(instance, "layer", f"{coordinated.graph_id}|L{number:02d}").success
    assert run_asset(instance, "fork", coordinated.graph_id).success
    assert verify_dataset(coordinated).ok
