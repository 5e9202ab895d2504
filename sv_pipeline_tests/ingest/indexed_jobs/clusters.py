"""A cluster for each test: an API server over HTTP, whose pods are processes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sv_pipeline.ingest.indexed_jobs.settings import SETTINGS_VARIABLE
from sv_pipeline.ingest.runner import FANOUT_VARIABLE
from sv_pipeline.testing.servers.kubernetes import KubernetesServer, running_kubernetes

SETTINGS: dict[str, Any] = {
    "image": "sv-pipeline:test",
    "namespace": "sv-pipeline",
    "service_account": "sv-pipeline-worker",
    "parallelism": 2,
    "poll_seconds": 0.1,
    "api_patience_seconds": 20,
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
