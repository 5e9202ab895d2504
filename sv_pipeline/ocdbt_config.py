"""The section ``ocdbt_config`` of a configuration: the format of the base, and how it is written. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import Field, model_validator

from sv_pipeline.config_errors import describe_errors
from sv_pipeline.config_fields import Address, ChunkAxis, Int, PopulateMethod, Section
from sv_pipeline.errors import ConfigError

__all__ = ["DEFAULT_POPULATE_LAYER", "OcdbtConfig"]

DEFAULT_POPULATE_LAYER = 4


class OcdbtConfig(Section):
    """Format of the base. It is stored with the base and the graph, and is fixed once the base exists."""

    enabled: bool = True
    """Whether the graph's meta tells PyChunkedGraph to use the fork."""
    max_inline_value_bytes: Int = Field(default=4096, ge=0, le=1 << 20)
    """Largest value that a B+tree node holds itself, in bytes."""
    max_decoded_node_bytes: Int = Field(default=262144, ge=4096, le=1 << 30)
    """Largest B+tree node, in bytes."""
    version_tree_arity_log2: Int = Field(default=4, ge=1, le=16)
    """Base-2 logarithm of the arity of the tree of versions."""
    compression_level: Int | None = Field(default=3, ge=-7, le=22)
    """zstd level of B+tree nodes and manifests; None disables compression."""
    manifest_kind: Literal["single", "numbered"] = "single"
    """How the manifest is stored: in one object, or in a new one for each version."""
    populate_layer: Int | None = Field(default=None, ge=2, le=64)
    """Graph layer whose chunks are the populate tasks; default: 4, or lower so that tasks fit the memory."""
    populate_method: PopulateMethod = PopulateMethod.PARTS
    """The default of a dataset with a ``source`` is ``auto``: its watershed is made here, and can be referred to."""
    coordinator_address: Address | None = None
    """host:port of the coordinator; default: environment variable SV_PIPELINE_COORDINATOR."""
    mips: Int | None = Field(default=None, ge=1, le=64)
    """Number of mips of the base; default: as many as the source has, or until the volume fits one storage chunk."""
    max_dst_chunk_shape: tuple[ChunkAxis, ChunkAxis, ChunkAxis] = (128, 128, 64)
    """Upper limit of a storage chunk of the base in voxels per axis; below it, the source's chunks are kept."""
    storage_chunk_size: tuple[ChunkAxis, ChunkAxis, ChunkAxis] | None = None
    """Storage chunk of the base in voxels per axis; default: the source's, limited by ``max_dst_chunk_shape``."""
    populate_base: bool = True
    """PyChunkedGraph's switch for its own populate step; accepted, but not used."""
    sv_split_threshold: Int = Field(default=10, ge=0, le=1 << 20)
    """Distance in voxels. PyChunkedGraph connects a piece of a split supervoxel to neighbours nearer than this. It is
    not used here: a piece is connected to the neighbours that it touches."""

    @property
    def compression(self) -> dict[str, Any] | None:
        """The compression as a TensorStore spec writes it."""
        return None if self.compression_level is None else {"id": "zstd", "level": self.compression_level}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the info file of a base contains, under PyChunkedGraph's names."""
        names = ("populate_layer", "sv_split_threshold", "max_inline_value_bytes", "max_dst_chunk_shape")
        return {"compression": self.compression, **self.model_dump(mode="json", include=set(names))}

    def under(self, settings: Mapping[str, Any], where: str) -> OcdbtConfig:
        """Return these settings, but with the values of an info file where it has any; its other keys are ignored.

        Raises
        ------
        ConfigError
            If a value of the info file cannot be used; the message names it and the file (``where``).
        """
        known = {name: settings[name] for name in self.settings if name in settings}
        own = self.model_dump(exclude={"compression_level", *known} if "compression" in known else known)
        try:
            return OcdbtConfig.model_validate({**own, **known})
        except pydantic.ValidationError as error:
            lines = "; ".join(describe_errors(OcdbtConfig, error))
            raise ConfigError(f"{where} cannot be used: {lines}.", remedy="Correct that file.") from error

    def stored(self) -> dict[str, Any]:
        """Return what the graph's meta stores: PyChunkedGraph's keys under its names, and ours, which it ignores."""
        own = self.model_dump(mode="json", exclude={"compression_level", "coordinator_address"})
        own["populate_layer"] = self.populate_layer or DEFAULT_POPULATE_LAYER  # the base records the choice
        # A fork with numbered manifests, or of a base that refers to the watershed, needs another layer in its spec
        # than those that PyChunkedGraph builds: it would write into the base, or find no voxels.
        readable = self.manifest_kind == "single" and not self.populate_method.refers
        return {**own, "enabled": self.enabled and readable, "compression": self.compression}

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
                default = cls.model_fields["compression_level"].default
                return {**rest, "compression_level": options.get("level", default)}
            case other:
                raise ValueError(f"compression {other!r} is not known; write {{id: zstd, level: 3}}, or null")
