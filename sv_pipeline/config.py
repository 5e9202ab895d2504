"""The dataset configuration: one YAML per graph, validated before anything is written. Does no storage I/O.

Accepts the keys of PyChunkedGraph's operators (``data_source``, ``graph_config``, ``backend_client``,
``ocdbt_config``) beside our own (``graph_id``, ``source``, ``ingest``).
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sv_pipeline.arguments import shown
from sv_pipeline.config_errors import describe_errors
from sv_pipeline.errors import ConfigError
from sv_pipeline.places import LOCK_SUFFIX, is_spec, local_folder, parse_folder, parse_source
from sv_pipeline.redaction import redacted, remember
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

GRAPH_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,49}")
RESERVED_GRAPH_IDS = frozenset({"base", "d", "parts", "manifest.ocdbt"})
MAX_TABLE_NAME = 50
"""Characters; Bigtable's limit."""
MAX_CHUNK_AXIS = 1 << 16
"""Voxels. Larger chunks fit into no memory, and lay out grids that fit into no number."""
FARTHEST_VOXEL = 1 << 40
SHORTEST_LOCK, LONGEST_LOCK = timedelta(seconds=1), timedelta(days=1)
"""A lock that expires sooner is lost before it can be renewed; one that expires later blocks others for nothing."""


# -- kinds of values --------------------------------------------------------------------------------------------------


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")  # noqa: TRY004 - pydantic takes ValueErrors
    return value


