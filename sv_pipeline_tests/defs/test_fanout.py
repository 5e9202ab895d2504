"""Steps whose batches run in pods instead of in further steps."""

from __future__ import annotations

import dagster as dg
import pytest

from sv_pipeline.defs.launch import materialize_graph
from sv_pipeline.ingest.small_work import BATCHES_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.status import graph_status
from sv_pipeline.testing.servers.kubernetes import KubernetesServer
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.defs.test_assets import every_asset
from sv_pipeline_tests.ingest.indexed_jobs.clusters import cluster as cluster


def test_the_assets_of_a_graph_are_built_in_a_cluster(
    dataset: Dataset, instance: dg.DagsterInstance, cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BATCHES_VARIABLE, "0")
    materialize_graph(every_asset(), dataset, instance)
    assert graph_status(dataset).complete
    assert verify_dataset(dataset).ok
    assert cluster.created() == 6  # labels, edges, three layers, and the voxels of the populate layer
    assert not cluster.jobs


def test_no_job_is_made_for_a_single_batch(
    dataset: Dataset, instance: dg.DagsterInstance, cluster: KubernetesServer
) -> None:
    materialize_graph(every_asset(), dataset, instance)
    assert graph_status(dataset).complete
    assert cluster.created() == 5  # all but layer 4, which is a single batch
