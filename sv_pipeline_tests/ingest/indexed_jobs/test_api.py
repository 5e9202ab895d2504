"""An API server that does not answer, refuses, forgets, or whose Jobs somebody deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.errors import ConfigError, UnavailableError
from sv_pipeline.ingest.indexed_jobs import cluster as calls
from sv_pipeline.ingest.indexed_jobs import runner
from sv_pipeline.ingest.indexed_jobs.cluster import KubernetesApi
from sv_pipeline.ingest.indexed_jobs.settings import settings_from_environment
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.servers.kubernetes import RESET, ApiFault, KubernetesServer
from sv_pipeline_tests.ingest.indexed_jobs.clusters import SmallGraph, hunting, use_settings
from sv_pipeline_tests.ingest.indexed_jobs.clusters import cluster as cluster
from sv_pipeline_tests.ingest.indexed_jobs.clusters import graph as graph
from sv_pipeline_tests.ingest.indexed_jobs.clusters import small_twin as small_twin

PLAIN: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "plain"},
    "spec": {
        "completionMode": "Indexed",
        "completions": 3,
        "parallelism": 3,
        "backoffLimitPerIndex": 0,
        "template": {
            "metadata": {},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "worker", "image": "none", "command": ["sh", "-c"], "args": ["echo hello"]}],
            },
        },
    },
}
"""A Job that knows nothing of us."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SECONDS_FOR_ONE_REQUEST", (4.0, 4.0))


@pytest.fixture
def api(cluster: KubernetesServer) -> KubernetesApi:
    return KubernetesApi(settings_from_environment())


FAULTS = {
    "500 at every third look": [ApiFault(500, "GET", "/jobs/", times=2)],
    "429 for a new Job": [ApiFault(429, "POST", times=2)],
    "503 everywhere, for a while": [ApiFault(503, times=3)],
    "a new Job whose answer is lost": [ApiFault(RESET, "POST", phase="after", times=1)],
    "a new Job whose answer is late": [ApiFault(500, "POST", phase="after", delay=4.5, times=1)],
    "connections that break": [ApiFault(RESET, times=3)],
    "a deletion whose answer is lost": [ApiFault(502, "DELETE", phase="after", times=1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_fails_for_a_while_delays_the_work_and_nothing_else(
    name: str, graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset
) -> None:
    cluster.faults += [ApiFault(**vars(fault)) for fault in FAULTS[name]]
    with hunting(cluster, lambda _: None) as met:
        graph.build_layer()
    assert sorted(pod.index for pod in met) == [0, 1]  # nothing was done twice
    assert not cluster.jobs
    graph.finish(small_twin)


def test_a_server_that_never_answers_is_told_after_a_while(
    graph: SmallGraph, cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_settings(tmp_path, monkeypatch, api_patience_seconds=1.0)
    cluster.faults.append(ApiFault(503))
    with pytest.raises(UnavailableError, match=r"the Kubernetes API does not answer .*HTTP 503: a fault of the test"):
        graph.build_layer()


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "rbac.yaml"), (403, "rbac.yaml"), (422, "settings of the Jobs"), (404, "namespace")]
)
def test_a_refusal_is_told_at_once_with_what_to_do(
    status: int, remedy: str, graph: SmallGraph, cluster: KubernetesServer
) -> None:
    cluster.faults.append(ApiFault(status, "POST"))
    with pytest.raises(ConfigError, match=f"refuses to create Job .*{remedy}"):
        graph.build_layer()
    assert cluster.created() == 1


def test_a_namespace_that_is_not_there_is_told(
    graph: SmallGraph, cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_settings(tmp_path, monkeypatch, namespace="elsewhere")
    with pytest.raises(ConfigError, match=r'namespaces "elsewhere" not found.*Create the namespace'):
        graph.build_layer()


def test_a_list_that_was_too_slow_is_read_again(api: KubernetesApi, cluster: KubernetesServer) -> None:
    assert api.create_job(PLAIN)
    with hunting(cluster, lambda _: None):
        while not cluster.jobs[0].finished:
            pass
    cluster.page_size = 1
    cluster.faults.append(ApiFault(410, "GET", "continue=2", times=2))
    assert sorted(pod.metadata.annotations[calls_index()] for pod in api.pods_of("plain")) == ["0", "1", "2"]
    assert sum("continue=1" in path for _, path in cluster.requests) == 3
    assert api.last_lines(api.pods_of("plain")[0].metadata.name) == "hello"
    assert api.last_lines("no-such-pod") == ""
    cluster.faults.append(ApiFault(410, "GET", "continue=2"))
    with pytest.raises(UnavailableError, match="list of the pods of Job plain"):
        api.pods_of("plain")


def calls_index() -> str:
    return "batch.kubernetes.io/job-completion-index"


def test_what_is_there_already_or_gone_is_no_error(api: KubernetesApi) -> None:
    assert api.create_job(PLAIN)
    assert not api.create_job(PLAIN)
    api.delete_job("plain")
    api.delete_job("plain")
    assert api.job("plain") is None
    assert api.pods_of("plain") == []


# -- other people -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_somebody_deletes_is_replaced(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset
) -> None:
    deleted: list[str] = []

    def delete_once(_: object) -> None:
        if not deleted:
            deleted.append(cluster.jobs[0].name)
            cluster.delete(cluster.jobs[0])

    with hunting(cluster, delete_once):
        graph.build_layer()
    assert len(deleted) == 1
    graph.finish(small_twin)


@pytest.mark.slow
def test_jobs_that_somebody_deletes_again_and_again_are_told(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset
) -> None:
    def delete(_: object) -> None:
        for job in cluster.jobs:
            cluster.delete(job)

    with (
        hunting(cluster, delete),
        pytest.raises(UnavailableError, match=f"{runner.ATTEMPTS} Jobs .* have ended without an error.*Someone"),
    ):
        graph.build_layer()
    graph.build_layer()
    graph.finish(small_twin)


def test_jobs_that_are_deleted_before_they_are_seen_are_told(
    graph: SmallGraph, cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = KubernetesApi.create_job

    def create_and_lose(self: KubernetesApi, manifest: dict[str, Any]) -> bool:
        made = create(self, manifest)
        for job in cluster.jobs:
            cluster.delete(job)
        return made

    monkeypatch.setattr(KubernetesApi, "create_job", create_and_lose)
    with pytest.raises(UnavailableError, match=f"{runner.ATTEMPTS} Jobs .* have ended without an error.*Someone"):
        graph.build_layer()
    assert cluster.created() == runner.ATTEMPTS
