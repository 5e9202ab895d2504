"""Owns the ``info`` file of neuroglancer precomputed volumes: read, check, write; and opening one. Knows no OCDBT."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from sv_pipeline.errors import ConfigError, InputError, NotFoundError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.context import process_context
from sv_pipeline.segmentation.kv import as_url, read_bytes, write_bytes
from sv_pipeline.segmentation.retry import retry_transport

__all__ = [
    "Scale",
    "VolumeInfo",
    "coarser_scale",
    "create_volume",
    "halving_step",
    "info_json",
    "open_volume",
    "parse_info",
    "plan_volume",
    "read_info",
]

Triple = tuple[int, int, int]
Resolution = tuple[float, float, float]

DEFAULT_BLOCK_SIZE: Triple = (8, 8, 8)
"""Compressed segmentation blocks; the smallest result on real labels, of 4 to 64."""
DATA_TYPES = ("uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Scale:
    """One mip of a volume, as its ``info`` file says."""

    key: str
    """Folder of its chunks."""
    resolution: Resolution
    """Nanometres per voxel."""
    voxel_offset: Triple
    size: Triple
    """Voxels."""
    chunk_size: Triple
    """Voxels of a storage chunk; the chunk grid starts at ``voxel_offset``."""
    encoding: str = "compressed_segmentation"
    block_size: Triple = DEFAULT_BLOCK_SIZE
    """Of compressed segmentation; without meaning for other encodings."""
    sharded: bool = False

    @property
    def bounds(self) -> Box:
        """The voxels of this mip, in its own coordinates."""
        return Box.of(self.voxel_offset, np.add(self.voxel_offset, self.size))


@dataclass(frozen=True)
class VolumeInfo:
    """A volume with its mips, finest first."""

    data_type: str
    scales: tuple[Scale, ...] = field(default_factory=tuple)

    @property
    def bounds(self) -> Box:
        """The voxels of the base mip."""
        return self.scales[0].bounds

    def factors(self, mip: int) -> Triple:
        """Voxels of the base mip, per axis, that one voxel of ``mip`` covers."""
        ratio = np.divide(self.scales[mip].resolution, self.scales[0].resolution)
        factors = np.rint(ratio).astype(np.int64)
        if not np.allclose(ratio, factors, rtol=0.01) or (factors < 1).any():
            raise InputError(
                f"mip {mip} ({self.scales[mip].key}) has a resolution of {self.scales[mip].resolution} nm, which is "
                f"not a multiple of the base mip's {self.scales[0].resolution} nm."
            )
        return tuple(int(f) for f in factors)  # type: ignore[return-value]


def read_info(url: str | Path) -> VolumeInfo:
    """Read and check the ``info`` file of a volume.

    Raises
    ------
    InputError
        If it is missing, broken, or not a segmentation that we can use.
    """
    raw = read_bytes(url, "info")
    if raw is None:
        raise InputError(
            f"there is no volume at {as_url(url)} (no 'info' file).",
            remedy="Check the URL; it must be the folder of a neuroglancer precomputed segmentation.",
        )
    try:
        return parse_info(json.loads(raw))
    except InputError as error:
        raise InputError(f"{as_url(url)}info: {error.message}", remedy=error.remedy) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{as_url(url)}info is not a usable neuroglancer info file: {error!r}.") from error


def parse_info(info: dict[str, Any]) -> VolumeInfo:
    """Volume out of the content of an ``info`` file."""
    data_type = str(info["data_type"]).lower()
    if data_type not in DATA_TYPES:
        raise InputError(f"data_type {data_type!r} cannot hold segment ids.", remedy=f"Use {', '.join(DATA_TYPES)}.")
    if info.get("num_channels", 1) != 1:
        raise InputError(f"the volume has {info['num_channels']} channels; a segmentation has one.")
    scales = tuple(_parse_scale(scale) for scale in info["scales"])
    if not scales:
        raise InputError("the volume has no scales.")
    volume = VolumeInfo(data_type, scales)
    for mip in range(len(scales)):
        volume.factors(mip)
    return volume


def _parse_scale(scale: dict[str, Any]) -> Scale:
    return Scale(
        key=str(scale["key"]),
        resolution=_triple(scale["resolution"], float),
        voxel_offset=_triple(scale.get("voxel_offset", (0, 0, 0)), int),
        size=_triple(scale["size"], int),
        chunk_size=_triple(scale["chunk_sizes"][0], int),
        encoding=str(scale["encoding"]),
        block_size=_triple(scale.get("compressed_segmentation_block_size", DEFAULT_BLOCK_SIZE), int),
        sharded=scale.get("sharding") is not None,
    )


def _triple(values: Any, kind: type) -> Any:
    x, y, z = (kind(value) for value in values)
    return (x, y, z)


def info_json(volume: VolumeInfo) -> dict[str, Any]:
    """Content of the ``info`` file of an unsharded volume."""
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation",
        "data_type": volume.data_type,
        "num_channels": 1,
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


def coarser_scale(base: Scale, factor: Triple, chunk_size: Triple) -> Scale:
    """The mip at 1/factor of ``base``: offset rounded down and size rounded up, as neuroglancer and cloud-volume do.

    Its first voxel covers the first ``factor`` voxels of the volume, wherever the volume starts.
    """
    resolution: Resolution = _triple(np.multiply(base.resolution, factor), float)
    return Scale(
        key="_".join(f"{r:g}" for r in resolution),
        resolution=resolution,
        voxel_offset=_triple(np.floor_divide(base.voxel_offset, factor), int),
        size=_triple(-(-np.asarray(base.size) // np.asarray(factor)), int),
        chunk_size=chunk_size,
        encoding=base.encoding,
        block_size=base.block_size,
    )


def halving_step(resolution: Resolution) -> Triple:
    """Factor to the next mip: x and y only while voxels are at least twice as long in z, else all three axes."""
    return (2, 2, 1) if resolution[2] >= 2 * min(resolution[:2]) else (2, 2, 2)


def create_volume(url: str | Path, **measures: Any) -> VolumeInfo:
    """Make an empty volume: write its ``info`` file (replacing one that is there; chunks are not touched).

    Parameters
    ----------
    url
        Folder of the volume.
    measures
        As for `plan_volume`, which raises what is wrong with them.
    """
    volume = plan_volume(**measures)
    write_bytes(url, "info", json.dumps(info_json(volume)).encode())
    return volume


def plan_volume(
    *,
    resolution: Resolution,
    voxel_offset: Triple,
    size: Triple,
    chunk_size: Triple,
    data_type: str = "uint64",
    encoding: str = "compressed_segmentation",
    block_size: Triple = DEFAULT_BLOCK_SIZE,
    n_mips: int = 1,
    factors: Triple | None = None,
) -> VolumeInfo:
    """What a volume of these measures is; writes nothing (see `create_volume`).

    Parameters
    ----------
    resolution, voxel_offset, size, chunk_size
        Of the base mip: nanometres per voxel, and voxels, (x, y, z).
    data_type
        uint8, uint16, uint32 or uint64.
    encoding
        ``compressed_segmentation`` (uint32 and uint64 only) or ``raw``.
    n_mips
        Number of mips.
    factors
        Between successive mips, per axis; default: `halving_step` for each.

    Raises
    ------
    ConfigError
        If the arguments do not make a volume.
    """
    if data_type not in DATA_TYPES or (encoding == "compressed_segmentation" and data_type not in ("uint32", "uint64")):
        raise ConfigError(f"a volume of {data_type} cannot have the encoding {encoding}.")
    if min(size) < 1 or min(chunk_size) < 1 or min(factors or (1,)) < 1 or n_mips < 1:
        raise ConfigError(
            f"size {size}, chunk size {chunk_size}, factors {factors} and mips {n_mips} must be positive."
        )
    base = Scale(
        key="_".join(f"{r:g}" for r in resolution),
        resolution=_triple(resolution, float),
        voxel_offset=_triple(voxel_offset, int),
        size=_triple(size, int),
        chunk_size=_triple(chunk_size, int),
        encoding=encoding,
        block_size=_triple(block_size, int),
    )
    scales, factor = [base], (1, 1, 1)
    for _ in range(n_mips - 1):
        factor = _triple(np.multiply(factor, factors or halving_step(scales[-1].resolution)), int)
        scales.append(coarser_scale(base, factor, base.chunk_size))
    return VolumeInfo(data_type, tuple(scales))


def open_volume(url: str | Path, mip: int = 0, *, writable: bool = False) -> ts.TensorStore:
    """Open one mip as a 3-d store (x, y, z) in absolute coordinates of that mip.

    Raises
    ------
    NotFoundError
        If the volume has no such mip.
    InputError
        If there is no usable volume.
    """
    info = read_info(url)
    if not 0 <= mip < len(info.scales):
        raise NotFoundError(
            f"the volume {as_url(url)} has no mip {mip}.", remedy=f"It has mips 0 to {len(info.scales) - 1}."
        )
    spec = {"driver": "neuroglancer_precomputed", "kvstore": as_url(url), "scale_index": mip}
    store = retry_transport(
        lambda: ts.open(spec, context=process_context(), open=True, read=True, write=writable or None).result(),
        what=f"opening mip {mip} of {url}",
    )
    return store[..., 0]
