"""An ingest as a whole, in this process and in a pool: what it builds, in whatever pieces it is asked for."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import ConfigError, NotFoundError, NotReadyError
from sv_pipeline.graph import edge_files
from sv_pipeline.ingest import pool, progress, stages
from sv_pipeline.ingest.batches import Stage
from sv_pipeline.ingest.pool import ALONE_VARIABLE, _work
from sv_pipeline.ingest.run import ingest
from sv_pipeline.processes import Workers
from sv_pipeline.progress import Progress
from sv_pipeline.registry import Dataset, Registry
from sv_pipeline.segmentation.base.layout import populate_layer
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline_tests.graph.compare import stored_shape
from sv_pipeline_tests.ingest import builds


class Recorder(Progress):
    """Remembers what it was told: per step the chunks to be done, and those done of them."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def begin(self, name: str, total: int, done: int = 0) -> None:
        assert total > 0
        self.steps[name] = [total - done, 0]

    def advance(self, chunks: int) -> None:
        self.steps[list(self.steps)[-1]][1] += chunks


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A graph ingested by two worker processes. Tests only read it."""
    folder = tmp_path_factory.mktemp("built")
    dataset = builds.register(builds.raw_config(folder), folder / "home")
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALONE_VARIABLE, "0")  # so little work would start no processes
        report = ingest(dataset, workers=2, progress=recorder)
    assert report.steps["fork"] == "ready"
    assert all(total == done for total, done in recorder.steps.values())
    return dataset


def generation(dataset: Dataset) -> int:
    return current_version(ocdbt.base_folder(dataset.watershed_url)).generation


def test_two_processes_build_a_sound_graph(built: Dataset) -> None:
    assert built.grid.n_layers == 4
    assert built.grid.bounds.start == builds.OFFSET
    builds.assert_sound(built)
    builds.assert_nothing_leaked(built)


def test_what_is_done_of_a_batch_is_reported_before_its_end(tmp_path: Path) -> None:
    """A batch of a whole layer, in a worker process, whose counter is read while it works."""
    dataset = builds.register(builds.raw_config(tmp_path, ingest={"chunks_per_batch": 100}), tmp_path / "home")
    reports: list[int] = []
    for stage, finish in ((Stage.LABELS, stages.finish_labels), (Stage.EDGES, stages.finish_edges)):
        (batch,) = stages.plan_watershed(dataset, stage)
        stages.run_batch(dataset, batch, advance=reports.append)
        finish(dataset)
        assert reports == [1] * 12
        reports.clear()
    stages.setup(dataset)
    (batch, *_) = stages.plan_layer(dataset, 2)
    with Workers(1, counters=2) as workers:
        workers.submit(_work, dataset.graph_id, dataset.home, batch.key, None, 1).result()
        assert list(workers.counters) == [0, 12]


@pytest.mark.parametrize(
    ("alone", "expected", "processes"),
    [
        pytest.param("", None, 0, id="little work"),
        pytest.param("0", None, 2, id="processes at once"),
        pytest.param("0.001", 0.0, 2, id="more work than was expected"),
    ],
)
def test_processes_are_started_when_the_work_is_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: str, expected: float | None, processes: int
) -> None:
    monkeypatch.setenv(ALONE_VARIABLE, alone)
    if expected is not None:
        monkeypatch.setattr(pool, "expected_seconds", lambda *_: expected)
    dataset = builds.register(builds.raw_config(tmp_path, ingest={"chunks_per_batch": 4}), tmp_path / "home")
    batches, done = stages.plan_watershed(dataset, Stage.LABELS), list[int]()
    with pool.WorkerPool(2) as workers:
        assert workers.run(dataset, batches, advance=done.append) == []
        assert len(multiprocessing.active_children()) == processes
    assert sum(done) == 12
    assert not stages.plan_watershed(dataset, Stage.LABELS)


def test_a_second_run_does_nothing(built: Dataset) -> None:
    rows, before, keys = builds.rows_of(built), generation(built), kv.list_keys(built.watershed_url)
    recorder = Recorder()
    ingest(built, workers=2, progress=recorder)
    assert recorder.steps
    assert all(total == done == 0 for total, done in recorder.steps.values())
    assert builds.rows_of(built) == rows
    assert generation(built) == before
    assert kv.list_keys(built.watershed_url) == keys


def test_voxels_are_not_taken_of_a_watershed_that_is_still_being_made(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    first, *_ = stages.plan_watershed(dataset, Stage.LABELS)
    stages.run_batch(dataset, first)
    stages.setup(dataset, IngestMode.VOXELS)
    voxels = populate_layer(dataset.config.ocdbt_config, dataset.grid)
    with pytest.raises(NotReadyError, match=r"watershed .* is not complete"):
        stages.plan_layer(dataset, voxels, IngestMode.VOXELS)
    assert not dataset.base.done_tasks()
    ingest(dataset, workers=1, mode=IngestMode.VOXELS)
    assert dataset.base.is_complete()


def test_one_process_builds_the_same_as_two(built: Dataset, tmp_path: Path) -> None:
    alone = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(alone, workers=1)
    builds.assert_same(alone, built)


def test_graph_then_voxels_is_both(built: Dataset, tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset, mode=IngestMode.GRAPH)
    assert not kv.list_keys(ocdbt.ocdbt_folder(dataset.watershed_url))
    ingest(dataset, mode=IngestMode.VOXELS)
    builds.assert_same(dataset, built)
    builds.assert_sound(dataset)


def test_setup_then_voxels_then_graph_is_both(built: Dataset, tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset, mode=IngestMode.SETUP)
    assert dataset.table.exists()
    assert all(status.done == 0 for status in progress.layer_status(dataset.graph).values())
    ingest(dataset, mode=IngestMode.VOXELS)
    assert dataset.fork.exists()
    assert all(status.done == 0 for status in progress.layer_status(dataset.graph).values())
    ingest(dataset)
    builds.assert_same(dataset, built)
    builds.assert_sound(dataset)


def test_layer_by_layer_is_the_same_as_at_once(built: Dataset, tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    with pytest.raises(NotReadyError, match="layer 2 has 12 of 12 chunks unfinished"):
        ingest(dataset, layers=[3])
    ingest(dataset, layers=[2])
    assert not dataset.fork.exists()
    ingest(dataset, layers=[4, 3])
    assert not dataset.fork.exists()
    ingest(dataset)
    builds.assert_same(dataset, built)


@pytest.mark.parametrize("layer", [0, 1, 5])
def test_a_layer_that_does_not_exist_is_named(built: Dataset, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"no layer {layer} to build. Its layers are 2 to 4"):
        ingest(built, layers=[layer])


def test_a_purged_layer_is_built_again_as_it_was(built: Dataset, tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset)
    for layer in (3, 2):
        progress.purge_layer(dataset.graph, layer)
        assert [n for n, status in progress.layer_status(dataset.graph).items() if status.done] == list(range(2, layer))
        ingest(dataset)
        builds.assert_same(dataset, built)
        builds.assert_sound(dataset)


def regrouped(built: Dataset, folder: Path) -> dict[str, Any]:
    """Another agglomeration of the same supervoxels: every supervoxel alone; as configuration of a second graph."""
    components = kv.as_url(folder / "components")
    for coordinate in built.grid.coordinates(2):
        found = edge_files.read_components(built.config.components_url, coordinate)
        singles = [np.array([sv], np.uint64) for sv in np.concatenate([*found, np.zeros(0, np.uint64)])]
        edge_files.write_components(components, coordinate, singles)
    raw = built.config.model_dump(mode="json", by_alias=True)
    raw |= {"graph_id": "regrouped", "source": None}
    raw["data_source"] |= {"EDGES": built.config.edges_url, "COMPONENTS": components}
    return raw


def test_a_second_graph_shares_the_base(tmp_path: Path) -> None:
    first = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(first)
    shape, before = stored_shape(first.graph), generation(first)
    second = builds.register(regrouped(first, tmp_path), tmp_path / "home")
    recorder = Recorder()
    ingest(second, progress=recorder)
    assert recorder.steps["layer 3"][0] == second.grid.count(3), "voxels were copied again"
    assert generation(first) == before
    for dataset in (first, second):
        builds.assert_sound(dataset)
    assert stored_shape(first.graph) == shape
    layers = [progress.layer_status(d.graph)[4].nodes for d in (first, second)]
    assert layers[1] > layers[0]
    assert all((a == b).all() for a, b in zip(builds.voxels_of(first), builds.voxels_of(second), strict=True))
    assert Registry(str(tmp_path / "home")).graph_ids() == ["regrouped", "tissue"]


def test_a_volume_of_one_chunk_has_two_layers(tmp_path: Path) -> None:
    raw = builds.raw_config(tmp_path, graph_config={"CHUNK_SIZE": [128, 128, 64]})
    dataset = builds.register(raw, tmp_path / "home")
    ingest(dataset, workers=2)
    assert dataset.grid.n_layers == 2
    report = builds.verify_dataset(dataset)
    assert report.ok, report.summary()
    builds.assert_nothing_leaked(dataset)


def test_a_finished_dataset_in_the_keys_of_pychunkedgraph_is_ingested(built: Dataset, tmp_path: Path) -> None:
    url = built.watershed_url
    raw = {
        "graph_id": "given",
        "data_source": {"EDGES": f"{url}edges", "COMPONENTS": f"{url}components", "WATERSHED": url.rstrip("/")},
        "graph_config": {
            "CHUNK_SIZE": list(builds.CHUNK),
            "FANOUT": 2,
            "SPATIAL_BITS": 10,
            "ID_PREFIX": "pre_",
            "ROOT_LOCK_EXPIRY": {"DAYS": 0, "MINUTES": 3},
        },
        "backend_client": {"TYPE": "sqlite", "CONFIG": {"ADMIN": True, "READ_ONLY": False}},
        "ingest_config": {},
        "ocdbt_config": {"populate_layer": 3},
    }
    config = builds.config_file(tmp_path / "given.yaml", raw)
    from sv_pipeline.config import load_config
    from sv_pipeline.ingest import stages

    dataset = stages.register(load_config(config), str(tmp_path / "home"))
    ingest(dataset)
    assert dataset.table.name == "pre_given"
    builds.assert_sound(dataset)
    builds.assert_same(dataset, built)


def test_what_is_not_registered_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'nowhere' is not known"):
        Registry(str(tmp_path)).get("nowhere")
