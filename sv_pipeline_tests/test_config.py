from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from sv_pipeline.config import BackendType, DatasetConfig, load_config, parse_config
from sv_pipeline.errors import ConfigError

OPERATORS_FILE = """
data_source:
  EDGES: gs://bucket/edges
  COMPONENTS: gs://bucket/components
  WATERSHED: gs://bucket/ws
  DATA_VERSION: 4
graph_config:
  CHUNK_SIZE: [256, 256, 512]
  FANOUT: 2
  SPATIAL_BITS: 10
  ID_PREFIX: "pcg_"
  ROOT_LOCK_EXPIRY:
    DAYS: 0
    MINUTES: 5
backend_client:
  TYPE: bigtable
  CONFIG:
    ADMIN: true
    READ_ONLY: false
    PROJECT: p
    INSTANCE: i
ocdbt_config:
  max_inline_value_bytes: 4096
  compression: {id: zstd, level: 5}
  manifest_kind: numbered
ingest_config:
  AGGLOMERATION: gs://bucket/agglomeration
"""


def parsed(**more: Any) -> DatasetConfig:
    return parse_config({"graph_id": "g", "data_source": {"WATERSHED": "/ws"}, **more})


def test_an_operators_file_works_once_it_has_a_graph_id(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text("graph_id: g\n" + OPERATORS_FILE)
    config = load_config(path)
    assert config.table_name == "pcg_g"
    assert config.edges_url == "gs://bucket/edges"
    assert config.graph_config.root_lock_expiry == timedelta(minutes=5)
    assert config.backend_client.type is BackendType.BIGTABLE
    assert (config.ocdbt_config.compression_level, config.ocdbt_config.manifest_kind) == (5, "numbered")


THEIRS = """
graph_config:
  ID: minnie
  ROOT_COUNTERS: 8
  LAYER_ID_BITS: 8
  OVERWRITE: true
data_source:
  WATERSHED: gs://bucket/ws
  CV_MIP: 0
backend_client:
  TYPE: bigtable
  CONFIG: {PROJECT: p, INSTANCE: i, CREDENTIALS: /secret/key.json, MAX_ROW_KEY_COUNT: 10000}
ocdbt_config:
  enabled: true
  populate_base: true
  populate_layer: 3
  sv_split_threshold: 10
  compression: {id: zstd, level: 12}
  max_inline_value_bytes: 4096
  max_dst_chunk_shape: [128, 128, 64]
ingest_config:
  USE_RAW_EDGES: false
"""


def test_every_key_of_theirs_is_accepted_and_those_without_a_meaning_are_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(THEIRS)
    config = load_config(path)
    assert config.graph_id == "minnie"
    assert config.ocdbt_config.compression == {"id": "zstd", "level": 12}
    assert config.ocdbt_config.max_dst_chunk_shape == (128, 128, 64)
    [line] = caplog.messages
    assert set(line.split(": ")[-1].split(", ")) == {
        "graph_config.ROOT_COUNTERS",
        "graph_config.OVERWRITE",
        "backend_client.CONFIG.CREDENTIALS",
        "backend_client.CONFIG.MAX_ROW_KEY_COUNT",
        "ocdbt_config.populate_base",
        "ocdbt_config.sv_split_threshold",
        "ingest_config",
    }
    caplog.clear()
    stored = config.model_dump(mode="json", by_alias=True)
    assert "secret" not in str(stored)
    assert parse_config(stored, stored=True) == config
    assert not caplog.messages


def test_a_graph_id_counts_more_than_their_name_of_the_graph() -> None:
    assert parsed(graph_config={"ID": "other"}).graph_id == "g"
    assert load_named({"ID": "other"}).graph_id == "other"


def load_named(graph_config: dict[str, Any]) -> DatasetConfig:
    return parse_config({"data_source": {"WATERSHED": "/ws"}, "graph_config": graph_config})


@pytest.mark.parametrize(
    ("section", "key", "value"), [("data_source", "CV_MIP", 1), ("graph_config", "LAYER_ID_BITS", 7)]
)
def test_values_of_theirs_that_would_change_the_graph_are_refused(section: str, key: str, value: int) -> None:
    raw: dict[str, Any] = {"graph_id": "g", "data_source": {"WATERSHED": "/ws"}}
    raw[section] = {**raw.get(section, {}), key: value}
    with pytest.raises(ConfigError, match=key):
        parse_config(raw)


def test_a_dump_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = parse_config({"graph_id": "g", **yaml.safe_load(OPERATORS_FILE)})
    assert parse_config(config.model_dump(mode="json", by_alias=True)) == config
    assert parse_config(config.model_dump(mode="json")) == config


def test_edges_and_components_lie_beside_the_watershed_by_default() -> None:
    assert (parsed().edges_url, parsed().components_url) == ("/ws/edges", "/ws/components")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"graph_confg": {}}, "graph_confg"),
        ({"graph_config": {"CHUNKSIZE": [1, 1, 1]}}, "CHUNKSIZE"),
        ({"graph_config": {"CHUNK_SIZE": [0, 64, 64]}}, "CHUNK_SIZE"),
        ({"graph_config": {"FANOUT": 4}}, "FANOUT"),
        ({"graph_config": {"ROOT_LOCK_EXPIRY": {"FORTNIGHTS": 1}}}, "FORTNIGHTS"),
        ({"backend_client": {"TYPE": "bigtable"}}, "PROJECT"),
        ({"backend_client": {"TYPE": "hbase"}}, "TYPE"),
        ({"ocdbt_config": {"max_inline_value_bytes": 1 << 21}}, "max_inline_value_bytes"),
        ({"ocdbt_config": {"compression": {"id": "gzip"}}}, "gzip"),
        ({"data_source": {}}, "WATERSHED"),
        ({"graph_id": "a|b"}, "a|b"),
        ({"graph_id": "base"}, "base"),
        ({"source": {}}, "segmentation"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as error:
        parsed(**more)
    assert named in str(error.value)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parsed(nonsense=1, graph_config={"SPATIAL_BITS": 99})
    assert "nonsense" in str(error.value)
    assert "SPATIAL_BITS" in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(tmp_path / "list.yaml")
