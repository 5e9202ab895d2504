"""Runs that the launcher of deploy/kubernetes starts as Jobs, and whose batches are Jobs. Real processes, SIGKILL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.instance import InstanceRef

from sv_pipeline.defs.partitions import add_partitions, layer_partition
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.servers.kubernetes import KubernetesServer, running_kubernetes
from sv_pipeline.testing.servers.kubernetes_jobs import RunningPod
from sv_pipeline_tests.deploy.test_kubernetes import ENVIRONMENT, read
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.indexed_jobs.clusters import SmallGraph, use_settings
from sv_pipeline_tests.ingest.indexed_jobs.clusters import small_twin as small_twin

pytestmark = pytest.mark.slow
RUN_POD = "dagster-run-"


class Deployment:
    """The instance and the environment of deploy/kubernetes, with SQLite instead of Postgres, on a cluster of ours."""

    def __init__(self, folder: Path, cluster: KubernetesServer, patch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.graph = SmallGraph(folder / "graph", folder / "home")
        home = folder / "dagster"
        home.mkdir()
        config = {**read("dagster.yaml"), "storage": {"sqlite": {"base_dir": str(home)}}}
        del config["compute_logs"]
        config["run_launcher"]["config"] |= {
            "load_incluster_config": False,
            "kubeconfig_file": str(cluster.kubeconfig),
            "dagster_home": str(home),
        }
        (home / "dagster.yaml").write_text(yaml.safe_dump(config))
        self.instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))
        add_partitions(self.instance, [self.graph.dataset])

    def launch(self) -> str:
        """Launch a run that builds layer 2; return its id."""
        repository = ReconstructableRepository.for_module("sv_pipeline.definitions", "defs")
        job = repository.get_reconstructable_job("__ASSET_JOB")
        partition = layer_partition(self.graph.dataset.graph_id, 2)
        run = self.instance.create_run_for_job(
            job.get_definition(),
            asset_selection=frozenset({dg.AssetKey("layer")}),
            run_config={"execution": {"config": {"in_process": {}}}},
            tags={"dagster/partition": str(partition)},
            job_code_origin=job.get_python_origin(),
        )
        from dagster._core.launcher import LaunchRunContext

        self.instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
        return run.run_id

    def end_of(self, run_id: str) -> dg.DagsterRunStatus:
        """Wait until a run has ended; return how."""
        builds.wait_until(lambda: self.instance.get_run_by_id(run_id).is_finished, "the run to end", 200)
        return self.instance.get_run_by_id(run_id).status

    def log(self, run_id: str) -> str:
        """Messages of a run, with the reasons of failed steps."""
        events = self.instance.all_logs(run_id)
        failed = [
            e.dagster_event.event_specific_data for e in events if e.dagster_event and e.dagster_event.is_step_failure
        ]
        return "\n".join([*(entry.message for entry in events), *map(str, failed)])

    def workers(self) -> list[RunningPod]:
        """Pods of the layer's Job, without that of the run."""
        return [pod for pod in self.cluster.pods() if not pod.name.startswith(RUN_POD)]

    def run_pod(self) -> RunningPod:
        return [pod for pod in self.cluster.pods() if pod.name.startswith(RUN_POD)][-1]


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    environment = {
        **ENVIRONMENT,
        "SV_PIPELINE_HOME": str(tmp_path / "home"),
        "SV_PIPELINE_KUBERNETES": str(tmp_path / "fanout.yaml"),
        "SV_PIPELINE_BATCHES_IN_STEP": "0",
        "KUBECONFIG": str(tmp_path / "cluster" / "kubeconfig.yaml"),
        "ERROR_DUMP": str(tmp_path / "errors"),
    }
    del environment["SV_PIPELINE_LOG_BUCKET"]
    maps = {"sv-pipeline-environment": environment, "sv-pipeline-postgres": {"SV_PIPELINE_POSTGRES_PASSWORD": "none"}}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with running_kubernetes(tmp_path / "cluster", config_maps=maps) as cluster:
        use_settings(tmp_path, monkeypatch, env_config_maps=["sv-pipeline-environment"])
        made = Deployment(tmp_path, cluster, monkeypatch)
        yield made
        made.instance.dispose()


def test_a_run_in_a_pod_builds_a_layer_in_pods(deployment: Deployment, small_twin: Dataset) -> None:
    run_id = deployment.launch()
    assert deployment.end_of(run_id) is dg.DagsterRunStatus.SUCCESS, deployment.log(run_id)
    assert "done in the cluster" in deployment.log(run_id)
    deployment.graph.finish(small_twin)


def test_a_run_whose_pod_is_killed_leaves_its_job_and_the_next_run_finds_it(
    deployment: Deployment, small_twin: Dataset
) -> None:
    first = deployment.launch()
    builds.wait_until(deployment.workers, "a worker")
    (job,) = (job for job in deployment.cluster.jobs if not job.name.startswith(RUN_POD))
    deployment.cluster.kill(deployment.run_pod())
    builds.wait_until(lambda: deployment.run_pod().ended is not None, "the run's pod to end")
    deployment.instance.report_run_failed(deployment.instance.get_run_by_id(first))  # as the daemon's monitor does
    second = deployment.launch()
    assert deployment.end_of(second) is dg.DagsterRunStatus.SUCCESS, deployment.log(second)
    assert len(job.pods) == 2
    deployment.graph.finish(small_twin)


def test_a_canceled_run_deletes_its_job(deployment: Deployment, small_twin: Dataset) -> None:
    deployment.cluster.controller.paused = False
    run_id = deployment.launch()
    builds.wait_until(deployment.workers, "a worker")
    workers = deployment.workers()
    deployment.instance.run_launcher.terminate(run_id)
    assert deployment.end_of(run_id) is dg.DagsterRunStatus.CANCELED, deployment.log(run_id)
    builds.wait_until(lambda: not deployment.workers(), "the Job to be deleted")
    builds.wait_until(lambda: all(pod.process.poll() is not None for pod in workers), "the workers to end")
    again = deployment.launch()
    assert deployment.end_of(again) is dg.DagsterRunStatus.SUCCESS, deployment.log(again)
    deployment.graph.finish(small_twin)
