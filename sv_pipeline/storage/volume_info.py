"""The content of a neuroglancer ``info`` file: its values, parsing with validation of every field, writing.

Reads no file. The purpose of a volume decides what it may contain, so there are two parsers: `parse_info` for a volume
of supervoxels with all its mips (a watershed, a base), and `parse_source_info` for mip 0 of any volume that is only
read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from typing import Annotated, Any

import numpy as np
import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, StringConstraints

from sv_pipeline.errors import InputError
from sv_pipeline.grid import Box

__all__ = [
    "DATA_TYPES",
    "DEFAULT_BLOCK_SIZE",
    "LABEL_ENCODINGS",
    "Scale",
    "VolumeInfo",
    "check_label_encoding",
    "info_json",
    "parse_info",
    "parse_source_info",
]

Triple = tuple[int, int, int]
Resolution = tuple[float, float, float]

DEFAULT_BLOCK_SIZE: Triple = (8, 8, 8)
"""Block size of compressed segmentation; of 4 to 64, this gave the smallest files with real labels."""
DATA_TYPES = ("uint8", "uint16", "uint32", "uint64")
SOURCE_TYPES = (*DATA_TYPES, "int8", "int16", "int32", "int64", "float32")
LABEL_ENCODINGS = ("raw", "compressed_segmentation", "png", "compresso", "crackle")
"""Encodings that preserve every label; others may change labels, or are unknown."""
LARGEST_COORDINATE = 1 << 48
MOST_VOXELS = 1 << 62
"""Largest number of voxels of one mip; more cannot be counted in 64 bits."""


@dataclass(frozen=True)
class Scale:
    """One mip of a volume, as its ``info`` file describes it."""

    key: str
    """Folder of the chunks."""
    resolution: Resolution
    """Nanometres per voxel, (x, y, z)."""
    voxel_offset: Triple
    size: Triple
    """Size in voxels, (x, y, z)."""
    chunk_size: Triple
    """Size of a storage chunk in voxels; the chunk grid starts at ``voxel_offset``."""
    encoding: str = "compressed_segmentation"
    block_size: Triple = DEFAULT_BLOCK_SIZE
    """Block size of compressed segmentation; other encodings ignore it."""
    sharded: bool = False

    @property
    def bounds(self) -> Box:
        """Voxels of this mip, in its own coordinates."""
        return Box.of(self.voxel_offset, np.add(self.voxel_offset, self.size))


@dataclass(frozen=True)
class VolumeInfo:
    """A volume and its mips, finest first."""

    data_type: str
    scales: tuple[Scale, ...] = field(default_factory=tuple)
    num_channels: int = 1

    @property
    def bounds(self) -> Box:
        """Voxels of the base mip."""
        return self.scales[0].bounds

    def factors(self, mip: int) -> Triple:
        """Return how many voxels of the base mip, per axis, one voxel of ``mip`` covers."""
        ratio = np.divide(self.scales[mip].resolution, self.scales[0].resolution)
        factors = np.rint(ratio).astype(np.int64)
        if not np.allclose(ratio, factors, rtol=0.01) or (factors < 1).any():
            raise InputError(
                f"mip {mip} ({self.scales[mip].key}) has a resolution of {self.scales[mip].resolution} nm, which is "
                f"not a multiple of the base mip's {self.scales[0].resolution} nm."
            )
        return tuple(int(f) for f in factors)  # type: ignore[return-value]


# -- the file, field by field ---------------------------------------------------------------------------------------


def _lower(value: Any) -> Any:
    """Convert to lower case, because neuroglancer ignores the case of data types and encodings."""
    return value.strip().lower() if isinstance(value, str) else value


def _not_a_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


def _folder(key: str) -> str:
    """Return the normal form of a key; neuroglancer allows ``..``, so one folder has many names."""
    if key.startswith("/") or not key.strip("/") or not key.isprintable():
        raise ValueError("the folder of the chunks must be named by a relative path")
    folder = posixpath.normpath(key)
    if folder in (".", "..") or folder.endswith("/.."):
        raise ValueError("the chunks must have a folder of their own")
    return folder


_Index = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]
_Count = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1, le=LARGEST_COORDINATE)]
_Extent = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1, le=(1 << 31) - 1)]
_Length = Annotated[FiniteFloat, BeforeValidator(_not_a_boolean), Field(gt=0, le=1e12)]
_Name = Annotated[str, BeforeValidator(_lower), StringConstraints(min_length=1)]


class _ScaleFile(BaseModel):
    key: Annotated[str, AfterValidator(_folder)]
    resolution: tuple[_Length, _Length, _Length]
    voxel_offset: tuple[_Index, _Index, _Index] = (0, 0, 0)
    size: tuple[_Count, _Count, _Count]
    chunk_sizes: Annotated[list[tuple[_Extent, _Extent, _Extent]], Field(min_length=1)]
    encoding: _Name
    compressed_segmentation_block_size: tuple[_Extent, _Extent, _Extent] | None = None
    sharding: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _block_size_of_its_encoding(self) -> _ScaleFile:
        if self.encoding == "compressed_segmentation" and self.compressed_segmentation_block_size is None:
            raise ValueError("compressed_segmentation_block_size is missing")
        if prod(self.size) > MOST_VOXELS:
            raise ValueError(f"a volume cannot have {' x '.join(map(str, self.size))} voxels (size)")
        return self


class _InfoFile(BaseModel):
    data_type: _Name
    num_channels: Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1)] = 1
    scales: list[_ScaleFile]


def parse_info(info: Any) -> VolumeInfo:
    """Parse the content of an ``info`` file as a volume of supervoxels with all mips.

    Raises
    ------
    InputError
        If a field is missing or invalid (each is named), if the volume cannot hold ids, or if mips share a folder or
        are not multiples of the base mip.
    """
    volume = _parse(info, DATA_TYPES, "cannot hold segment ids", largest_channels=1)
    for mip in range(len(volume.scales)):
        volume.factors(mip)
    return volume


def parse_source_info(info: Any) -> VolumeInfo:
    """Parse mip 0 of a volume that is only read, of any type that neuroglancer has; other mips need not be usable.

    Raises
    ------
    InputError
        If a field is missing or invalid (each is named), or another mip has the folder of mip 0.
    """
    volume = _parse(info, SOURCE_TYPES, "is not known", largest_channels=4096)
    return VolumeInfo(volume.data_type, volume.scales[:1], volume.num_channels)


def _parse(info: Any, data_types: Sequence[str], fault: str, largest_channels: int) -> VolumeInfo:
    try:
        file = _InfoFile.model_validate(info)
    except pydantic.ValidationError as error:
        faults = [f"{_path(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise InputError(f"this is not a usable neuroglancer info file: {'; '.join(faults)}.") from error
    if file.data_type not in data_types:
        raise InputError(f"data_type {file.data_type!r} {fault}.", remedy=f"Use {', '.join(data_types)}.")
    if file.num_channels > largest_channels:
        raise InputError(f"the volume has {file.num_channels} channels; a segmentation has one (num_channels).")
    if not file.scales:
        raise InputError("the volume has no scales.")
    for (first, a), (second, b) in combinations(enumerate(file.scales), 2):
        if a.key == b.key:
            raise InputError(
                f"scales {first} and {second} have the same folder, {a.key!r} (key), so chunks of one have been "
                "replaced by chunks of the other.",
                remedy="Correct the info file, or make the mips again.",
            )
    return VolumeInfo(file.data_type, tuple(_scale(scale) for scale in file.scales), file.num_channels)


def _path(location: tuple[int | str, ...]) -> str:
    """Format a place in the file as ``scales[1].key``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "the content"


