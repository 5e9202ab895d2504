"""A tiny dataset to spoil, and what the command line must say and not do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine, Said

SMALL = (20, 20, 10)


def labels(dtype: Any = np.uint32) -> np.ndarray:
    values = np.arange(1, 9, dtype=dtype).reshape(2, 2, 2)
    return values.repeat(10, 0).repeat(10, 1).repeat(5, 2)


def small(folder: Path, array: np.ndarray | None = None, **source: Any) -> dict[str, Any]:
    """A dataset of eight blocks in two chunks."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "labels.npz", segmentation=labels() if array is None else array)
    given = {"segmentation": str(folder / "labels.npz"), "resolution": [8, 8, 40], **source}
    return builds.raw_config(folder, source=given, graph_config={"CHUNK_SIZE": [10, 20, 10]})


def assert_refused(said: Said, *parts: str, code: int = 1) -> None:
    """One clear error: its parts, no traceback."""
    assert said.code == code, (said.out, said.err)
    text = said.err
    assert text.lower().count("error") >= 1
    assert "Traceback" not in text
    for part in parts:
        assert part in text, f"{part!r} is missing in: {text}"
    assert text.strip().endswith((".", ")", ":")) or "\n  " in text, text


def assert_refused_without_a_trace(cli: CommandLine, tmp_path: Path, raw: dict[str, Any], *parts: str) -> None:
    config = builds.config_file(tmp_path / "dataset.yaml", raw)
    assert_refused(cli("ingest", config), *parts)
    builds.assert_nothing_written(cli.home, tmp_path / "watershed")
