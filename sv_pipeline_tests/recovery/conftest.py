"""A stage in every backend, and the zygote that edits and recovers on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline import waiting
from sv_pipeline_tests.recovery import forkserver as zygotes
from sv_pipeline_tests.recovery.stage import Scene, Stage, build_stage


@pytest.fixture(scope="session")
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stage]:
    """The stage of a backend, built when it is first asked for."""
    built: dict[str, Stage] = {}

    def stage(backend: str) -> Stage:
        if backend == "bigtable":
            request.getfixturevalue("bigtable_emulator")
        if not built:
            built["sqlite"] = build_stage(tmp_path_factory.mktemp("stage"), "sqlite")
            built["bigtable"] = Stage(
                built["sqlite"].folder, built["sqlite"].data, "bigtable", built["sqlite"].rows, built["sqlite"].requests
            )
        return built[backend]

    return stage


@pytest.fixture(scope="session")
def zygote() -> Iterator[zygotes.Zygote]:
    """The process that forks editors and recoverers."""
    with zygotes.zygote() as process:
        yield process


SERVERS = ("BIGTABLE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", waiting.VARIABLE)


@dataclass
class Theatre:
    """One scene, and who acts on it."""

    stage: Stage
    scene: Scene
    zygote: zygotes.Zygote
    folder: Path
    words: dict[int, Path] = field(default_factory=dict)
    """File with what each process said at its end."""

    def start(self, **task: Any) -> int:
        """Begin a task in a process; its id."""
        where = {name: os.environ[name] for name in SERVERS if name in os.environ}
        task.setdefault("result", str(self.folder / f"said by {len(self.words)}"))
        pid = self.zygote.start(table=self.scene.place, environment=where, **task)
        self.words[pid] = Path(task["result"])
        return pid

    def do(self, **task: Any) -> int:
        """Do a task; its exit code."""
        return self.zygote.wait(self.start(**task))

    def said(self, **task: Any) -> tuple[int, str]:
        """Do a task; its exit code and what it said."""
        result = self.folder / "said"
        result.unlink(missing_ok=True)
        code = self.do(result=str(result), **task)
        return code, result.read_text() if result.exists() else ""

    def word_of(self, pid: int) -> str:
        """What a process said at its end."""
        return self.words[pid].read_text() if self.words[pid].exists() else ""

    def request(self, kind: str) -> dict[str, Any]:
        return dict(self.stage.requests[kind])

    def stop(self, **task: Any) -> int:
        """Start a task that stops itself; its process, once it has stopped, or ended."""
        pid = self.start(**task)
        deadline = time.monotonic() + 30
        while self.zygote.poll(pid) is None and _state(pid) != "T":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return pid

    def wake(self, pid: int) -> int:
        """Let a stopped process go on, to its end."""
        if self.zygote.poll(pid) is None:
            os.kill(pid, signal.SIGCONT)
        return self.zygote.wait(pid)

    def twin(self, *kinds: str) -> tuple[bytes, bytes]:
        return self.stage.twin(self.zygote, *kinds)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.fixture
def theatre(stages: Callable[[str], Stage], zygote: zygotes.Zygote, tmp_path: Path) -> Iterator[Callable[..., Theatre]]:
    """A fresh scene in a backend."""
    made: list[Scene] = []

    def make(backend: str = "sqlite", home: Path | None = None, bucket: str | None = None) -> Theatre:
        stage = stages(backend)
        made.append(stage.copy(home, bucket))
        return Theatre(stage, made[-1], zygote, tmp_path)

    yield make
    for scene in made:
        scene.remove()
