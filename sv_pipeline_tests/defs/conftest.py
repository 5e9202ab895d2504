"""A small graph registered in a fresh home, and a fresh Dagster instance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.demo.synthetic import synthetic_neuropil
from sv_pipeline.ingest import stages
from sv_pipeline.registry import HOME_VARIABLE, Dataset

SHAPE, CHUNK = (96, 80, 40), 32  # 3 x 3 x 2 chunks: 4 layers


@pytest.fixture(scope="session")
def small_segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = synthetic_neuropil(SHAPE, seed=3)
    path = tmp_path_factory.mktemp("source") / "small.npz"
    np.savez(path, segmentation=volume.segmentation, bodies=volume.bodies, resolution=np.asarray(volume.resolution))
    return path


def small_config(folder: Path, segmentation: Path, graph_id: str = "small", **more: object) -> DatasetConfig:
    return parse_config(
        {
            "graph_id": graph_id,
            "data_source": {"WATERSHED": str(folder / "watershed")},
            "source": {"segmentation": f"{segmentation}#segmentation", "agglomeration": f"{segmentation}#bodies"},
            "graph_config": {"CHUNK_SIZE": [CHUNK] * 3},
            "ocdbt_config": {"populate_layer": 3},
            "ingest": {"chunks_per_batch": 4},
            **more,
        }
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return str(tmp_path / "home")


@pytest.fixture
def dataset(tmp_path: Path, home: str, small_segmentation: Path) -> Dataset:
    return stages.register(small_config(tmp_path, small_segmentation), home)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
