"""ERROR_DUMP: every failed task of every stage leaves one file that tells where, what, and of how many bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sv_pipeline.config import IngestMode
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.ingest import stages
from sv_pipeline.ingest.batches import Batch, Stage, plan_batches
from sv_pipeline.ingest.run import ingest
from sv_pipeline.registry import Dataset
from sv_pipeline.storage.error_dump import add_details, dump_errors
from sv_pipeline.storage.precomputed import create_volume, open_volume
from sv_pipeline_tests.ingest import builds

SECRET = "hunter2hunter2"


@pytest.fixture
def dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "dumps"
    monkeypatch.setenv("ERROR_DUMP", str(folder))
    monkeypatch.setenv("POD_NAME", "worker-7")
    monkeypatch.setenv("NODE_NAME", "node-3")
    return folder


def only_dump(folder: Path) -> dict[str, Any]:
    (file,) = folder.iterdir()
    assert SECRET not in file.read_text()
    return dict(json.loads(file.read_text()))


def whole_layer(dataset: Dataset, stage: Stage, layer: int) -> Batch:
    (batch,) = plan_batches(stage, layer, dataset.grid, dataset.grid.coordinates(layer), 1000)
    return batch


def precomputed_source(folder: Path) -> dict[str, Any]:
    """The neuropil as a precomputed volume, which is read chunk by chunk."""
    create_volume(
        str(folder), resolution=(8, 8, 40), voxel_offset=builds.OFFSET, size=builds.SHAPE, chunk_size=(64, 64, 64)
    )
    open_volume(str(folder), writable=True).write(builds.neuropil().segmentation).result()
    return {"segmentation": str(folder)}


@pytest.mark.parametrize(
    ("stage", "layer", "name"),
    [
        (Stage.LABELS, 2, "labels_0_0_0"),
        (Stage.EDGES, 2, "edges_0_0_0"),
        (Stage.GRAPH, 2, "graph_L02_0_0_0"),
        (Stage.GRAPH, 3, "graph_L03_0_0_0"),
        (Stage.VOXELS, 3, "populate_0_0_0"),
    ],
)
def test_a_failed_task_of_any_stage_leaves_one_dump(
    tmp_path: Path, dumps: Path, stage: Stage, layer: int, name: str
) -> None:
    raw = builds.raw_config(tmp_path, source=precomputed_source(tmp_path / "source"))
    raw["ocdbt_config"]["populate_method"] = "parts"
    dataset = builds.register(raw, tmp_path / "home")
    stages.plan_watershed(dataset, Stage.LABELS)
    if stage in (Stage.GRAPH, Stage.VOXELS):
        ingest(dataset, mode=IngestMode.SETUP)
    broken = {
        Stage.LABELS: tmp_path / "source",
        Stage.GRAPH: tmp_path / "watershed" / "edges",
        Stage.VOXELS: tmp_path / "watershed",
    }
    if (stage in broken and layer != 3) or stage is Stage.VOXELS:
        for file in broken[stage].rglob("*"):
            if file.is_file() and file.name.startswith(("edges_", "7-", "info")) and "ocdbt" not in str(file):
                file.write_bytes(b"broken" if file.name != "info" else file.read_bytes())
    with pytest.raises(SvPipelineError):
        stages.run_batch(dataset, whole_layer(dataset, stage, layer))
    dump = only_dump(dumps)
    assert dump["task"] == name
    assert dump["where"]["host"]
    assert (dump["where"]["pod"], dump["where"]["node"]) == ("worker-7", "node-3")
    assert (dump["graph"], dump["stage"], dump["layer"]) == ("tissue", stage.value, layer)
    assert dump["batch"].startswith(f"{stage}_L{layer:02d}_")
    assert dump["source"]
    assert dump["target"]
    assert dump["mips"][0]["n_keys"] >= 1
    assert dump["mips"][0]["raw_bytes"] >= 8
    assert dump["error"]["message"]
    assert "Traceback" in dump["traceback"][0]


def test_a_layer_that_cannot_be_finished_leaves_a_dump(tmp_path: Path, dumps: Path) -> None:
    dataset = builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    ingest(dataset, mode=IngestMode.SETUP)
    with pytest.raises(SvPipelineError):
        stages.finish_layer(dataset, 3, IngestMode.VOXELS)
    dump = only_dump(dumps)
    assert dump["task"] == "finish_populate"
    assert dump["graph"] == "tissue"
    assert sum(mip["n_keys"] for mip in dump["mips"]) > 4


def test_nested_blocks_write_one_dump_with_the_details_of_all_and_without_secrets(dumps: Path) -> None:
    def fail() -> None:
        error = ValueError(f"cannot reach https://user:{SECRET}@host.org/x")
        add_details(error, "innermost", lambda: {"a": 1})
        raise error

    with (
        pytest.raises(ValueError, match="cannot reach"),
        dump_errors("outer", lambda: {"a": 3, "b": 3, "c": {"token": SECRET}}),
        dump_errors("inner", lambda: {"a": 2, "b": 2}),
    ):
        fail()
    dump = only_dump(dumps)
    assert (dump["task"], dump["a"], dump["b"]) == ("innermost", 1, 2)


def test_details_that_cannot_be_had_do_not_prevent_the_dump(dumps: Path) -> None:
    with pytest.raises(KeyError), dump_errors("outer", lambda: {"graph": "g"}), dump_errors("inner", lambda: 1 / 0):  # type: ignore[arg-type, return-value]
        raise KeyError("x")
    dump = only_dump(dumps)
    assert dump["graph"] == "g"
    assert "ZeroDivisionError" in dump["details"]


@pytest.mark.parametrize("place", ["a file/below", "http://host/x", "gs:/bucket"])
def test_a_dump_that_cannot_be_written_is_one_line_and_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERROR_DUMP", place)
    with pytest.raises(ValueError, match="the failure"), dump_errors("task", dict):
        raise ValueError("the failure")
    (record,) = [record for record in caplog.records if "could not dump" in record.message]
    assert record.exc_info is None
    assert "the failure of task" in record.message
