"""The dataset configuration: one YAML file per graph, validated before anything is written. Does no storage I/O.

It accepts the keys of PyChunkedGraph's dataset files (``data_source``, ``graph_config``, ``backend_client``,
``ocdbt_config``) and our own (``graph_id``, ``source``, ``ingest``).
"""

from __future__ import annotations

import logging
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from sv_pipeline.arguments import shown
from sv_pipeline.config_errors import SMALLEST, describe_errors, not_a_mapping, unusable_fields
from sv_pipeline.config_fields import (
    MAX_TABLE_NAME,
    ChunkAxis,
    CloudName,
    Folder,
    ForeignSection,
    Int,
    LocalFolder,
    NamePart,
    Nanometres,
    PopulateMethod,
    Section,
    Source,
    Voxel,
    no_bool,
)
from sv_pipeline.errors import ConfigError
from sv_pipeline.event_receivers import Receiver, require_own_names
from sv_pipeline.foreign_keys import without_foreign_keys
from sv_pipeline.memory import DEFAULT_BUDGET_MB
from sv_pipeline.ocdbt_config import OcdbtConfig
from sv_pipeline.places import LOCK_SUFFIX, parse_folder
from sv_pipeline.redaction import redacted, remember
from sv_pipeline.retention import Retention
from sv_pipeline.yaml_files import read_yaml

__all__ = [
    "BackendClient",
    "BackendType",
    "DataSource",
    "DatasetConfig",
    "GraphConfig",
    "IngestMode",
    "IngestOptions",
    "OcdbtConfig",
    "PopulateMethod",
    "SourceConfig",
    "load_config",
    "validate_graph_id",
]

_logger = logging.getLogger(__name__)

GRAPH_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}")
RESERVED_GRAPH_IDS = frozenset({"base", "d", "parts", "manifest.ocdbt"})
SHORTEST_LOCK, LONGEST_LOCK = timedelta(seconds=1), timedelta(days=1)
"""A lock with a shorter expiry would expire before it can be renewed; a longer one blocks others needlessly."""


def validate_graph_id(graph_id: str) -> str:
    """Return the graph id if it can name a table, a fork and a partition; raise ConfigError otherwise."""
    usable = isinstance(graph_id, str) and GRAPH_ID.fullmatch(graph_id) and not graph_id.endswith(LOCK_SUFFIX)
    if not usable or graph_id in RESERVED_GRAPH_IDS:
        raise ConfigError(
            f"graph id {shown(graph_id)} cannot be used.",
            remedy="Use 1 to 50 letters, digits, '_', '.' or '-', not starting with '.' or '-' and not ending with "
            f"{LOCK_SUFFIX}; {', '.join(sorted(RESERVED_GRAPH_IDS))} are reserved.",
        )
    return graph_id


class DataSource(Section):
    """Locations of the watershed volume and of its edge and component files (kvstore URLs)."""

    watershed: Folder = Field(alias="WATERSHED")
    """Neuroglancer precomputed volume of supervoxel ids."""
    edges: Folder | None = Field(default=None, alias="EDGES")
    """Folder of ``edges_x_y_z.proto.zst``; default: ``<watershed>/edges``."""
    components: Folder | None = Field(default=None, alias="COMPONENTS")
    """Folder of ``components_x_y_z.proto``; default: ``<watershed>/components``."""
    data_version: Int = Field(default=4, alias="DATA_VERSION", ge=0, le=1 << 31)
    """Version of the data, for readers; nothing depends on it here."""
    cv_mip: Int = Field(default=0, alias="CV_MIP")
    """Mip of the watershed volume from which the graph is built; only 0 is supported."""
    fill_missing: bool = Field(default=False, alias="FILL_MISSING")
    """Treat missing storage chunks of the watershed volume as background, however many are missing."""

    @field_validator("cv_mip")
    @classmethod
    def _the_finest_mip(cls, value: int) -> int:
        if value != 0:
            raise ValueError(f"graphs are built from mip 0, not {value}; make a separate volume of that mip")
        return value


