"""Pods that die, are evicted, or meet bad input. Real processes, SIGKILL."""

from __future__ import annotations

from pathlib import Path

import pytest

from sv_pipeline.errors import ConfigError, SvPipelineError, UnavailableError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.indexed_jobs import runner
from sv_pipeline.ingest.runner import FANOUT_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.storage import kv
from sv_pipeline.testing.servers.kubernetes import KubernetesServer
from sv_pipeline_tests.ingest.indexed_jobs.clusters import (
    SmallGraph,
    hunting,
    once_for_each_index,
    use_settings,
)
from sv_pipeline_tests.ingest.indexed_jobs.clusters import cluster as cluster
from sv_pipeline_tests.ingest.indexed_jobs.clusters import graph as graph
from sv_pipeline_tests.ingest.indexed_jobs.clusters import small_twin as small_twin

pytestmark = pytest.mark.slow


def test_a_killed_pod_is_followed_by_another(graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset) -> None:
    with hunting(cluster, once_for_each_index(cluster.kill)) as met:
        graph.build_layer()
    assert sorted(pod.index for pod in met) == [0, 0, 1, 1]
    assert {pod.ended for pod in met} == {137, 0}
    graph.finish(small_twin)


def test_an_evicted_pod_does_not_count(
    graph: SmallGraph,
    cluster: KubernetesServer,
    small_twin: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_settings(tmp_path, monkeypatch, backoff_limit_per_index=0)
    with hunting(cluster, once_for_each_index(cluster.evict)) as met:
        graph.build_layer()
    assert len(met) == 4
    graph.finish(small_twin)


def test_an_index_whose_pods_all_die_is_named_and_the_others_are_finished(
    graph: SmallGraph,
    cluster: KubernetesServer,
    small_twin: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_settings(tmp_path, monkeypatch, backoff_limit_per_index=1)

    def kill_index_1(pod: object) -> None:
        if pod.index == 1:  # type: ignore[attr-defined]
            cluster.kill(pod)  # type: ignore[arg-type]

    with hunting(cluster, kill_index_1) as met, pytest.raises(UnavailableError) as caught:
        graph.build_layer()
    said = str(caught.value)
    last = [pod for pod in met if pod.index == 1][-1]
    assert len([pod for pod in met if pod.index == 1]) == 2
    for part in (
        "index 1 of Job sv-tissue-graph-l02",
        "(graph_L02_1_2)",
        last.name,
        "node-b",
        "exit code 137, signal 9",
    ):
        assert part in said, said
    assert graph.unfinished() == 1
    assert len(cluster.jobs) == 1  # it stays, to be looked at
    graph.build_layer()
    assert sorted(job.name[-2:] for job in cluster.jobs) == ["-1"]
    graph.finish(small_twin)


def test_bad_input_is_tried_once_and_told_as_on_this_machine(
    graph: SmallGraph, cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = graph.dataset.watershed_url + "edges/"
    for key in kv.list_keys(edges):
        kv.write_bytes(edges, key, b"no edges")
    with hunting(cluster, lambda _: None) as met, pytest.raises(SvPipelineError) as there:
        graph.build_layer()
    assert [pod.ended for pod in met] == [65, 65]
    monkeypatch.setenv(FANOUT_VARIABLE, "local")
    with pytest.raises(SvPipelineError) as here:
        graph.build_layer()
    assert type(there.value) is type(here.value)
    assert here.value.message in str(there.value)
    assert "index 0 of Job" in str(there.value)
    assert "as 1 others" in str(there.value)
    assert "chunk (0, 0, 0)" in str(there.value)


def test_pods_that_do_nothing_are_not_believed(
    graph: SmallGraph, cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_settings(tmp_path, monkeypatch, command=["true"])
    with pytest.raises(UnavailableError, match=r"3 Jobs .* 2 batches are not done, first graph_L02_0_1"):
        graph.build_layer()
    assert cluster.created() == 3


def test_a_job_that_takes_too_long_is_stopped(
    graph: SmallGraph, cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_settings(tmp_path, monkeypatch, active_deadline_seconds=1)
    cluster.controller.paused = True
    with pytest.raises(ConfigError, match="time limit of 1 s; 2 batches are not done"):
        graph.build_layer()


def test_work_that_others_have_done_ends_the_wait(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SECONDS_TO_END", 0.2)
    monkeypatch.setattr(runner, "SECONDS_BETWEEN_LOOKS", 0.1)
    cluster.controller.paused = True

    batches = stages.plan_layer(graph.dataset, 2)
    original = cluster.controller.add

    def add(manifest: dict[str, object]) -> object:
        for batch in batches:
            stages.run_batch(graph.dataset, batch)
        return original(manifest)

    monkeypatch.setattr(cluster.controller, "add", add)
    graph.build_layer()
    assert not cluster.jobs
    graph.finish(small_twin)
