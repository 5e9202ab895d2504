"""A stage in every backend, and the fork server whose processes edit and recover on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.testing.harness.forkserver import ForkServer, running_fork_server
from sv_pipeline.testing.harness.recovery import SERVERS as SERVERS
from sv_pipeline.testing.harness.recovery import RecoveryHarness
from sv_pipeline.testing.tables import Backend
from sv_pipeline_tests.recovery.stage import Scene, Stage, build_stage


@pytest.fixture(scope="session")
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend], Stage]:
    """The stage of a backend, built when it is first asked for."""
    built: dict[str, Stage] = {}

    def stage(backend: Backend) -> Stage:
        if backend == "bigtable":
            request.getfixturevalue("bigtable_emulator")
        if not built:
            built["sqlite"] = build_stage(tmp_path_factory.mktemp("stage"))
            built["bigtable"] = replace(built["sqlite"], backend="bigtable", twins={})
        return built[backend]

    return stage


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The process that forks editors and recoverers."""
    with running_fork_server("sv_pipeline_tests.recovery.their_worker") as process:
        yield process


class Theatre(RecoveryHarness):
    """One scene, and the processes that act on it."""

    def __init__(self, stage: Stage, scene: Scene, fork_server: ForkServer, folder: Path) -> None:
        super().__init__(scene.world, fork_server, folder)
        self.stage, self.scene = stage, scene

    def request(self, kind: str) -> dict[str, Any]:
        return dict(self.stage.requests[kind])

    def twin(self, *kinds: str) -> tuple[bytes, bytes]:
        return self.stage.twin(self.fork_server, *kinds)


@pytest.fixture
def theatre(
    stages: Callable[[Backend], Stage], fork_server: ForkServer, tmp_path: Path
) -> Iterator[Callable[..., Theatre]]:
    """A fresh scene in a backend."""
    made: list[Scene] = []

    def make(backend: Backend = "sqlite", home: Path | None = None, bucket: str | None = None) -> Theatre:
        stage = stages(backend)
        made.append(stage.copy(home, bucket))
        return Theatre(stage, made[-1], fork_server, tmp_path)

    yield make
    for scene in made:
        scene.remove()