def _understood(parse: Any) -> Any:
    """A check of a text by a parser of places; the text itself is kept."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return text

    return check


def _source(text: str) -> None:
    if not is_spec(text):
        parse_source(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or any(c.isspace() or c == "/" for c in text) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError("an address is host:port")
    if not 0 < int(port) < 1 << 16:
        raise ValueError("a port is a number from 1 to 65535")
    return text


Int = Annotated[int, BeforeValidator(_no_bool)]
ChunkAxis = Annotated[int, BeforeValidator(_no_bool), Field(gt=0, le=MAX_CHUNK_AXIS)]
Nanometres = Annotated[float, BeforeValidator(_no_bool), Field(ge=1e-3, le=1e9, allow_inf_nan=False)]
"""A size of a voxel. What is smaller was given in metres, or in millimetres."""
Voxel = Annotated[int, BeforeValidator(_no_bool), Field(ge=-FARTHEST_VOXEL, le=FARTHEST_VOXEL)]
Folder = Annotated[str, AfterValidator(_understood(parse_folder))]
LocalFolder = Annotated[str, AfterValidator(_understood(local_folder))]
Source = Annotated[str, AfterValidator(_understood(_source))]
Address = Annotated[str, AfterValidator(_address)]
CloudName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]*$", max_length=100)]
"""Of a project or an instance of Google Cloud."""
NamePart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$", max_length=MAX_TABLE_NAME)]


def validate_graph_id(graph_id: str) -> str:
    """The graph id itself, if it can name a table, a fork and a partition; ConfigError otherwise."""
    usable = isinstance(graph_id, str) and GRAPH_ID.fullmatch(graph_id) and not graph_id.endswith(LOCK_SUFFIX)
    if not usable or graph_id in RESERVED_GRAPH_IDS:
        raise ConfigError(
            f"graph id {shown(graph_id)} cannot be used.",
            remedy="Use 1 to 50 letters, digits, '_', '.' or '-', not starting with '.' or '-' and not ending with "
            f"{LOCK_SUFFIX}; {', '.join(sorted(RESERVED_GRAPH_IDS))} are reserved.",
        )
    return graph_id


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if field.alias and field.alias != name and name in data and field.alias in data:
                    raise ValueError(f"{field.alias} and {name} are one field: give it once")
        return data


class DataSource(_Model):
    """Where the watershed volume and its edge and component files are (kvstore URLs)."""

    watershed: Folder = Field(alias="WATERSHED")
    """Neuroglancer precomputed volume of supervoxel ids."""
    edges: Folder | None = Field(default=None, alias="EDGES")
    """Folder of ``edges_x_y_z.proto.zst``; default: ``<watershed>/edges``."""
    components: Folder | None = Field(default=None, alias="COMPONENTS")
    """Folder of ``components_x_y_z.proto``; default: ``<watershed>/components``."""
    data_version: Int = Field(default=4, alias="DATA_VERSION", ge=0, le=1 << 31)
    fill_missing: bool = Field(default=False, alias="FILL_MISSING")
    """Take storage chunks of the watershed volume that are not there for background, however many they are."""


class GraphConfig(_Model):
    """Shape of the chunked graph."""

    chunk_size: tuple[ChunkAxis, ChunkAxis, ChunkAxis] = Field(default=(256, 256, 512), alias="CHUNK_SIZE")
    fanout: Literal[2] = Field(default=2, alias="FANOUT")
    spatial_bits: Int = Field(default=10, alias="SPATIAL_BITS", ge=1, le=18)
    id_prefix: NamePart = Field(default="", alias="ID_PREFIX")
    root_lock_expiry: timedelta = Field(default=timedelta(minutes=3), alias="ROOT_LOCK_EXPIRY")

    @field_validator("root_lock_expiry", mode="before")
    @classmethod
    def _days_and_minutes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            known = {"DAYS", "HOURS", "MINUTES", "SECONDS"}
            if unknown := {str(k).upper() for k in value} - known:
                raise ValueError(f"unknown keys {sorted(unknown)}; use {sorted(known)}")
            if len({str(k).upper() for k in value}) < len(value):
                raise ValueError("a unit of time stands twice")
            if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value.values()):
                raise ValueError("units of time are numbers, such as {MINUTES: 3}")
            try:
                return timedelta(**{str(k).lower(): v for k, v in value.items()})
            except (OverflowError, ValueError) as error:
                raise ValueError(f"this is no time: {error}") from error
        return _no_bool(value)

    @field_validator("root_lock_expiry")
    @classmethod
    def _neither_too_short_nor_for_ever(cls, value: timedelta) -> timedelta:
        if not SHORTEST_LOCK <= value <= LONGEST_LOCK:
            raise ValueError("a lock expires after 1 second to 1 day, such as {MINUTES: 3}")
        return value


class BackendType(StrEnum):
    """Where the table is."""

    SQLITE = "sqlite"
    BIGTABLE = "bigtable"


class BackendOptions(_Model):
    """Options of a backend; which ones count depends on its type."""

    project: CloudName | None = Field(default=None, alias="PROJECT")
    instance: CloudName | None = Field(default=None, alias="INSTANCE")
    admin: bool = Field(default=True, alias="ADMIN")
    read_only: bool = Field(default=False, alias="READ_ONLY")
    path: LocalFolder | None = Field(default=None, alias="PATH")
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

    enabled: bool = True
    """Whether the graph's meta tells PyChunkedGraph to use the fork."""
    max_inline_value_bytes: Int = Field(default=4096, ge=0, le=1 << 20)
    max_decoded_node_bytes: Int = Field(default=262144, ge=4096, le=1 << 30)
    version_tree_arity_log2: Int = Field(default=4, ge=1, le=16)
    compression_level: Int | None = Field(default=3, ge=-7, le=22)
    """zstd level of B+tree nodes and manifests; None = no compression."""
    manifest_kind: Literal["single", "numbered"] = "single"
    populate_layer: Int = Field(default=4, ge=2, le=64)
    """Graph layer one chunk of which is one populate task; the top layer where the graph has fewer."""
    populate_method: PopulateMethod = PopulateMethod.PARTS
    coordinator_address: Address | None = None
    """host:port; default: environment variable SV_PIPELINE_COORDINATOR."""
    mips: Int | None = Field(default=None, ge=1, le=64)
    """Number of mips of the base; default: those of the source, or until the volume fits one storage chunk."""
    max_dst_chunk_shape: tuple[ChunkAxis, ChunkAxis, ChunkAxis] = (128, 128, 64)
    """Storage chunks of the base are those of the source, but no larger than this along each axis, in voxels."""
    storage_chunk_size: tuple[ChunkAxis, ChunkAxis, ChunkAxis] | None = None
    """Voxels of a storage chunk; default: the source's, limited by ``max_dst_chunk_shape``."""
    populate_base: bool = True
    """PyChunkedGraph's switch of its own populate; accepted, not used."""
    sv_split_threshold: Int = Field(default=10, ge=0, le=1 << 20)
    """Voxels. PyChunkedGraph gives a piece of a split supervoxel the edges to neighbours that are nearer than this. Not
    used here: a piece gets the edges to the neighbours that it touches."""

    @property
    def compression(self) -> dict[str, Any] | None:
        """The compression as TensorStore writes it."""
        return None if self.compression_level is None else {"id": "zstd", "level": self.compression_level}

    def stored(self) -> dict[str, Any]:
        """What the graph's meta holds: PyChunkedGraph's keys under its own names, and ours, which it ignores."""
        own = self.model_dump(mode="json", exclude={"compression_level", "coordinator_address"})
        # A fork with numbered manifests needs another layer in its spec than the one that PyChunkedGraph builds, which
        # would write into the base.
        return {**own, "enabled": self.enabled and self.manifest_kind == "single", "compression": self.compression}

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

    segmentation: Source
    """``.npz`` (with ``#key``), ``.npy`` or a precomputed volume (URL or folder)."""
    agglomeration: Source | None = None
    """Second volume of the same shape, or a ``.csv`` / ``.npz`` table ``label, object``."""
    affinities: Source | None = None
    """Affinity volume (x, y, z, 3), or a ``.csv`` table ``label_a, label_b, affinity[, area]``."""
    resolution: tuple[Nanometres, Nanometres, Nanometres] | None = None
    """Nanometres per voxel; default: the source's own, else an error."""
    voxel_offset: tuple[Voxel, Voxel, Voxel] | None = None
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
    workers: Int = Field(default=2, ge=1, le=1024)
    """Processes that one machine uses."""
    chunks_per_batch: Int = Field(default=64, ge=1, le=1 << 20)
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

    @model_validator(mode="after")
    def _usable_table_name(self) -> DatasetConfig:
        if len(self.table_name) > MAX_TABLE_NAME or not GRAPH_ID.fullmatch(self.table_name):
            raise ValueError(
                f"graph_config.ID_PREFIX and graph_id make the table name {self.table_name!r}, which cannot be used: "
                f"at most {MAX_TABLE_NAME} characters, not starting with '.' or '-'"
            )
        return self

    @property
    def edges_url(self) -> str:
        """Folder of edge files."""
        return self.data_source.edges or self._in_watershed("edges")

    @property
    def components_url(self) -> str:
        """Folder of component files."""
        return self.data_source.components or self._in_watershed("components")

    def _in_watershed(self, name: str) -> str:
        return parse_folder(self.data_source.watershed).inside(name).text

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
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} does not hold a mapping.", remedy="See docs/ingest.md for an example.")
    return parse_config({**raw, **overrides}, where=str(path))


def parse_config(raw: dict[str, Any], *, where: str = "configuration") -> DatasetConfig:
    """Validate a mapping; ConfigError names every field that is wrong. Secrets in it are masked from then on."""
    remember(raw)
    try:
        config = DatasetConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        lines = [f"  {line}" for line in describe_errors(DatasetConfig, error)]
        raise ConfigError(f"{where}: {len(lines)} field(s) cannot be used:\n" + "\n".join(lines)) from error
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
    return config
