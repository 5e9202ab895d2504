"""A graph is registered from the launchpad: mistakes are refused before there is a run, and the result leads on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.definitions import defs
from sv_pipeline.defs.config_schema import schema_of
from sv_pipeline.defs.partitions import graph_layers, graphs
from sv_pipeline.defs.registration import EXAMPLE, RefusedConfigError
from sv_pipeline.registry import Registry
from sv_pipeline_tests.defs.conftest import small_config


def job() -> dg.JobDefinition:
    return defs().resolve_job_def("register_graph_job")


@pytest.fixture
def dataset_yaml(tmp_path: Path, small_segmentation: Path) -> dict[str, Any]:
    config = small_config(tmp_path, small_segmentation, "fresh")
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_graph_is_registered_by_its_content_or_its_path(
    dataset_yaml: dict[str, Any], as_file: bool, tmp_path: Path, home: str, instance: dg.DagsterInstance
) -> None:
    path = tmp_path / "fresh.yaml"
    path.write_text(yaml.safe_dump(dataset_yaml))
    given = {"path": str(path)} if as_file else {"dataset": dataset_yaml}
    result = job().execute_in_process(instance=instance, run_config=given)
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    metadata = output.step_output_data.metadata
    assert metadata["size"].value == "96 x 80 x 40 voxels of 16 x 16 x 40 nm"
    assert metadata["layers"].value == "layer 2: 18 chunks, layer 3: 4 chunks, layer 4: 1 chunks"
    assert "fresh" in str(metadata["next"].value)
    assert instance.get_dynamic_partitions(str(graphs.name)) == ["fresh"]
    assert instance.get_dynamic_partitions(str(graph_layers.name)) == [f"fresh|L{n:02d}" for n in (2, 3, 4)]


def test_what_cannot_be_registered_is_refused_before_there_is_a_run(
    dataset_yaml: dict[str, Any], tmp_path: Path, home: str, instance: dg.DagsterInstance
) -> None:
    unknown = {**dataset_yaml, "graph_config": {"CHUNK_SIZE": [32, 32, 32], "CHUNKSIZE": 3}}
    for given, said in (
        ({"path": str(tmp_path / "nowhere.yaml")}, "nowhere.yaml"),
        ({"dataset": EXAMPLE}, "source.segmentation: there is no /data/my_segmentation.npz"),
        ({"dataset": {**dataset_yaml, "graph_id": "a|b"}}, "graph_id"),
        ({"dataset": unknown}, "did you mean graph_config.CHUNK_SIZE"),
    ):
        with pytest.raises(RefusedConfigError, match=said):
            job().execute_in_process(instance=instance, run_config=given)
    for malformed in ({}, {"path": "a.yaml", "dataset": dataset_yaml}):
        with pytest.raises(dg.DagsterInvalidConfigError):
            job().execute_in_process(instance=instance, run_config=malformed)
    assert instance.get_runs_count() == 0
    assert Registry(home).graph_ids() == []


def test_the_launchpad_documents_every_field_and_its_example_is_a_dataset() -> None:
    def undocumented(shape: dg.Permissive, place: str = "") -> list[str]:
        found = [f"{place}{name}" for name, field in shape.fields.items() if not field.description]
        for name, field in shape.fields.items():
            if hasattr(field.config_type, "fields"):
                found += undocumented(field.config_type, f"{place}{name}.")
        return found

    schema = schema_of(DatasetConfig)
    assert undocumented(schema) == []
    chunk_size = schema.fields["graph_config"].config_type.fields["CHUNK_SIZE"]
    assert "Default: [256, 256, 512]." in str(chunk_size.description)
    parse_config(EXAMPLE)


def test_the_schema_accepts_what_a_file_may_hold() -> None:
    """Its types refuse nothing that the configuration accepts: fields of every kind, null, and foreign keys."""
    given = {
        "graph_id": "g",
        "data_source": {"WATERSHED": "/data/ws", "EDGES": None},
        "source": {"segmentation": "/data/a.npz", "resolution": [8, 8.5, 40], "voxel_offset": [-1, 0, 3]},
        "graph_config": {"ROOT_LOCK_EXPIRY": {"MINUTES": 3}, "ROOT_COUNTERS": {"a": 1}, "ID": "g"},
        "backend_client": {"TYPE": "bigtable", "CONFIG": {"PROJECT": "p", "INSTANCE": "i", "CREDENTIALS": {"a": 1}}},
        "ocdbt_config": {"compression": {"id": "zstd"}, "populate_layer": None, "storage_chunk_size": [64, 64, 64]},
        "ingest": {"mode": "graph"},
        "ingest_config": {"anything": [1, {"a": None}]},
        "events": [{"to": "dagster"}],
    }
    parse_config(given)
    seen = []

    @dg.op(config_schema=schema_of(DatasetConfig))
    def take(context) -> None:  # type: ignore[no-untyped-def]  # Dagster does not know annotations that are texts
        seen.append(context.op_config)

    @dg.job
    def take_job() -> None:
        take()

    assert take_job.execute_in_process(run_config={"ops": {"take": {"config": given}}}).success
    assert parse_config(seen[0]) == parse_config(given)