class GraphConfig(Section):
    """Shape of the chunked graph."""

    chunk_size: tuple[ChunkAxis, ChunkAxis, ChunkAxis] = Field(default=(256, 256, 512), alias="CHUNK_SIZE")
    """Size of a chunk of the graph in voxels (x, y, z)."""
    fanout: Literal[2] = Field(default=2, alias="FANOUT")
    """Number of chunks of a layer, along each axis, in a chunk of the layer above."""
    layer_id_bits: Literal[8] = Field(default=8, alias="LAYER_ID_BITS")
    """Number of bits of an id that hold the layer."""
    spatial_bits: Int = Field(default=10, alias="SPATIAL_BITS", ge=1, le=18)
    """Number of bits of an id that hold one coordinate of a chunk; they limit the number of chunks along an axis."""
    id_prefix: NamePart = Field(default="", alias="ID_PREFIX")
    """Text that precedes the graph id in the name of the table."""
    root_lock_expiry: timedelta = Field(default=timedelta(minutes=3), alias="ROOT_LOCK_EXPIRY")
    """Time after which a lock expires that its owner has not renewed, such as ``{MINUTES: 3}``."""

    @field_validator("root_lock_expiry", mode="before")
    @classmethod
    def _days_and_minutes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = {"DAYS", "HOURS", "MINUTES", "SECONDS"}
            if unknown := {str(k).upper() for k in value} - known:
                raise ValueError(f"unknown keys {sorted(unknown)}; use {sorted(known)}")
            if len({str(k).upper() for k in value}) < len(value):
                raise ValueError("a unit of time appears twice")
            if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value.values()):
                raise ValueError("units of time take numbers, such as {MINUTES: 3}")
            try:
                return timedelta(**{str(k).lower(): v for k, v in value.items()})
            except (OverflowError, ValueError) as error:
                raise ValueError(f"this is not a duration: {error}") from error
        return no_bool(value)

    @field_validator("root_lock_expiry")
    @classmethod
    def _neither_too_short_nor_for_ever(cls, value: timedelta) -> timedelta:
        if not SHORTEST_LOCK <= value <= LONGEST_LOCK:
            raise ValueError("the expiry of a lock must be 1 second to 1 day, such as {MINUTES: 3}")
        return value


class BackendType(StrEnum):
    """Kind of database that holds the table."""

    SQLITE = "sqlite"
    BIGTABLE = "bigtable"


class BackendOptions(Section):
    """Options of a table backend; which ones apply depends on its type."""

    project: CloudName | None = Field(default=None, alias="PROJECT")
    """Google Cloud project of a Bigtable instance."""
    instance: CloudName | None = Field(default=None, alias="INSTANCE")
    """Bigtable instance."""
    admin: bool = Field(default=True, alias="ADMIN")
    """PyChunkedGraph's switch for clients that may make tables; accepted, but not used."""
    read_only: bool = Field(default=False, alias="READ_ONLY")
    """Refuse whatever would write to the table."""
    path: LocalFolder | None = Field(default=None, alias="PATH")
    """Folder of the SQLite tables; default: ``tables`` in the home folder."""


class BackendClient(Section):
    """The backend of the table."""

    type: BackendType = Field(default=BackendType.SQLITE, alias="TYPE")
    """Database of the table: sqlite needs no server, bigtable is for graphs that many edit."""
    config: BackendOptions = Field(default_factory=BackendOptions, alias="CONFIG")
    """Options of the database."""

    @model_validator(mode="after")
    def _bigtable_needs_an_address(self) -> BackendClient:
        if self.type is BackendType.BIGTABLE and not (self.config.project and self.config.instance):
            raise ValueError("backend_client.CONFIG needs PROJECT and INSTANCE when TYPE is bigtable")
        return self


class SourceConfig(Section):
    """Any segmentation from which to make a watershed volume. Omit it if the watershed volume exists already."""

    segmentation: Source
    """``.npz`` (with ``#key``), ``.npy`` or a precomputed volume (URL or folder)."""
    agglomeration: Source | None = None
    """Second volume of the same shape, or a ``.csv`` or ``.npz`` table with columns ``label, object``."""
    affinities: Source | None = None
    """Affinity volume of shape (x, y, z, 3), or a ``.csv`` table ``label_a, label_b, affinity[, area]``."""
    resolution: tuple[Nanometres, Nanometres, Nanometres] | None = None
    """Nanometres per voxel (x, y, z); default: that of the source. It is required if the source states none."""
    voxel_offset: tuple[Voxel, Voxel, Voxel] | None = None
    """First voxel (x, y, z); default: that of the source."""
    fill_missing: bool = False
    """Treat missing storage chunks of these volumes as background, however many are missing."""


class IngestMode(StrEnum):
    """What an ingest builds."""

    BOTH = "both"
    GRAPH = "graph"
    VOXELS = "voxels"
    SETUP = "setup"


class IngestOptions(Section):
    """Options of an ingest run."""

    mode: IngestMode = IngestMode.BOTH
    """What is built: rows and voxels, only one of them, or only the empty table and base."""
    workers: Int = Field(default=2, ge=1, le=1024)
    """Number of worker processes on one machine."""
    chunks_per_batch: Int = Field(default=64, ge=1, le=1 << 20)
    """Number of chunks that one batch (one Dagster step) handles."""
    worker_memory_mb: Int = Field(default=DEFAULT_BUDGET_MB, ge=16, le=1 << 24)
    """Memory in MiB that the work of one process may take; chunks are worked on in groups that fit it."""
    ramp_seconds: Int = Field(default=60, ge=0, le=86_400)
    """Time in seconds in which the processes of a large layer start."""
    read_isolated_supervoxels: bool = True
    """Search the voxels for supervoxels that no edge or component file names."""


