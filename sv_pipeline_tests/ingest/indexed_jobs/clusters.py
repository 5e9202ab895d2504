"""A cluster for each test, a small graph whose layer 2 is built in it, and hunters of its pods."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Stage
from sv_pipeline.ingest.indexed_jobs.settings import SETTINGS_VARIABLE
from sv_pipeline.ingest.run import ingest
from sv_pipeline.ingest.runner import FANOUT_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.testing.servers.kubernetes import KubernetesServer, running_kubernetes
from sv_pipeline.testing.servers.kubernetes_jobs import RunningPod
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.mistakes import small

SETTINGS: dict[str, Any] = {
    "image": "sv-pipeline:test",
    "namespace": "sv-pipeline",
    "service_account": "sv-pipeline-worker",
    "parallelism": 2,
    "poll_seconds": 0.05,
    "api_patience_seconds": 8,
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    """A running cluster; batches of this process, and of its children, run in it."""
    with running_kubernetes(tmp_path / "cluster") as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        monkeypatch.setenv(FANOUT_VARIABLE, "kubernetes")
        use_settings(tmp_path, monkeypatch)
        yield server


def use_settings(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Write a settings file, and name it in the environment."""
    path = folder / "fanout.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, **changes}))
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))


class SmallGraph:
    """Eight blocks in two chunks: layer 2 is two batches, and layer 3 the top."""

    def __init__(self, folder: Path, home: Path) -> None:
        raw = small(folder)
        raw["ingest"]["chunks_per_batch"] = 1
        self.config = builds.config_file(folder / "tissue.yaml", raw)
        self.dataset = builds.register(raw, home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(FANOUT_VARIABLE, "local")
            for stage, finish in ((Stage.LABELS, stages.finish_labels), (Stage.EDGES, stages.finish_edges)):
                for batch in stages.plan_watershed(self.dataset, stage):
                    stages.run_batch(self.dataset, batch)
                finish(self.dataset)
            stages.setup(self.dataset)

    def build_layer(self) -> None:
        """Build layer 2, wherever the environment says."""
        ingest(self.dataset, layers=[2])

    def unfinished(self) -> int:
        """Batches of layer 2 that are not done."""
        return len(stages.plan_layer(self.dataset, 2))

    def finish(self, twin: Dataset) -> None:
        """Build the rest on this machine, and compare with a twin that was built there only."""
        assert self.unfinished() == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(FANOUT_VARIABLE, "local")
            ingest(self.dataset)
        builds.assert_same(self.dataset, twin)
        builds.assert_nothing_leaked(self.dataset)


@pytest.fixture
def graph(tmp_path: Path) -> SmallGraph:
    """A small graph, ready for layer 2."""
    return SmallGraph(tmp_path / "graph", tmp_path / "home")


@pytest.fixture(scope="session")
def small_twin(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small graph as this machine builds it alone."""
    folder = tmp_path_factory.mktemp("small_twin")
    twin = SmallGraph(folder / "graph", folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FANOUT_VARIABLE, "local")
        ingest(twin.dataset)
    return twin.dataset


@contextmanager
def hunting(cluster: KubernetesServer, meet: Callable[[RunningPod], None]) -> Iterator[list[RunningPod]]:
    """Call ``meet`` once for every pod as soon as it runs, in the background; yields the pods that were met."""
    met: list[RunningPod] = []
    stop = threading.Event()

    def hunt() -> None:
        while not stop.wait(0.01):
            for pod in cluster.pods():
                if pod not in met and pod.ended is None:
                    met.append(pod)
                    meet(pod)

    thread = threading.Thread(target=hunt, daemon=True)
    thread.start()
    try:
        yield met
    finally:
        stop.set()
        thread.join()


def once_for_each_index(act: Callable[[RunningPod], None]) -> Callable[[RunningPod], None]:
    """Act on the first pod of each index only."""
    seen: set[int] = set()

    def meet(pod: RunningPod) -> None:
        if pod.index not in seen:
            seen.add(pod.index)
            act(pod)

    return meet
