"""Neuroglancer precomputed volumes of labels: their info files, planning and opening them. Knows no OCDBT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from sv_pipeline.errors import ConfigError, InputError, NotFoundError
from sv_pipeline.json_texts import read_json
from sv_pipeline.storage.kv import as_url, read_bytes, write_bytes
from sv_pipeline.storage.stored_scale import StoredScale
from sv_pipeline.storage.volume_info import (
    DATA_TYPES,
    DEFAULT_BLOCK_SIZE,
    Scale,
    VolumeInfo,
    info_json,
    parse_info,
)

__all__ = [
    "Scale",
    "VolumeInfo",
    "coarser_scale",
    "create_volume",
    "halving_step",
    "info_json",
    "open_volume",
    "parse_info",
    "parse_info_file",
    "plan_volume",
    "read_info",
    "read_info_file",
    "stored_scale",
]

Triple = tuple[int, int, int]
Resolution = tuple[float, float, float]


def read_info(url: str | Path) -> VolumeInfo:
    """Read and validate the ``info`` file of a volume.

    Raises
    ------
    InputError
        If it is missing or damaged, or the volume is not a segmentation that can be used.
    """
    return _read(url)[1]


def read_info_file(url: str | Path) -> dict[str, Any]:
    """Return the raw content of the ``info`` file of a volume; it is validated, and refused, as by `read_info`."""
    return _read(url)[0]


def _read(url: str | Path) -> tuple[dict[str, Any], VolumeInfo]:
    """Return the content of the info file, raw and parsed."""
    content = read_bytes(url, "info")
    if content is None:
        raise InputError(
            f"there is no volume at {as_url(url)} (no 'info' file).",
            remedy="Check the URL; it must be the folder of a neuroglancer precomputed segmentation.",
        )
    return parse_info_file(content, f"{as_url(url)}info", parse_info)


def parse_info_file(
    content: bytes, where: str, parse: Callable[[Any], VolumeInfo]
) -> tuple[dict[str, Any], VolumeInfo]:
    """Parse an info file; return its raw and parsed content. An InputError begins with the name of the file."""
    try:
        raw = read_json(content)
    except ValueError as error:
        raise InputError(
            f"{where} is not a usable neuroglancer info file: {error}.", remedy="Correct it, or copy it again."
        ) from error
    try:
        return raw, parse(raw)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", remedy=error.remedy) from error


def _triple(values: Any, kind: type) -> Any:
    x, y, z = (kind(value) for value in values)
    return (x, y, z)


def coarser_scale(base: Scale, factor: Triple, chunk_size: Triple) -> Scale:
    """Return the mip at 1/factor of ``base``; offsets are rounded down, sizes up, as in neuroglancer and cloud-volume.

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
    """Return the factor to the next mip: x and y only, while voxels are at least twice as long in z; else all axes."""
    return (2, 2, 1) if resolution[2] >= 2 * min(resolution[:2]) else (2, 2, 2)


def create_volume(url: str | Path, **measures: Any) -> VolumeInfo:
    """Create an empty volume: write its ``info`` file, replacing an existing one; chunks are not changed.

    Parameters
    ----------
    url
        Folder of the volume.
    measures
        Arguments of `plan_volume`, which validates them.
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
    """Return the description of a volume with these measures; writes nothing (see `create_volume`).

    Parameters
    ----------
    resolution, voxel_offset, size, chunk_size
        Measures of the base mip: nanometres per voxel, and voxels, (x, y, z).
    data_type
        uint8, uint16, uint32 or uint64.
    encoding
        ``compressed_segmentation`` (uint32 and uint64 only) or ``raw``.
    n_mips
        Number of mips.
    factors
        Factors between successive mips, per axis; default: `halving_step` for each.

    Raises
    ------
    ConfigError
        If the arguments do not describe a volume.
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
        If the volume cannot be used.
    """
    return stored_scale(url, mip).open(writable=writable)[..., 0]


def stored_scale(url: str | Path, mip: int = 0) -> StoredScale:
    """Return one mip of a volume of labels as it is stored.

    Raises
    ------
    NotFoundError
        If the volume has no such mip.
    InputError
        If the volume cannot be used.
    """
    raw, info = _read(url)
    if not 0 <= mip < len(info.scales):
        raise NotFoundError(
            f"the volume {as_url(url)} has no mip {mip}.", remedy=f"It has mips 0 to {len(info.scales) - 1}."
        )
    return StoredScale(as_url(url), raw, info, mip)
