"""A process that lives on while another one wipes the data and ingests the graph again: it sees the new one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sv_pipeline.proofreading import OpenGraph, open_graph
from sv_pipeline.pyramid.lag import lags
from sv_pipeline.registry import Registry
from sv_pipeline.reports.info import graph_info
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.testing.volumes import cells

POINTS = [[20, 20, 10], [4, 30, 3], [36, 2, 17]]
SHAPE = (40, 35, 20)


def ingest_elsewhere(folder: Path, seed: int, chunk: int) -> None:
    """In a process of its own, from nothing."""
    for name in ("ws", "home"):
        shutil.rmtree(folder / name, ignore_errors=True)
    np.save(folder / "labels.npy", cells(SHAPE, 8, seed).labels.astype(np.uint32))
    config = {
        "graph_id": "g",
        "data_source": {"WATERSHED": str(folder / "ws")},
        "graph_config": {"CHUNK_SIZE": [chunk] * 3},
        "ingest": {"workers": 1},
        "source": {"segmentation": str(folder / "labels.npy"), "resolution": [8, 8, 40]},
    }
    (folder / "g.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "sv_pipeline.cli.main", "--home", str(folder / "home"), "ingest"]
    done = subprocess.run(
        [*command, str(folder / "g.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr


def looks(home: str, held: Callable[[], OpenGraph]) -> dict[str, Callable[[], Any]]:
    """Ways to look at the graph; some with a graph that was opened earlier."""
    ws = Registry(home).get("g").watershed_url
    return {
        "roots": lambda: held().roots(POINTS).tolist(),
        "leaves": lambda: [some.tolist() for some in held().leaves(POINTS)],
        "voxels": lambda: held().segmentation.read().result().tobytes(),
        "layers": lambda: held().graph.n_layers,
        "preview": lambda: held().preview_split(POINTS[:1], POINTS[:1] + np.array([[0, 0, 1]])).numbers["legal"],
        "fork": lambda: Fork(ws, "g").open().read().result().tobytes(),
        "generation": lambda: Fork(ws, "g").generation(),
        "contract": lambda: Fork(ws, "g").contract(),
        "info": lambda: graph_info(Registry(home).get("g")).to_dict(),
        "lag": lambda: str(Fork(ws, "g").lag()),
        "what the sensor asks": lambda: [one.error for one in lags(Registry(home))],
    }


@pytest.mark.parametrize("first", ["roots", "voxels", "lag", "what the sensor asks", "preview"])
def test_a_graph_that_was_made_again_is_seen(two_graphs: tuple[str, Callable[[], None]], first: str) -> None:
    home, make_again = two_graphs
    held = open_graph("g", home)
    ways = looks(home, lambda: held)
    before = {name: look() for name, look in ways.items()}
    make_again()
    order = [first, *(name for name in ways if name != first)]
    seen = {name: ways[name]() for name in order}
    fresh = looks(home, lambda: open_graph("g", home))
    assert seen == {name: fresh[name]() for name in order}
    assert seen["voxels"] != before["voxels"]
    assert seen["layers"] != before["layers"]
    assert seen["what the sensor asks"] == [None]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two graphs of one name, made at the same place; kept elsewhere."""
    place, kept = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("kept")
    for number, chunk in enumerate((16, 8)):
        ingest_elsewhere(place, number, chunk)
        for name in ("ws", "home"):
            shutil.copytree(place / name, kept / str(number) / name)
    return place, kept


@pytest.fixture
def two_graphs(ingested: tuple[Path, Path]) -> tuple[str, Callable[[], None]]:
    place, kept = ingested

    def put(number: int) -> None:
        for name in ("ws", "home"):
            shutil.rmtree(place / name)
            shutil.copytree(kept / str(number) / name, place / name)

    put(0)
    return str(place / "home"), lambda: put(1)
