"""The command line, an ingested twin to compare with, tables in every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line with a home of its own."""
    return CommandLine(tmp_path / "home", monkeypatch, capsys)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The usual dataset, on local disk, built by one process that nobody disturbs. Tests only read it."""
    folder = tmp_path_factory.mktemp("twin")
    dataset = builds.register(builds.raw_config(folder), folder / "home")
    ingest(dataset)
    return dataset
