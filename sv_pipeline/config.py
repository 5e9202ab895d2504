"""The dataset configuration: one YAML per graph, validated before anything is written. Does no storage I/O.

Accepts the keys of PyChunkedGraph's operators (``data_source``, ``graph_config``, ``backend_client``,
``ocdbt_config``) beside our own (``graph_id``, ``source``, ``ingest``).
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sv_pipeline.errors import ConfigError

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

GRAPH_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}")
RESERVED_GRAPH_IDS = frozenset({"base", "d", "parts", "manifest.ocdbt"})

Triple = tuple[int, int, int]
PositiveTriple = tuple[pydantic.PositiveInt, pydantic.PositiveInt, pydantic.PositiveInt]
PositiveFloatTriple = tuple[pydantic.PositiveFloat, pydantic.PositiveFloat, pydantic.PositiveFloat]


def validate_graph_id(graph_id: str) -> str:
    """The graph id itself, if it can name a table, a fork and a partition; ConfigError otherwise."""
    if not GRAPH_ID.fullmatch(graph_id) or graph_id in RESERVED_GRAPH_IDS:
        raise ConfigError(
            f"graph id {graph_id!r} cannot be used.",
            remedy="Use 1 to 50 letters, digits, '_', '.' or '-', not starting with '.' or '-'; "
            f"{', '.join(sorted(RESERVED_GRAPH_IDS))} are reserved.",
        )
    return graph_id


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSource(_Model):
    """Where the watershed volume and its edge and component files are (kvstore URLs)."""

    watershed: str = Field(alias="WATERSHED")
    """Neuroglancer precomputed volume of supervoxel ids."""
    edges: str | None = Field(default=None, alias="EDGES")
    """Folder of ``edges_x_y_z.proto.zst``; default: ``<watershed>/edges``."""
    components: str | None = Field(default=None, alias="COMPONENTS")
    """Folder of ``components_x_y_z.proto``; default: ``<watershed>/components``."""
    data_version: int = Field(default=4, alias="DATA_VERSION")
    fill_missing: bool = Field(default=False, alias="FILL_MISSING")
    """Take storage chunks of the watershed volume that are not there for background, however many they are."""


class GraphConfig(_Model):
    """Shape of the chunked graph."""

    chunk_size: PositiveTriple = Field(default=(256, 256, 512), alias="CHUNK_SIZE")
    fanout: Literal[2] = Field(default=2, alias="FANOUT")
    spatial_bits: int = Field(default=10, alias="SPATIAL_BITS", ge=1, le=18)
    id_prefix: str = Field(default="", alias="ID_PREFIX")
    root_lock_expiry: timedelta = Field(default=timedelta(minutes=3), alias="ROOT_LOCK_EXPIRY")

    @field_validator("root_lock_expiry", mode="before")
    @classmethod
    def _days_and_minutes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = {"DAYS", "HOURS", "MINUTES", "SECONDS"}
            if unknown := {str(k).upper() for k in value} - known:
                raise ValueError(f"unknown keys {sorted(unknown)}; use {sorted(known)}")
            return timedelta(**{str(k).lower(): v for k, v in value.items()})
        return value


class BackendType(StrEnum):
    """Where the table is."""

    SQLITE = "sqlite"
    BIGTABLE = "bigtable"


class BackendOptions(_Model):
    """Options of a backend; which ones count depends on its type."""

    project: str | None = Field(default=None, alias="PROJECT")
    instance: str | None = Field(default=None, alias="INSTANCE")
    admin: bool = Field(default=True, alias="ADMIN")
    read_only: bool = Field(default=False, alias="READ_ONLY")
    path: str | None = Field(default=None, alias="PATH")
    """Folder of SQLite tables; default: ``tables`` in the home folder."""


class BackendClient(_Model):
    """The table's backend."""

    type: BackendType = Field(default=BackendType.SQLITE, alias="TYPE")
    config: BackendOptions = Field(default_factory=BackendOptions, alias="CONFIG")

    @model_validator(mode="after")
    def _bigtable_needs_an_address(self) -> BackendClient:
        if self.type is BackendType.BIGTABLE and not (self.config.project and self.config.instance):
            raise ValueError("backend_client.CONFIG needs PROJECT and INSTANCE when TYPE is bigtable")
        return self


class PopulateMethod(StrEnum):
    """How workers write the base without contention on its manifest."""

    PARTS = "parts"
    """Each task into a private store; one process merges them by reference."""
    COORDINATOR = "coordinator"
    """All tasks through one DistributedCoordinatorServer."""
    DIRECT = "direct"
    """Atomic commits straight to the base; for one worker."""


