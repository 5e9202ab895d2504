"""The meta and version rows of a table: what a graph is and where its voxels are, in PyChunkedGraph's format.

The meta is a pickle of PyChunkedGraph's classes. It is written through stand-in classes under their names, byte for
byte like PyChunkedGraph, and read through an allow-list. So PyChunkedGraph is not needed, and no foreign code runs.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple

from sv_pipeline.config import DatasetConfig, IngestMode
from sv_pipeline.errors import ConflictError, CorruptionError, NotFoundError
from sv_pipeline.places import parse_folder
from sv_pipeline.table import keys, pickles
from sv_pipeline.table.columns import META_KEY, VERSION
from sv_pipeline.table.interface import CellMatch, RowMutation, SetCell, Table

__all__ = [
    "OCDBT_CONFIG",
    "SPLIT_BOUNDING_OFFSET",
    "TABLE_VERSION",
    "StoredDataSource",
    "StoredGraphConfig",
    "TableMeta",
    "from_config",
    "ocdbt_settings",
    "read_meta",
    "read_version",
    "write_meta",
    "write_version",
]

TABLE_VERSION = "3.1.7"
"""Version of the table layout. PyChunkedGraph refuses tables of another major version."""

OCDBT_CONFIG = "ocdbt_config"
"""Key of the custom data: where the graph's voxels are, in PyChunkedGraph's words."""
SPLIT_BOUNDING_OFFSET = (240, 240, 24)
MODULE = "pychunkedgraph.graph.meta"


class StoredGraphConfig(NamedTuple):
    """The fields of PyChunkedGraph's ``GraphConfig``, in its order."""

    ID: str | None = None
    ID_PREFIX: str = ""
    CHUNK_SIZE: Any = None
    """Size of a chunk in voxels (x, y, z), a list of ints."""
    FANOUT: int = 2
    LAYER_ID_BITS: int = 8
    SPATIAL_BITS: int = 10
    OVERWRITE: bool = False
    ROOT_LOCK_EXPIRY: timedelta = timedelta(minutes=3)
    ROOT_COUNTERS: int = 8
    """This field has no effect: there are always 256 counters."""


class StoredDataSource(NamedTuple):
    """The fields of PyChunkedGraph's ``DataSource``, in its order."""

    EDGES: str | None = None
    COMPONENTS: str | None = None
    WATERSHED: str | None = None
    DATA_VERSION: int | None = None
    CV_MIP: int = 0


@dataclass(frozen=True)
class TableMeta:
    """The meta of a table."""

    graph_config: StoredGraphConfig
    data_source: StoredDataSource
    custom_data: Mapping[str, Any] = field(default_factory=dict)
    """Further data of the graph: ``seg``, ``ocdbt_config``, ``split_bounding_offset``, ..."""

    @property
    def chunk_size(self) -> tuple[int, int, int]:
        """Size of a chunk of layers 1 and 2 in voxels, (x, y, z)."""
        x, y, z = (int(v) for v in self.graph_config.CHUNK_SIZE)
        return x, y, z


def from_config(config: DatasetConfig) -> TableMeta:
    """Return the meta of the graph that a configuration describes."""
    graph = config.graph_config
    return TableMeta(
        graph_config=StoredGraphConfig(
            ID=config.graph_id,
            ID_PREFIX=graph.id_prefix,
            CHUNK_SIZE=[int(v) for v in graph.chunk_size],
            FANOUT=graph.fanout,
            SPATIAL_BITS=graph.spatial_bits,
            ROOT_LOCK_EXPIRY=graph.root_lock_expiry,
        ),
        data_source=StoredDataSource(
            EDGES=config.edges_url,
            COMPONENTS=config.components_url,
            WATERSHED=config.data_source.watershed,
            DATA_VERSION=config.data_source.data_version,
        ),
        custom_data={
            "seg": {
                "ocdbt": True,
                "sv_split_threshold": 10,
                "ocdbt_path": parse_folder(config.data_source.watershed).folder_url + f"ocdbt/{config.graph_id}/",
            },
            OCDBT_CONFIG: ocdbt_settings(config),
            "split_bounding_offset": list(SPLIT_BOUNDING_OFFSET),
        },
    )


def ocdbt_settings(config: DatasetConfig) -> dict[str, Any]:
    """Return the part of the meta with which other software finds the graph's fork and builds its spec.

    A graph without voxels has no fork, so it is not ``enabled``.
    """
    stored = config.ocdbt_config.stored()
    return {**stored, "enabled": stored["enabled"] and config.ingest.mode is not IngestMode.GRAPH}


# -- rows -------------------------------------------------------------------------------------------------------------


