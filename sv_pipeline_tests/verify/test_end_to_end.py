"""Real tissue through our own watershed, ingest and populate: verification finds nothing, in each backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.parents import build_parent_chunks
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.populate import finish_populate, populate_plan, populate_task
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.table.interface import Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.testing.fixtures import need
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.ingest.watershed.helpers import make_watershed

DATA = Path(__file__).parents[3] / "shared" / "data"


def real_data(name: str) -> str:
    """Path of a file of real tissue, or skip."""
    path = DATA / name
    need(path.exists(), f"{name} in ../shared/data")
    return str(path)


def dataset(folder: Path, source: dict[str, Any], chunk_size: list[int]) -> DatasetConfig:
    return parse_config(
        {
            "graph_id": "real",
            "data_source": {"WATERSHED": str(folder)},
            "source": source,
            "graph_config": {"CHUNK_SIZE": chunk_size},
            "ocdbt_config": {"populate_layer": 3},
        }
    )


def build(config: DatasetConfig, table: Table) -> ChunkedGraph:
    """Everything, from the label volume to the fork."""
    make_watershed(config)
    graph = create_chunked_graph(table, config)
    build_atomic_chunks(graph, graph.grid.coordinates(2), config)
    for layer in range(3, graph.n_layers + 1):
        build_parent_chunks(graph, layer, graph.grid.coordinates(layer))
    url = config.data_source.watershed
    Base(url).create(config.ocdbt_config, grid=graph.grid)
    plan = populate_plan(Base(url), graph.grid, config.ocdbt_config)
    for coordinate in plan.missing:
        populate_task(plan, coordinate)
    finish_populate(plan)
    Fork(url, config.graph_id).create()
    return graph


def assert_sound(graph: ChunkedGraph, config: DatasetConfig, **options: Any) -> None:
    report = verify(graph.table, Fork(config.data_source.watershed, config.graph_id), **options)
    assert report.ok, report.summary()
    assert not report.findings, report.summary()
    assert all(result.skipped is None for result in report.results), report.summary()


def labels_of(kind: str) -> np.ndarray:
    labels = np.ones((40, 20, 20), np.uint16)
    if kind == "mostly background":
        labels[:38] = 0
    if kind == "no two touch":
        labels[10:30] = 0
        labels[30:] = 2
    return labels


@pytest.mark.parametrize("kind", ["mostly background", "one object", "no two touch"])
@pytest.mark.parametrize("chunk", [10, 20, 64])
def test_poor_volumes_are_clean(tmp_path: Path, kind: str, chunk: int) -> None:
    np.savez(tmp_path / "labels.npz", segmentation=labels_of(kind))
    source = {"segmentation": str(tmp_path / "labels.npz"), "resolution": [8, 8, 40]}
    config = dataset(tmp_path / "watershed", source, [chunk] * 3)
    graph = build(config, SqliteTable("poor", tmp_path / "tables"))
    report = verify(graph.table, Fork(config.data_source.watershed, config.graph_id))
    assert report.ok, report.summary()
    assert not report.findings, report.summary()


@pytest.mark.parametrize("offset", [(0, 0, 0), (1000, -24, 77)])
def test_em_128_is_clean(new_table: Table, tmp_path: Path, offset: tuple[int, int, int]) -> None:
    source = {"segmentation": real_data("em_128.npz") + "#segmentation", "voxel_offset": list(offset)}
    config = dataset(tmp_path / "watershed", source, [32, 32, 16])
    graph = build(config, new_table)
    assert_sound(graph, config, workers=2)


def test_a_volume_of_one_chunk_is_clean(new_table: Table, tmp_path: Path) -> None:
    """Two layers only: layer 2 is the root layer."""
    labels = np.ones((20, 20, 20), np.uint16)
    labels[10:] = 2
    labels[:, :5] = 3
    np.savez(tmp_path / "labels.npz", segmentation=labels)
    source = {"segmentation": str(tmp_path / "labels.npz"), "resolution": [8, 8, 40]}
    config = dataset(tmp_path / "watershed", source, [32, 32, 32])
    graph = build(config, new_table)
    assert graph.n_layers == 2
    report = verify(graph.table, Fork(config.data_source.watershed, config.graph_id))
    assert report.ok, report.summary()
    assert not report.findings, report.summary()


def test_fib_250_with_its_true_bodies_is_clean(tmp_path: Path) -> None:
    path = real_data("fib_250.npz")
    source = {"segmentation": f"{path}#supervoxels", "agglomeration": f"{path}#groundtruth"}
    config = dataset(tmp_path / "watershed", source, [64, 64, 64])
    graph = build(config, SqliteTable("fib", tmp_path / "tables"))
    assert_sound(graph, config)


def test_verification_needs_nothing_of_a_graph_but_its_table(tmp_path: Path) -> None:
    source = {"segmentation": real_data("em_128.npz") + "#segmentation"}
    config = dataset(tmp_path / "watershed", source, [64, 64, 32])
    graph = build(config, SqliteTable("em", tmp_path / "tables"))
    report = verify(graph.table, Fork(tmp_path / "watershed", "real"), sample=3)
    assert report.ok, report.summary()
    assert report["voxels"].checked == 3