class DatasetConfig(Section):
    """Everything that is needed to build one graph."""

    graph_id: str
    """Name of the graph, its table, its fork and its partition: letters, digits, ``_``, ``.`` and ``-``."""
    data_source: DataSource
    """Places of the watershed volume and its files."""
    source: SourceConfig | None = None
    """Segmentation from which the watershed volume is made. Leave it out if the watershed volume exists."""
    image: Source | None = None
    """Image of the tissue, for viewers: a precomputed volume, a TensorStore spec, or an ``.npz`` or ``.npy`` file."""
    graph_config: GraphConfig = Field(default_factory=GraphConfig)
    """Shape of the graph."""
    backend_client: BackendClient = Field(default_factory=BackendClient)
    """Database of the table."""
    ocdbt_config: OcdbtConfig = Field(default_factory=OcdbtConfig)
    """Format of the voxels."""
    ingest: IngestOptions = Field(default_factory=IngestOptions)
    """Options of ingest runs."""
    ingest_config: ForeignSection | None = None
    """PyChunkedGraph's section about its own workers; accepted, but not used."""
    events: tuple[Receiver, ...] = ()
    """Receivers of events about finished edits."""
    retention: Retention = Field(default_factory=Retention)
    """How much of the history of the voxels is kept; default: everything."""

    @model_validator(mode="before")
    @classmethod
    def _refer_to_a_watershed_of_our_own(cls, data: Any) -> Any:
        given = data.get("ocdbt_config", {}) if isinstance(data, dict) and data.get("source") is not None else None
        if isinstance(given, dict) and "populate_method" not in given:
            return {**data, "ocdbt_config": {**given, "populate_method": PopulateMethod.AUTO}}
        return data

    @field_validator("graph_id")
    @classmethod
    def _usable_graph_id(cls, value: str) -> str:
        try:
            return validate_graph_id(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _usable_table_name(self) -> DatasetConfig:
        if len(self.table_name) > MAX_TABLE_NAME or not GRAPH_ID.fullmatch(self.table_name):
            raise ValueError(
                f"graph_config.ID_PREFIX and graph_id make the table name {self.table_name!r}, which cannot be used: "
                f"at most {MAX_TABLE_NAME} characters, not starting with '.' or '-'"
            )
        return self

    @field_validator("events")
    @classmethod
    def _names_of_their_own(cls, value: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
        require_own_names(value)
        return value

    @property
    def edges_url(self) -> str:
        """Folder of the edge files."""
        return self.data_source.edges or self._in_watershed("edges")

    @property
    def components_url(self) -> str:
        """Folder of the component files."""
        return self.data_source.components or self._in_watershed("components")

    def _in_watershed(self, name: str) -> str:
        return parse_folder(self.data_source.watershed).inside(name).text

    @property
    def table_name(self) -> str:
        """Name of the table: ID_PREFIX followed by the graph id."""
        return self.graph_config.id_prefix + self.graph_id


def load_config(path: str | Path, **overrides: Any) -> DatasetConfig:
    """Read and validate a dataset YAML file.

    Parameters
    ----------
    path
        Path of the YAML file.
    overrides
        Top-level keys that replace those of the file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a field is missing, unknown or invalid; the message names each such field.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise not_a_mapping(str(path), raw, remedy=SMALLEST)
    return parse_config({**raw, **overrides}, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str = "configuration", stored: bool = False) -> DatasetConfig:
    """Validate a mapping; ConfigError names every invalid field. Secrets in it are masked from then on.

    Keys of PyChunkedGraph's dataset files that have no meaning here are named in one line of the log. This is skipped
    for a ``stored`` configuration, because they were named when it was first read.
    """
    remember(raw)
    try:
        known, foreign = without_foreign_keys(raw)
        config = DatasetConfig.model_validate(known)
    except pydantic.ValidationError as error:
        lines = [f"  {line}" for line in describe_errors(DatasetConfig, error)]
        raise unusable_fields(where, lines) from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply.", remedy="See docs/ingest.md for an example.") from error
    for name, field in DataSource.model_fields.items():
        place = getattr(config.data_source, name)
        if isinstance(place, str) and redacted(place) != place:
            raise ConfigError(
                f"{where}: data_source.{field.alias} holds a password or a token ({place}). It is stored in the table "
                "and published to readers.",
                remedy="Leave the secret out; credentials for a bucket come from the environment.",
            )
    if foreign and not stored:
        _logger.warning("%s: accepted, but without a meaning here: %s", where, ", ".join(foreign))
    return config
