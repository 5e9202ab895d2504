"""The meta row: read by kvdbclient, byte for byte PyChunkedGraph's, never missing, and never running code."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import namedtuple
from datetime import timedelta
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from kvdbclient import BigTableClient, BigTableConfig

from sv_pipeline.config import DatasetConfig, parse_config
from sv_pipeline.errors import ConflictError, CorruptionError, NotFoundError
from sv_pipeline.table import keys, meta
from sv_pipeline.table.bigtable.table import BigtableTable
from sv_pipeline.table.columns import META_KEY
from sv_pipeline.table.interface import RowMutation, SetCell, Table
from sv_pipeline.table.meta import StoredDataSource, StoredGraphConfig, TableMeta


def config(**graph: Any) -> DatasetConfig:
    return parse_config(
        {
            "graph_id": "minnie",
            "data_source": {"WATERSHED": "gs://bucket/ws/", "EDGES": "gs://bucket/e"},
            "graph_config": {"CHUNK_SIZE": [256, 256, 512], "ID_PREFIX": "x_", **graph},
        }
    )


EXAMPLE = meta.from_config(config())


def store(table: Table, data: bytes) -> None:
    table.mutate([RowMutation(keys.META, [SetCell(META_KEY, data)])])


# -- the row ----------------------------------------------------------------------------------------------------------


def test_a_meta_comes_back(table: Table) -> None:
    meta.write_meta(table, EXAMPLE)
    assert meta.read_meta(table) == EXAMPLE


def test_a_table_without_meta_says_so(table: Table) -> None:
    with pytest.raises(NotFoundError, match="no meta"):
        meta.read_meta(table)


def test_a_meta_is_overwritten_only_on_purpose(table: Table) -> None:
    other = meta.from_config(config(CHUNK_SIZE=[64, 64, 64]))
    meta.write_meta(table, EXAMPLE)
    with pytest.raises(ConflictError, match="has a meta already"):
        meta.write_meta(table, other)
    assert meta.read_meta(table) == EXAMPLE
    meta.write_meta(table, other, overwrite=True)
    assert meta.read_meta(table) == other


def test_the_version_is_that_of_the_layout(table: Table) -> None:
    assert meta.read_version(table) is None
    meta.write_version(table)
    assert meta.read_version(table) == "3.1.7"


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_the_meta_says_what_the_configuration_says() -> None:
    graph, source, custom = EXAMPLE.graph_config, EXAMPLE.data_source, EXAMPLE.custom_data
    assert (graph.ID, graph.ID_PREFIX, graph.CHUNK_SIZE) == ("minnie", "x_", [256, 256, 512])
    assert all(type(v) is int for v in graph.CHUNK_SIZE)
    assert (graph.FANOUT, graph.SPATIAL_BITS, graph.LAYER_ID_BITS) == (2, 10, 8)
    assert timedelta(minutes=3) == graph.ROOT_LOCK_EXPIRY
    assert source.WATERSHED == "gs://bucket/ws/"
    assert source.EDGES == "gs://bucket/e"
    assert source.COMPONENTS == "gs://bucket/ws/components"
    assert custom["seg"]["ocdbt"] is True
    assert custom["ocdbt_config"]["populate_layer"] == 4
    assert EXAMPLE.custom_data["split_bounding_offset"] == [240, 240, 24]
    assert EXAMPLE.chunk_size == (256, 256, 512)


# -- pickles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pychunkedgraph(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with classes of the same names and shapes as PyChunkedGraph's."""

    class ChunkedGraphMeta:
        def __init__(self, graph_config: Any, data_source: Any, custom_data: Any = None) -> None:
            self.graph_config, self.data_source = graph_config, data_source
            self.custom_data = custom_data or {}

        def __getnewargs__(self) -> tuple[Any, Any]:
            return self.graph_config, self.data_source

        def __new__(cls, *_: Any) -> ChunkedGraphMeta:
            return object.__new__(cls)

    module = ModuleType(meta.MODULE)
    module.ChunkedGraphMeta = ChunkedGraphMeta  # type: ignore[attr-defined]
    module.GraphConfig = namedtuple("GraphConfig", StoredGraphConfig._fields)  # type: ignore[attr-defined]
    module.DataSource = namedtuple("DataSource", StoredDataSource._fields)  # type: ignore[attr-defined]
    for value in vars(module).values():
        if isinstance(value, type):
            value.__module__, value.__qualname__ = meta.MODULE, value.__name__
    for name in ("pychunkedgraph", "pychunkedgraph.graph"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, meta.MODULE, module)
    return module


