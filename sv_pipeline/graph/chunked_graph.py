"""One chunked graph: its table, its meta, and the grid and id layout that follow from them. Reads no node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import ConfigError, ConflictError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import LAYER_BITS, IdLayout
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage.kv import as_url
from sv_pipeline.storage.precomputed import read_info
from sv_pipeline.table import meta as table_meta
from sv_pipeline.table.columns import COUNTS_KEPT, MAX_LAYERS, META_KEY
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline.table.keys import COUNTS_SIGN, META
from sv_pipeline.table.meta import TableMeta

__all__ = ["ChunkedGraph", "create_chunked_graph", "open_chunked_graph"]

MAJOR_VERSION = table_meta.TABLE_VERSION.split(".")[0]


@dataclass(frozen=True)
class ChunkedGraph:
    """An open chunked graph. It is a value that can be sent to other processes."""

    table: Table
    meta: TableMeta
    grid: ChunkGrid
    layout: IdLayout

    @property
    def n_layers(self) -> int:
        """Number of layers including the root layer."""
        return self.layout.n_layers

    @property
    def graph_id(self) -> str:
        """Name of the graph; the name of the table if the meta has none."""
        return self.meta.graph_config.ID or self.table.name

    @cached_property
    def watershed_url(self) -> str:
        """Folder of the watershed volume."""
        return as_url(self._source("WATERSHED"))

    @cached_property
    def fork(self) -> Fork:
        """The graph's version of the voxels; it may not exist."""
        return Fork(self.watershed_url, self.graph_id)

    @cached_property
    def edges_url(self) -> str:
        """Folder of the edge files."""
        return as_url(self._source("EDGES"))

    @cached_property
    def components_url(self) -> str:
        """Folder of the component files."""
        return as_url(self._source("COMPONENTS"))

    def _source(self, name: str) -> str:
        value = getattr(self.meta.data_source, name)
        if not value:
            raise ConfigError(f"the meta of table {self.table.name!r} does not name the folder of its {name}.")
        return str(value)


def open_chunked_graph(table: Table) -> ChunkedGraph:
    """Open the graph in a table that sv_pipeline or PyChunkedGraph has created.

    Raises
    ------
    NotFoundError
        If the table or its meta does not exist.
    ConfigError
        If the table has a format that this version cannot read.
    InputError
        If the watershed volume, from which the size of the graph follows, cannot be read.
    """
    meta = table_meta.read_meta(table)
    version = table_meta.read_version(table)
    if version is not None and version.split(".")[0] != MAJOR_VERSION:
        raise ConfigError(
            f"table {table.name!r} has version {version}; this version of sv_pipeline reads {MAJOR_VERSION}.x.",
            remedy="Migrate it with PyChunkedGraph's own tools first.",
        )
    stored = meta.graph_config
    if stored.FANOUT != 2 or stored.LAYER_ID_BITS != LAYER_BITS:
        raise ConfigError(
            f"table {table.name!r} has FANOUT {stored.FANOUT} and LAYER_ID_BITS {stored.LAYER_ID_BITS}; "
            f"only 2 and {LAYER_BITS} can be read."
        )
    return _assemble(table, meta)


def create_chunked_graph(table: Table, config: DatasetConfig) -> ChunkedGraph:
    """Create an empty graph: the table, its version and its meta. Nothing is written if anything is wrong.

    Raises
    ------
    ConflictError
        If the graph exists already.
    InputError, ConfigError
        If the watershed volume cannot be read, or is too large for the ids.
    """
    source = config.data_source.model_copy(
        update={
            "watershed": _without_slash(config.data_source.watershed),
            "edges": _without_slash(config.edges_url),
            "components": _without_slash(config.components_url),
        }
    )
    meta = table_meta.from_config(config.model_copy(update={"data_source": source}))
    graph = _assemble(table, meta)
    # A crash between the two steps leaves a table without a meta, which is completed here.
    if not table.exists():
        table.create()
    elif table.read_rows([META], [META_KEY]):
        raise ConflictError(
            f"the graph {config.graph_id!r} exists already in table {table.name!r}.",
            remedy="Choose another graph_id, or remove the graph deliberately.",
        )
    table_meta.write_version(table)
    # Without this sign, counts of an ingest are not kept yet: earlier versions wrote only the done-markers.
    table.mutate([RowMutation(COUNTS_SIGN, [COUNTS_KEPT.set(1)])])
    table_meta.write_meta(table, meta)
    return graph


def _without_slash(place: str) -> str:
    # Other readers of the meta append "/" and a name to the place, and in a bucket "a//b" is not "a/b".
    url = as_url(place)
    return url if url.endswith("://") else url.removesuffix("/")


def _assemble(table: Table, meta: TableMeta) -> ChunkedGraph:
    url = meta.data_source.WATERSHED
    if not url:
        raise ConfigError(f"the meta of table {table.name!r} names no watershed volume.")
    grid = ChunkGrid(read_info(url).bounds, meta.chunk_size)
    if grid.n_layers > MAX_LAYERS:
        raise ConfigError(
            f"the graph of this volume would need {grid.n_layers} layers; at most {MAX_LAYERS} can be stored.",
            remedy="Raise CHUNK_SIZE.",
        )
    return ChunkedGraph(table, meta, grid, IdLayout(grid.n_layers, int(meta.graph_config.SPATIAL_BITS)))
