"""Forecasts of ingests: what is determined is exact, what is sampled is covered, and a sample leaves nothing behind."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sv_pipeline.config import IngestMode, parse_config
from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.ingest import planning, progress, stages
from sv_pipeline.ingest.batches import Batch, Stage
from sv_pipeline.ingest.forecast import Forecast
from sv_pipeline.ingest.prices import PRICES, bigtable_nodes, costs_of, parse_prices
from sv_pipeline.ingest.scratch import leftovers
from sv_pipeline.registry import Dataset
from sv_pipeline.reports.plan import compare
from sv_pipeline.storage.precomputed import plan_volume
from sv_pipeline.storage.stored_json import parse_stored
from sv_pipeline.storage.volume_info import info_json
from sv_pipeline.table import keys
from sv_pipeline.testing.volumes import cells
from sv_pipeline_tests.ingest import builds

LARGEST = (192_424, 131_051, 13_008)
"""Voxels of the largest public dataset of this kind."""
ITS_CHUNKS = [10_010_624, 1_251_328, 168_448, 24_064, 3_008, 384, 96, 24, 6, 2, 1]


def volume_config(
    folder: Path, size: tuple[int, int, int], chunk: tuple[int, int, int], **changes: Any
) -> dict[str, Any]:
    """The configuration of a watershed volume of which there is only the info file."""
    (folder / "watershed").mkdir(parents=True)
    measures: dict[str, Any] = {"resolution": (8, 8, 40), "voxel_offset": (0, 0, 0), "chunk_size": (64, 64, 64)}
    info = info_json(plan_volume(size=size, **measures))
    (folder / "watershed" / "info").write_text(json.dumps(info))
    return builds.raw_config(folder, source=None, graph_config={"CHUNK_SIZE": list(chunk)}, **changes)


def files_in(folder: Path) -> set[str]:
    """All files of a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# -- from the info file alone -----------------------------------------------------------------------------------------


def test_chunks_of_the_largest_dataset(tmp_path: Path) -> None:
    raw = volume_config(tmp_path, LARGEST, (256, 256, 512), ingest={"chunks_per_batch": 64})
    found = planning.plan_ingest(parse_config(raw), str(tmp_path / "home"), supervoxels=112e9, workers=100)
    assert list(found.workload.layers.values()) == ITS_CHUNKS
    assert found.quantity("supervoxels").value == 112e9
    assert found.quantity("ingest rows").value == sum(ITS_CHUNKS)
    assert not (tmp_path / "home").exists()
    assert files_in(tmp_path) == {"watershed/info"}
    assert not [note for note in found.notes if "do not help" in note]
    more = planning.plan_ingest(parse_config(raw), str(tmp_path / "home"), supervoxels=112e9, workers=201)
    assert "More workers than 200 do not help: no stage has more batches." in more.notes


@given(
    size=st.tuples(*[st.integers(1, 5000)] * 3),
    chunk=st.tuples(*[st.sampled_from([64, 128, 256])] * 3),
    workers=st.integers(1, 300),
    per_batch=st.integers(1, 100),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_forecast_is_consistent(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int, int],
    chunk: tuple[int, int, int],
    workers: int,
    per_batch: int,
) -> None:
    folder = tmp_path_factory.mktemp("volume")
    raw = volume_config(folder, size, chunk, ingest={"chunks_per_batch": per_batch})
    found = planning.plan_ingest(parse_config(raw), str(folder), workers=workers)
    alone = planning.plan_ingest(parse_config(raw), str(folder), workers=1)
    for stage, single in zip(found.stages, alone.stages, strict=True):
        assert stage.work.low <= stage.work.value <= stage.work.high
        assert 1 <= stage.batches <= stage.chunks
        # Workers help, but not more than their number, and no batch is divided.
        assert single.wall.value / min(workers, stage.batches) <= stage.wall.value * 1.0001
        assert stage.wall.value <= single.wall.value * 1.0001
    assert found.wall.value <= found.work.value * 1.0001
    kept = parse_stored(json.dumps(asdict(found)).encode(), Forecast, "a forecast")
    assert asdict(kept) == asdict(found)


def test_batches_are_expected_to_take_their_share_of_a_stage(tmp_path: Path) -> None:
    raw = builds.raw_config(tmp_path, ingest={"mode": "graph", "chunks_per_batch": 5})
    dataset = builds.register(raw, tmp_path / "home")
    batches = stages.plan_watershed(dataset, Stage.EDGES)
    assert [batch.stop - batch.first for batch in batches] == [5, 2, 5]
    work = {stage.name: stage.work.value for stage in planning.default_forecast(dataset).stages}
    assert planning.expected_seconds(dataset, batches) == pytest.approx(work["edges"])
    assert planning.expected_seconds(dataset, batches[1:2]) == pytest.approx(work["edges"] / 6)
    assert planning.expected_seconds(dataset, [Batch(Stage.GRAPH, 3, 0, 1)]) == pytest.approx(
        work["layer 3"] / dataset.grid.count(3)
    )
    assert planning.expected_seconds(dataset, [Batch(Stage.VOXELS, 4, 0, 1)]) == math.inf, "not in this mode"


