"""Small datasets to ingest, the command line as a process or in this one, and the state that an ingest leaves."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from sv_pipeline.cli.main import DEFECT_EXIT_CODE, main
from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.demo.synthetic import SyntheticVolume, synthetic_neuropil
from sv_pipeline.ingest import progress, stages
from sv_pipeline.ingest.run import ingest as ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.base import markers
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.parts import is_kept, merged_tasks
from sv_pipeline.segmentation.base.populate import populate_plan
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.testing.worlds import merged
from sv_pipeline.verify.dataset import verify_dataset
from sv_pipeline_tests.graph.compare import dump, stored_shape

Triple = tuple[int, int, int]

SHAPE: Triple = (74, 61, 30)
"""Odd, so that the last chunks of every axis are cut off."""
OFFSET: Triple = (7, -3, 11)
CHUNK: Triple = (32, 32, 16)
"""3 x 2 x 2 chunks of layer 2, four layers."""


@lru_cache(maxsize=4)
def neuropil(shape: Triple = SHAPE) -> SyntheticVolume:
    return synthetic_neuropil(shape, seed=3)


def write_source(folder: Path, shape: Triple = SHAPE) -> dict[str, Any]:
    """A segmentation and its table of objects as files; the ``source`` part of a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = neuropil(shape)
    np.savez(folder / "segmentation.npz", segmentation=volume.segmentation, resolution=np.array(volume.resolution))
    with (folder / "objects.csv").open("w") as file:
        csv.writer(file).writerows([("label", "object"), *zip(volume.labels, volume.objects, strict=True)])
    return {
        "segmentation": str(folder / "segmentation.npz"),
        "agglomeration": str(folder / "objects.csv"),
        "voxel_offset": list(OFFSET),
    }


def raw_config(folder: Path, graph_id: str = "tissue", *, shape: Triple = SHAPE, **changes: Any) -> dict[str, Any]:
    """Content of a dataset YAML; ``changes`` are merged into its top-level keys (None removes one)."""
    raw: dict[str, Any] = {
        "graph_id": graph_id,
        "data_source": {"WATERSHED": str(folder / "watershed")},
        "graph_config": {"CHUNK_SIZE": list(CHUNK)},
        "ocdbt_config": {"populate_layer": 3},
        "ingest": {"workers": 1, "chunks_per_batch": 3},
    }
    if "source" not in changes:
        raw["source"] = write_source(folder / "source", shape)
    return merged(raw, changes)


def register(raw: dict[str, Any], home: Path | str) -> Dataset:
    return stages.register(parse_config(raw), str(home))


def config_file(path: Path, raw: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return str(path)


# -- the command line -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands in this process; an exception that the command line does not handle fails the test."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._patch, self._capture = patch, capture
        patch.setenv("SV_PIPELINE_HOME", str(home))

    def __call__(self, *arguments: object) -> Said:
        self._capture.readouterr()
        # Options such as --debug are handed on to worker processes as environment variables: of this command alone.
        with self._patch.context() as patch, mock.patch.dict(os.environ):
            patch.setattr(sys, "argv", ["sv-pipeline", "--home", str(self.home), *map(str, arguments)])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        assert code != DEFECT_EXIT_CODE, self._capture.readouterr().err
        said = self._capture.readouterr()
        return Said(code, said.out, said.err)


def start_cli(home: Path | str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line as a process, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(home), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def end_of(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=200)
    return Said(process.returncode, out, err)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process, its workers and its coordinator."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Look again and again until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


# -- what is stored ---------------------------------------------------------------------------------------------------


def voxels_of(dataset: Dataset) -> list[np.ndarray]:
    """Voxels of the fork at every mip."""
    url = dataset.watershed_url
    return [np.asarray(Fork(url, dataset.graph_id).open(mip).read().result()) for mip in range(Base(url).info().n_mips)]


def assert_sound(dataset: Dataset, **options: Any) -> None:
    report = verify_dataset(dataset, **options)
    assert report.ok, report.summary()
    assert not report.findings, report.summary()
    assert all(result.skipped is None for result in report.results), report.summary()


def assert_same(dataset: Dataset, twin: Dataset) -> None:
    """The same graph but for the ids of nodes, and the same voxels at every mip."""
    assert stored_shape(dataset.graph) == stored_shape(twin.graph)
    for mip, (found, expected) in enumerate(zip(voxels_of(dataset), voxels_of(twin), strict=True)):
        np.testing.assert_array_equal(found, expected, err_msg=f"mip {mip}")


def assert_nothing_leaked(dataset: Dataset) -> None:
    """Every marker is there and no other; no part of a populate is left that does not count."""
    graph = dataset.graph
    for status in progress.layer_status(graph).values():
        assert (status.done, status.failed) == (status.chunks, 0)
    url, config = dataset.watershed_url, dataset.config.ocdbt_config
    plan = populate_plan(Base(url), dataset.grid, config)
    tasks = {tuple(task) for task in plan.grid.coordinates(plan.layer).tolist()}
    assert Base(url).done_tasks() == tasks
    assert merged_tasks(Base(url).info()) == {markers.task_name(task) for task in tasks}  # type: ignore[arg-type]
    winners = {markers.task_name(t): (markers.read_marker(url, t) or {}).get("attempt") for t in tasks}  # type: ignore[arg-type]
    for key in kv.list_keys(ocdbt.base_folder(url), "parts/"):
        _, task, attempt, rest = key.split("/", 3)
        assert winners[task] == attempt, f"{key} is left of a part that does not count"
        assert is_kept(rest), f"{key} is left of a part that was merged"


def assert_nothing_written(*folders: Path) -> None:
    """Folders that are not there, or hold no file."""
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not files, f"{folder} holds {files}"


def rows_of(dataset: Dataset) -> dict[bytes, object]:
    """Every cell of the table."""
    return dump(dataset.table)


def tables_in(home: Path) -> Sequence[Path]:
    return sorted((home / "tables").glob("*"))


def config_of(raw: dict[str, Any]) -> DatasetConfig:
    return parse_config(raw)


# -- processes --------------------------------------------------------------------------------------------------------


def children_of(pid: int, word: str) -> list[int]:
    """Child processes, of all threads, whose command line holds a word (Linux)."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                if word.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return children_of(process.pid, "spawn_main")


def coordinators_of(process: subprocess.Popen[str]) -> list[int]:
    return children_of(process.pid, "segmentation.coordinator")


def group_is_alive(process: subprocess.Popen[str]) -> bool:
    """Whether any process of the group runs (a zombie counts until its parent has looked)."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