class OcdbtConfig(_Model):
    """Format of the base; persisted with the base and the graph, fixed once the base exists."""

    max_inline_value_bytes: int = Field(default=4096, ge=0, le=1 << 20)
    max_decoded_node_bytes: int = Field(default=262144, ge=4096)
    version_tree_arity_log2: int = Field(default=4, ge=1, le=16)
    compression_level: int | None = Field(default=3, ge=-7, le=22)
    """zstd level of B+tree nodes and manifests; None = no compression."""
    manifest_kind: Literal["single", "numbered"] = "single"
    populate_layer: int = Field(default=4, ge=2)
    """Graph layer one chunk of which is one populate task; the top layer where the graph has fewer."""
    populate_method: PopulateMethod = PopulateMethod.PARTS
    coordinator_address: str | None = None
    """host:port; default: environment variable SV_PIPELINE_COORDINATOR."""
    mips: int | None = Field(default=None, ge=1)
    """Number of mips of the base; default: those of the source, or until the volume fits one storage chunk."""
    storage_chunk_size: PositiveTriple | None = None
    """Voxels of a storage chunk; default: the source's."""

    @model_validator(mode="before")
    @classmethod
    def _compression_as_tensorstore_writes_it(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "compression" not in data:
            return data
        if "compression_level" in data:
            raise ValueError("give compression or compression_level, not both")
        rest = {key: value for key, value in data.items() if key != "compression"}
        match data["compression"]:
            case None:
                return {**rest, "compression_level": None}
            case {"id": "zstd", **options} if set(options) <= {"level"}:
                return {
                    **rest,
                    "compression_level": options.get("level", cls.model_fields["compression_level"].default),
                }
            case other:
                raise ValueError(f"compression {other!r} is not known; write {{id: zstd, level: 3}}, or null")


class SourceConfig(_Model):
    """Any segmentation, to make a watershed volume of. Left out when the watershed exists already."""

    segmentation: str
    """``.npz`` (with ``#key``), ``.npy`` or a precomputed volume (URL or folder)."""
    agglomeration: str | None = None
    """Second volume of the same shape, or a ``.csv`` / ``.npz`` table ``label, object``."""
    affinities: str | None = None
    """Affinity volume (x, y, z, 3), or a ``.csv`` table ``label_a, label_b, affinity[, area]``."""
    resolution: PositiveFloatTriple | None = None
    """Nanometres per voxel; default: the source's own, else an error."""
    voxel_offset: Triple | None = None
    fill_missing: bool = False
    """Take storage chunks of these volumes that are not there for background, however many they are."""


class IngestMode(StrEnum):
    """What an ingest does."""

    BOTH = "both"
    GRAPH = "graph"
    VOXELS = "voxels"
    SETUP = "setup"


class IngestOptions(_Model):
    """How an ingest runs."""

    mode: IngestMode = IngestMode.BOTH
    workers: int = Field(default=2, ge=1)
    """Processes that one machine uses."""
    chunks_per_batch: int = Field(default=64, ge=1)
    """Chunks that one batch (one Dagster step) handles."""
    read_isolated_supervoxels: bool = True
    """Look into the voxels for supervoxels that no edge or component file names."""


class DatasetConfig(_Model):
    """All that is needed to build one graph."""

    graph_id: str
    data_source: DataSource
    source: SourceConfig | None = None
    graph_config: GraphConfig = Field(default_factory=GraphConfig)
    backend_client: BackendClient = Field(default_factory=BackendClient)
    ocdbt_config: OcdbtConfig = Field(default_factory=OcdbtConfig)
    ingest: IngestOptions = Field(default_factory=IngestOptions)
    ingest_config: dict[str, Any] | None = None
    """PyChunkedGraph's section on its own workers; accepted, not used."""

    @field_validator("graph_id")
    @classmethod
    def _usable_graph_id(cls, value: str) -> str:
        try:
            return validate_graph_id(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def edges_url(self) -> str:
        """Folder of edge files."""
        return self.data_source.edges or self.data_source.watershed.rstrip("/") + "/edges"

    @property
    def components_url(self) -> str:
        """Folder of component files."""
        return self.data_source.components or self.data_source.watershed.rstrip("/") + "/components"

    @property
    def table_name(self) -> str:
        """Name of the table: ID_PREFIX + graph id."""
        return self.graph_config.id_prefix + self.graph_id


def load_config(path: str | Path, **overrides: Any) -> DatasetConfig:
    """Read a dataset YAML.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        Top-level keys that replace those of the file.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a field is missing, unknown or wrong: the message names each such field.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file: {error}.", remedy="Save it as UTF-8.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not hold a mapping.", remedy="See docs/ingest.md for an example.")
    return parse_config({**raw, **overrides}, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str = "configuration") -> DatasetConfig:
    """Validate a mapping; ConfigError names every field that is wrong."""
    try:
        return DatasetConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or '(top)'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{where}: {len(lines)} field(s) cannot be used:\n" + "\n".join(lines)) from error