# -- beside an ingest -------------------------------------------------------------------------------------------------


@st.composite
def small_volumes(draw: st.DrawFn) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
    chunk = draw(st.tuples(*[st.sampled_from([16, 24])] * 3))
    chunks = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)))
    cut = draw(st.integers(0, 7))
    shape = (chunk[0] * chunks[0] - cut, chunk[1] * chunks[1], chunk[2] * chunks[2] - cut // 2)
    return shape, chunk, draw(st.integers(0, 1000))


@pytest.mark.slow
@given(volume=small_volumes(), per_batch=st.integers(1, 8))
@settings(max_examples=8, suppress_health_check=list(HealthCheck), deadline=None)
def test_what_is_determined_is_what_the_ingest_counts(
    tmp_path_factory: pytest.TempPathFactory,
    volume: tuple[tuple[int, int, int], tuple[int, int, int], int],
    per_batch: int,
) -> None:
    folder = tmp_path_factory.mktemp("volume")
    shape, chunk, seed = volume
    raw = builds.raw_config(
        folder,
        source=cells(shape, 25, seed).write(folder / "source"),
        graph_config={"CHUNK_SIZE": list(chunk)},
        ingest={"chunks_per_batch": per_batch},
    )
    config = parse_config(raw)
    count = math.prod(-(-s // c) for s, c in zip(shape, chunk, strict=True))
    forecast = planning.plan_ingest(config, str(folder / "home"), sample=count)
    assert not leftovers(str(folder / "home"))

    dataset = stages.register(config, str(folder / "home"))
    by_name = {stage.name: stage for stage in forecast.stages}
    for stage in (Stage.LABELS, Stage.EDGES):
        assert len(stages.plan_watershed(dataset, stage)) == by_name[stage].batches
        for batch in stages.plan_watershed(dataset, stage):
            stages.run_batch(dataset, batch)
        (stages.finish_labels if stage is Stage.LABELS else stages.finish_edges)(dataset)
    stages.setup(dataset)
    for layer in stages.layers_of(dataset):
        batches = stages.plan_layer(dataset, layer)
        kinds = [batch.stage for batch in batches]
        assert kinds.count(Stage.GRAPH) == by_name[f"layer {layer}"].batches
        assert kinds.count(Stage.VOXELS) == (by_name["voxels"].batches if layer == min(3, dataset.grid.n_layers) else 0)
        for batch in batches:
            stages.run_batch(dataset, batch)
        stages.finish_layer(dataset, layer)

    layers = progress.layer_status(dataset.graph)
    assert {layer: status.chunks for layer, status in layers.items()} == forecast.workload.layers
    chunk_rows = [keys.ingest_range(layer) for layer in layers]
    assert sum(1 for _ in dataset.table.scan(chunk_rows)) == forecast.quantity("ingest rows").value
    # The sample held all chunks, so it counted the very supervoxels and edges.
    assert forecast.quantity("supervoxels").value == layers[2].supervoxels
    assert forecast.quantity("edges").value == layers[2].edges
    assert by_name["layer 2"].nodes is not None
    assert by_name["layer 2"].nodes.value == layers[2].nodes
    exact = {c.name: c for c in compare(dataset, forecast) if c.predicted.is_exact and "seconds" not in c.name}
    assert len(exact) >= 2 + len(layers)
    assert all(c.covered for c in exact.values())


@pytest.mark.slow
def test_most_intervals_of_samples_cover_what_is_there(tmp_path: Path) -> None:
    covered: list[bool] = []
    for seed in range(4):
        folder = tmp_path / str(seed)
        source = cells((80, 64, 48), 60, seed).write(folder / "source")
        config = parse_config(builds.raw_config(folder, source=source, graph_config={"CHUNK_SIZE": [16, 16, 16]}))
        found = planning.plan_ingest(config, str(folder / "home"), sample=12, seed=seed)
        truth = planning.plan_ingest(config, str(folder / "home"), sample=60)
        for name in ("supervoxels", "edges"):
            assert truth.quantity(name).is_exact
            assert not found.quantity(name).is_exact
            covered.append(found.quantity(name).covers(truth.quantity(name).value))
    assert np.mean(covered) >= 0.75


def test_a_sample_of_empty_chunks_does_not_claim_that_the_volume_is_empty(tmp_path: Path) -> None:
    labels = np.zeros((64, 64, 64), np.uint32)
    labels[48:, 48:, 48:] = 1 + np.arange(16, dtype=np.uint32) // 4
    source = tmp_path / "source" / "labels.npy"
    source.parent.mkdir()
    np.save(source, labels)
    raw = builds.raw_config(
        tmp_path,
        source={"segmentation": str(source), "resolution": [8, 8, 8]},
        graph_config={"CHUNK_SIZE": [16, 16, 16]},
    )
    found = planning.plan_ingest(parse_config(raw), str(tmp_path / "home"), sample=3)
    assert found.quantity("supervoxels").value == 0
    for name in ("supervoxels", "nodes"):
        assert found.quantity(name).covers(4), name
    assert [note for note in found.notes if note.startswith("No chunk of the sample holds a supervoxel")]


def test_a_sample_of_a_given_watershed_leaves_it_as_it_was(tmp_path: Path, twin: Dataset) -> None:
    watershed = Path(twin.watershed_url.removeprefix("file://"))
    before = files_in(watershed)
    raw = builds.raw_config(tmp_path, "other", source=None, data_source={"WATERSHED": str(watershed)})
    found = planning.plan_ingest(parse_config(raw), str(tmp_path / "home"), sample=12)
    status = progress.layer_status(twin.graph)
    assert found.quantity("supervoxels").value == status[2].supervoxels
    assert found.quantity("edges").value == status[2].edges
    assert files_in(watershed) == before
    assert files_in(tmp_path / "home") == set()


def test_a_second_graph_on_a_complete_base_copies_no_voxels(tmp_path: Path, twin: Dataset) -> None:
    watershed = twin.watershed_url.removeprefix("file://")
    raw = builds.raw_config(tmp_path, "second", source=None, data_source={"WATERSHED": watershed})
    found = planning.plan_ingest(parse_config(raw), str(tmp_path / "home"))
    assert "voxels" not in [stage.name for stage in found.stages]
    assert found.quantity("base bytes").value == 0
    assert [note for note in found.notes if "complete already" in note]


def test_after_an_ingest_its_forecast_stands_beside_what_happened(tmp_path: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    builds.ingest(dataset)
    kept = planning.kept_forecast(dataset)
    assert kept is not None
    compared = {c.name: c for c in compare(dataset, kept)}
    assert {"supervoxels", "nodes", "table bytes", "layer 4: chunks"} <= set(compared)
    assert compared["layer 2: chunks"].covered
    assert compared["supervoxels"].actual == progress.layer_status(dataset.graph)[2].supervoxels


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_sample_larger_than_the_volume_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = parse_config(builds.raw_config(tmp_path))
    before = files_in(tmp_path)
    for count, said in ((13, "larger than the volume, which has 12"), (1, "no interval")):
        with pytest.raises(ConfigError, match=said):
            planning.plan_ingest(config, str(tmp_path / "home"), sample=count)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("backend", [{"TYPE": "sqlite", "CONFIG": {"READ_ONLY": True}}, {"TYPE": "bigtable"}])
def test_a_sample_is_refused_before_anything_is_written_if_the_backend_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: dict[str, Any]
) -> None:
    """Otherwise it would leave a record that no command can remove."""
    monkeypatch.delenv("BIGTABLE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "no key"))
    if backend["TYPE"] == "bigtable":
        backend = {**backend, "CONFIG": {"PROJECT": "p", "INSTANCE": "i"}}
    raw = builds.raw_config(tmp_path, backend_client=backend)
    before = files_in(tmp_path)
    with pytest.raises(ConfigError):
        planning.plan_ingest(parse_config(raw), str(tmp_path / "home"), sample=3)
    assert files_in(tmp_path) == before
    assert not leftovers(str(tmp_path / "home"))


def test_a_volume_without_an_info_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no 'info' file"):
        planning.plan_ingest(parse_config(builds.raw_config(tmp_path, source=None)), str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("worker-minute=1", "there is no price 'worker-minute'"),
        ("worker-hour", "is not a price"),
        ("worker-hour=much", "is not an amount"),
        ("worker-hour=nan", "is not an amount"),
        ("worker-hour=-1", "is not an amount"),
    ],
)
def test_prices_that_cannot_be_used_are_named(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_prices([given])
    with pytest.raises(ConfigError, match="given twice"):
        parse_prices(["worker-hour=1", "worker-hour=2"])


def test_costs_are_units_times_prices(tmp_path: Path) -> None:
    raw = volume_config(tmp_path, (4096, 4096, 2048), (256, 256, 512))
    found = planning.plan_ingest(parse_config(raw), str(tmp_path), workers=10)
    lines = {line.price: line for line in costs_of(found, dict.fromkeys(PRICES, 2.0))}
    assert set(lines) == set(PRICES)
    assert all(line.amount.value == 2 * line.units.value for line in lines.values())
    assert lines["worker-hour"].units.value == pytest.approx(10 * found.wall.value / 3600)
    assert lines["table-gb-month"].units.value == pytest.approx(found.quantity("table bytes").value / 1e9)
    assert bigtable_nodes(found).value >= 1


@pytest.mark.parametrize("mode", list(IngestMode))
def test_every_mode_has_a_plan(tmp_path: Path, mode: IngestMode) -> None:
    raw = volume_config(tmp_path, (500, 300, 200), (64, 64, 64), ingest={"mode": mode.value})
    found = planning.plan_ingest(parse_config(raw), str(tmp_path))
    names = {stage.name for stage in found.stages}
    assert ("voxels" in names) == (mode in (IngestMode.BOTH, IngestMode.VOXELS))
    assert ("layer 2" in names) == (mode in (IngestMode.BOTH, IngestMode.GRAPH))