def read_meta(table: Table) -> TableMeta:
    """Read the meta of a table.

    Raises
    ------
    NotFoundError
        If the table or its meta does not exist.
    CorruptionError
        If the meta cannot be read, or requests code that is not allowed.
    """
    row = table.read_rows([keys.META], [META_KEY], newest_only=True).get(keys.META)
    if not row:
        raise NotFoundError(f"table {table.name!r} has no meta.", remedy="Run the setup of its ingest first.")
    return decode_meta(row[META_KEY][0].value, f"the meta of table {table.name!r}")


def write_meta(table: Table, meta: TableMeta, *, overwrite: bool = False) -> None:
    """Write the meta; an old one stays readable until the new one is written.

    Raises
    ------
    ConflictError
        If there is a meta already and ``overwrite`` is False.
    """
    cell = SetCell(META_KEY, encode_meta(meta))
    if overwrite:
        table.mutate([RowMutation(keys.META, [cell])])
    elif table.check_and_mutate(keys.META, [CellMatch(META_KEY)], if_unmatched=[cell]):
        raise ConflictError(
            f"table {table.name!r} has a meta already.", remedy="Choose another graph id, or overwrite it deliberately."
        )


def read_version(table: Table) -> str | None:
    """Read the version of PyChunkedGraph that the table's layout follows; None if it is not stored."""
    return VERSION.newest(table.read_rows([keys.VERSION], [VERSION.key], newest_only=True).get(keys.VERSION))


def write_version(table: Table, version: str = TABLE_VERSION) -> None:
    """Write the version."""
    table.mutate([RowMutation(keys.VERSION, [VERSION.set(version)])])


# -- pickles ----------------------------------------------------------------------------------------------------------


class _StoredMeta:
    """Stand-in for ``ChunkedGraphMeta``, which is created from two arguments and then gets a state."""

    def __new__(cls, *arguments: Any) -> _StoredMeta:
        self = object.__new__(cls)
        self.__dict__.update(zip(("graph_config", "data_source"), arguments, strict=False))
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise CorruptionError(f"the state of the meta is {type(state).__name__}, not a dict.")
        self.__dict__.update(state)


_STAND_INS: dict[Any, str] = {
    StoredGraphConfig: "GraphConfig",
    StoredDataSource: "DataSource",
    _StoredMeta: "ChunkedGraphMeta",
}


# The Python implementation is used, because only it can write a class under another name.
_PythonPickler: Any = pickle._Pickler


class _Pickler(_PythonPickler):  # type: ignore[misc]
    # This table is separate, because dill, which many libraries load, adds its functions to that of the base class.
    dispatch: ClassVar[dict[type, Any]] = {
        type(None): _PythonPickler.save_none,
        bool: _PythonPickler.save_bool,
        int: _PythonPickler.save_long,
        float: _PythonPickler.save_float,
        str: _PythonPickler.save_str,
        bytes: _PythonPickler.save_bytes,
        tuple: _PythonPickler.save_tuple,
        list: _PythonPickler.save_list,
        dict: _PythonPickler.save_dict,
    }

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in _STAND_INS:
            super().save_global(obj, name)
            return
        self.save(MODULE)
        self.save(_STAND_INS[obj])
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _StoredMeta):
            return NotImplemented
        arguments = (obj.__dict__["graph_config"], obj.__dict__["data_source"])
        return copyreg.__newobj__, (_StoredMeta, *arguments), obj.__dict__  # type: ignore[attr-defined]


def encode_meta(meta: TableMeta) -> bytes:
    """Pickle the meta as PyChunkedGraph does."""
    stored = _StoredMeta()
    stored.__dict__.update(
        graph_config=meta.graph_config, data_source=meta.data_source, custom_data=dict(meta.custom_data)
    )
    buffer = io.BytesIO()
    _Pickler(buffer, pickles.PROTOCOL).dump(stored)
    return buffer.getvalue()


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    (MODULE, "ChunkedGraphMeta"): _StoredMeta,
    (MODULE, "GraphConfig"): StoredGraphConfig,
    (MODULE, "DataSource"): StoredDataSource,
    ("datetime", "timedelta"): timedelta,
    **pickles.NUMBERS,
}


def decode_meta(data: bytes, what: str = "the meta") -> TableMeta:
    """Decode the pickled meta; ``what`` names it in errors."""
    stored = pickles.load(data, _ALLOWED, what)
    values = stored.__dict__ if isinstance(stored, _StoredMeta) else {}
    graph_config, data_source = values.get("graph_config"), values.get("data_source")
    if not isinstance(graph_config, StoredGraphConfig) or not isinstance(data_source, StoredDataSource):
        raise CorruptionError(f"{what} is not the meta of a chunked graph.")
    custom_data = values.get("custom_data") or {}
    if not isinstance(custom_data, dict):
        raise CorruptionError(f"{what} holds custom data that are not a mapping.")
    return TableMeta(graph_config, data_source, custom_data)
