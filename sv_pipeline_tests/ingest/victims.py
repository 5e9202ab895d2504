"""An ingest that the command line runs in processes of its own, to be killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sv_pipeline.errors import NotFoundError
from sv_pipeline.ingest import progress
from sv_pipeline.ingest.pool import ALONE_VARIABLE
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.storage import kv
from sv_pipeline_tests.ingest import builds


class Victim:
    """A dataset whose ingest is run by the command line, and killed."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.home = folder / "home"
        raw = builds.raw_config(folder, ingest={"chunks_per_batch": 1}, **changes)
        self.config = builds.config_file(folder / "tissue.yaml", raw)
        self.dataset = builds.register(raw, self.home)

    def start(self, *options: object, **environment: str) -> Any:
        environment = {ALONE_VARIABLE: "0", **environment}  # so little work would start no processes
        return builds.start_cli(self.home, "ingest", self.config, "--workers", 2, *options, **environment)

    def finish(self) -> None:
        """The run that nobody kills."""
        said = builds.end_of(self.start())
        assert said.code == 0, said.err

    def done(self, step: str) -> int:
        """Chunks of a step that have a marker."""
        url = self.dataset.watershed_url
        if step in ("labels", "edges"):
            return len(kv.list_keys(url, f".watershed/{step}/"))
        if step == "voxels":
            return len(Base(url).done_tasks())
        try:
            return progress.layer_status(self.dataset.graph)[int(step.split()[1])].done
        except NotFoundError:
            return 0

    def wait_for(self, process: Any, step: str, chunks: int) -> None:
        """Until a step has so many chunks, or the process has ended."""
        builds.wait_until(lambda: self.done(step) >= chunks or process.poll() is not None, f"{chunks} chunks of {step}")

    def assert_as_if_nothing_had_happened(self, twin: Dataset) -> None:
        builds.assert_same(self.dataset, twin)
        builds.assert_nothing_leaked(self.dataset)
        builds.assert_sound(self.dataset)