def original(module: Any, example: TableMeta) -> bytes:
    graph, source = module.GraphConfig(*example.graph_config), module.DataSource(*example.data_source)
    return pickle.dumps(module.ChunkedGraphMeta(graph, source, dict(example.custom_data)), 4)


def test_the_pickle_is_the_one_that_pychunkedgraph_would_write(pychunkedgraph: ModuleType) -> None:
    assert meta.encode_meta(EXAMPLE) == original(pychunkedgraph, EXAMPLE)
    assert meta.decode_meta(original(pychunkedgraph, EXAMPLE)) == EXAMPLE


def test_pychunkedgraph_reads_the_pickle(pychunkedgraph: Any) -> None:
    read = pickle.loads(meta.encode_meta(EXAMPLE))
    assert type(read) is pychunkedgraph.ChunkedGraphMeta
    assert type(read.graph_config) is pychunkedgraph.GraphConfig
    assert read.graph_config == EXAMPLE.graph_config
    assert read.custom_data == EXAMPLE.custom_data


def test_the_pickle_is_the_same_in_a_process_without_libraries_that_change_pickling() -> None:
    code = (
        "from sv_pipeline.table import meta; from sv_pipeline.config import parse_config\n"
        "graph = {'CHUNK_SIZE': [256, 256, 512], 'ID_PREFIX': 'x_'}\n"
        "source = {'WATERSHED': 'gs://bucket/ws/', 'EDGES': 'gs://bucket/e'}\n"
        "raw = {'graph_id': 'minnie', 'data_source': source, 'graph_config': graph}\n"
        "print(meta.encode_meta(meta.from_config(parse_config(raw))).hex())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert bytes.fromhex(output) == meta.encode_meta(EXAMPLE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "chunk_size",
    [
        np.array([256, 256, 512]),
        np.array([256, 256, 512], ">u8"),
        [np.uint64(256), np.int32(256), np.float64(512)],
        (256, 256, 512),
    ],
)
def test_older_tables_with_numpy_sizes_are_read(pychunkedgraph: ModuleType, chunk_size: Any, protocol: int) -> None:
    matrix = np.arange(6, dtype=np.int16).reshape(2, 3)
    custom = {"matrix": matrix, "transposed": matrix.T}
    stored = TableMeta(EXAMPLE.graph_config._replace(CHUNK_SIZE=chunk_size), EXAMPLE.data_source, custom)
    pickled = pickle.dumps(pickle.loads(original(pychunkedgraph, stored)), protocol)
    read = meta.decode_meta(pickled)
    assert read.chunk_size == (256, 256, 512)
    assert read.data_source == EXAMPLE.data_source
    assert read.custom_data == {"matrix": matrix.tolist(), "transposed": matrix.T.tolist()}


def test_an_array_of_objects_is_refused(pychunkedgraph: ModuleType) -> None:
    stored = TableMeta(EXAMPLE.graph_config, EXAMPLE.data_source, {"objects": np.array([1, "a"], object)})
    with pytest.raises(CorruptionError, match="not numeric"):
        meta.decode_meta(original(pychunkedgraph, stored))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (["false"],)


def test_a_meta_cannot_run_code(table: Table) -> None:
    store(table, pickle.dumps(Malicious()))
    with pytest.raises(CorruptionError, match=r"subprocess\.check_call"):
        meta.read_meta(table)


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle", pickle.dumps({"graph_config": 1}), pickle.dumps(timedelta(1)), meta.encode_meta(EXAMPLE)[:-40]],
)
def test_a_broken_meta_is_corruption(table: Table, data: bytes) -> None:
    store(table, data)
    with pytest.raises(CorruptionError, match="meta of table"):
        meta.read_meta(table)


def test_objects_inside_of_custom_data_are_refused(pychunkedgraph: ModuleType) -> None:
    stored = TableMeta(EXAMPLE.graph_config, EXAMPLE.data_source, {"mesh": Malicious()})
    with pytest.raises(CorruptionError, match=r"subprocess\.check_call"):
        meta.decode_meta(original(pychunkedgraph, stored))


def test_kvdbclient_reads_meta_and_version(bigtable: BigtableTable) -> None:
    meta.write_meta(bigtable, EXAMPLE)
    meta.write_version(bigtable)
    project, instance = bigtable.project, bigtable.instance
    client = BigTableClient(bigtable.name, BigTableConfig(PROJECT=project, INSTANCE=instance))
    read = client.read_table_meta()
    assert client.read_table_version() == "3.1.7"
    assert read.custom_data == EXAMPLE.custom_data
    assert read.graph_config._surrogate_args == tuple(EXAMPLE.graph_config)
    assert read.data_source._surrogate_args == tuple(EXAMPLE.data_source)
    client.close()
