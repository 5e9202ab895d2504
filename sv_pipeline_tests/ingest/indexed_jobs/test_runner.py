"""An ingest whose batches run as indexes of Jobs ends as one in local processes does."""

from __future__ import annotations

from pathlib import Path

from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.servers.kubernetes import KubernetesServer
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.indexed_jobs.clusters import cluster as cluster


def test_an_ingest_in_a_cluster_ends_as_one_on_this_machine(
    tmp_path: Path, cluster: KubernetesServer, twin: Dataset
) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset)
    builds.assert_same(dataset, twin)
    builds.assert_nothing_leaked(dataset)
    builds.assert_sound(dataset)
    assert cluster.created() == 6  # labels, edges, three layers, and the voxels of the populate layer
    assert not cluster.jobs
