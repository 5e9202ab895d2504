"""Fixtures of the engine's and the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from sv_pipeline_tests.engine.builds import CommandLine


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line with a home of its own."""
    return CommandLine(tmp_path / "home", monkeypatch, capsys)