def _scale(scale: _ScaleFile) -> Scale:
    return Scale(
        key=scale.key,
        resolution=scale.resolution,
        voxel_offset=scale.voxel_offset,
        size=scale.size,
        chunk_size=scale.chunk_sizes[0],
        encoding=scale.encoding,
        block_size=scale.compressed_segmentation_block_size or DEFAULT_BLOCK_SIZE,
        sharded=scale.sharding is not None,
    )


def check_label_encoding(scale: Scale, where: str = "") -> None:
    """Raise InputError, beginning with ``where``, if the encoding of a mip of labels may change them."""
    if scale.encoding not in LABEL_ENCODINGS:
        raise InputError(
            f"{where}encoding is {scale.encoding!r}, which does not preserve labels.",
            remedy=f"Export the labels again, as {' or '.join(LABEL_ENCODINGS[:2])}.",
        )


# -- writing ----------------------------------------------------------------------------------------------------


def info_json(volume: VolumeInfo) -> dict[str, Any]:
    """Return the content of the ``info`` file of an unsharded volume."""
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation",
        "data_type": volume.data_type,
        "num_channels": volume.num_channels,
        "scales": [_scale_json(scale) for scale in volume.scales],
    }


def _scale_json(scale: Scale) -> dict[str, Any]:
    content: dict[str, Any] = {
        "key": scale.key,
        "resolution": [int(r) if r == int(r) else r for r in scale.resolution],
        "voxel_offset": list(scale.voxel_offset),
        "size": list(scale.size),
        "chunk_sizes": [list(scale.chunk_size)],
        "encoding": scale.encoding,
    }
    if scale.encoding == "compressed_segmentation":
        content["compressed_segmentation_block_size"] = list(scale.block_size)
    return content
