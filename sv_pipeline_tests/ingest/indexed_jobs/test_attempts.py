"""The process that watches a Job is killed, interrupted or doubled; the Job is found again. Real processes."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sv_pipeline.ingest import stages
from sv_pipeline.ingest.runner import runner_from_environment
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.servers.kubernetes import KubernetesServer
from sv_pipeline.testing.servers.kubernetes_jobs import RunningPod
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.indexed_jobs.clusters import SmallGraph, hunting, use_settings
from sv_pipeline_tests.ingest.indexed_jobs.clusters import cluster as cluster
from sv_pipeline_tests.ingest.indexed_jobs.clusters import graph as graph
from sv_pipeline_tests.ingest.indexed_jobs.clusters import small_twin as small_twin

pytestmark = pytest.mark.slow


def start(graph: SmallGraph) -> subprocess.Popen[str]:
    return builds.start_cli(graph.dataset.home, "ingest", graph.config, "--layers", 2, "--json")


def when_a_pod_runs(cluster: KubernetesServer, process: subprocess.Popen[str]) -> None:
    builds.wait_until(lambda: cluster.pods() or process.poll() is not None, "a pod")
    assert process.poll() is None, builds.end_of(process).err


def test_killed_while_it_watches_the_next_attempt_finds_the_job(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset
) -> None:
    with hunting(cluster, lambda _: None) as met:
        process = start(graph)
        when_a_pod_runs(cluster, process)
        builds.kill_group(process)
        graph.build_layer()
    assert sorted(pod.index for pod in met) == [0, 1]
    assert {pod.ended for pod in met} == {0}
    assert len({path for method, path in cluster.requests if method == "DELETE"}) == 1  # one Job, removed at its end
    graph.finish(small_twin)


def test_two_who_watch_share_one_job(graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset) -> None:
    with hunting(cluster, lambda _: None) as met:
        processes = [start(graph), start(graph)]
        ends = [builds.end_of(process) for process in processes]
    assert [said.code for said in ends] == [0, 0], [said.err for said in ends]
    assert sorted(pod.index for pod in met) == [0, 1]
    graph.finish(small_twin)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_deletes_its_job(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset, number: signal.Signals
) -> None:
    with hunting(cluster, lambda _: None) as met:
        process = start(graph)
        when_a_pod_runs(cluster, process)
        process.send_signal(number)
        said = builds.end_of(process)
    assert said.code == 130, said.err
    assert "Job sv-tissue-graph-l02" in said.err
    assert not cluster.jobs
    builds.wait_until(lambda: all(pod.process.poll() is not None for pod in met), "the pods to end")
    graph.build_layer()
    graph.finish(small_twin)


def test_interrupted_without_being_cancelled_the_job_goes_on(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset
) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_: object) -> None:
        raise Interrupted

    with hunting(cluster, lambda _: None) as met:
        with pytest.raises(Interrupted), runner_from_environment(1, is_cancelled=lambda: False) as runner:
            runner.run(graph.dataset, stages.plan_layer(graph.dataset, 2), advance=interrupt)
        assert len(cluster.jobs) == 1
        builds.wait_until(lambda: cluster.jobs[0].finished, "the Job to end by itself")
        graph.build_layer()
    assert sorted(pod.index for pod in met) == [0, 1]
    graph.finish(small_twin)


def test_a_second_signal_does_not_keep_the_job(graph: SmallGraph, cluster: KubernetesServer) -> None:
    def again() -> bool:
        signal.raise_signal(signal.SIGINT)
        return True

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), runner_from_environment(1, is_cancelled=again) as runner:
        runner.run(graph.dataset, stages.plan_layer(graph.dataset, 2), advance=interrupt)
    assert not cluster.jobs


def test_a_job_with_other_settings_is_replaced(
    graph: SmallGraph,
    cluster: KubernetesServer,
    small_twin: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_settings(tmp_path, monkeypatch, command=["sleep", "600"], env={"OLD": "1"})
    # "sleep 600 --home ..." fails, so that the old Job is stuck in its attempts.
    process = start(graph)
    when_a_pod_runs(cluster, process)
    builds.kill_group(process)
    (old,) = cluster.jobs
    use_settings(tmp_path, monkeypatch)
    graph.build_layer()
    assert old not in cluster.jobs
    graph.finish(small_twin)


def test_a_chunk_that_became_unfinished_meanwhile_gets_a_job_of_its_own(
    graph: SmallGraph, cluster: KubernetesServer, small_twin: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Job whose plan lacks a batch is watched to its end; then another one runs what it lacks."""
    batches = stages.plan_layer(graph.dataset, 2)
    cluster.controller.paused = True
    first = threading.Thread(
        target=lambda: runner_from_environment(1).run(graph.dataset, batches[:1], advance=lambda _: None)
    )
    first.start()
    builds.wait_until(lambda: cluster.jobs, "the first Job")
    threading.Timer(0.5, lambda: setattr(cluster.controller, "paused", False)).start()
    graph.build_layer()
    first.join()
    graph.finish(small_twin)


def test_the_progress_counts_every_chunk_once(graph: SmallGraph, cluster: KubernetesServer) -> None:
    counted: list[int] = []
    with runner_from_environment(1) as runner:
        runner.run(graph.dataset, stages.plan_layer(graph.dataset, 2), advance=counted.append)
    assert sum(counted) == 2


def test_a_pod_knows_where_it_runs(graph: SmallGraph, cluster: KubernetesServer) -> None:
    found: list[dict[str, str]] = []

    def look(pod: RunningPod) -> None:
        while b"JOB_COMPLETION_INDEX" not in (raw := Path(f"/proc/{pod.process.pid}/environ").read_bytes()):
            time.sleep(0.01)
        found.append(dict(entry.split("=", 1) for entry in raw.decode().split("\0") if entry))

    with hunting(cluster, look) as met:
        graph.build_layer()
    for pod, environment in zip(met, found, strict=True):
        assert environment["POD_NAME"] == pod.name
        assert environment["NODE_NAME"] == pod.manifest["spec"]["nodeName"]
        assert environment["JOB_COMPLETION_INDEX"] == str(pod.index)
