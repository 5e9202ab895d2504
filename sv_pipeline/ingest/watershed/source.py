"""The source segmentation as a volume that can be read box by box: ``.npz``, ``.npy``, precomputed, TensorStore spec.

This module owns formats and their checks; it does not know chunks, ids or what the labels are used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import ConfigError, DamagedError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.ingest.watershed.array_files import (
    ArrayHeader,
    choose_array,
    fits,
    load_npy,
    native,
    read_array,
    read_headers,
)
from sv_pipeline.ingest.watershed.stores import open_store
from sv_pipeline.places import is_spec, parse_source
from sv_pipeline.redaction import redacted
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = ["SourceVolume", "open_source", "split_key"]

FloatTriple = tuple[float, float, float]
Triple = tuple[int, int, int]


class _Readable(Protocol):
    def __getitem__(self, index: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """A volume that is read box by box, in absolute coordinates.

    The first three axes are x, y, z; a volume of affinities has a channel axis as the fourth.
    """

    name: str
    """The user's name for the volume, which messages use."""
    store: _Readable
    bounds: Box
    dtype: np.dtype[Any]
    channels: int | None
    """Length of the fourth axis; None for a 3-d volume."""
    resolution: FloatTriple | None
    """Nanometres per voxel along x, y, z; None if the format has no resolution."""
    in_memory: bool
    """Whether all voxels are in memory, so that reading them all costs little."""
    fingerprint: str
    """Text that changes when the source's format, place or (for local files) content changes."""
    stored: StoredScale | None = None
    """The stored mip with its chunks, if the source is a precomputed volume."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read the voxels of a box inside the bounds; shape of the box (and channels), Fortran order."""
        relative = box.shifted(-np.asarray(self.bounds.start))
        try:
            return np.asfortranarray(native(np.asarray(self.store[relative.slices])))
        except (ValueError, OSError, DamagedError, ConfigError) as error:
            raise InputError(f"cannot read {box} of {self.name}: {error}") from error


def split_key(path: str) -> tuple[str, str | None]:
    """Split ``path.npz#key`` into path and array name; a path that is not a local file is returned unchanged."""
    if is_spec(path):
        return path, None
    place = parse_source(path)
    return (str(place.file), place.member) if place.file is not None else (path, None)


def open_source(
    path: str,
    *,
    resolution: FloatTriple | None = None,
    voxel_offset: Triple | None = None,
    n_dimensions: int = 3,
    labels: bool = True,
) -> SourceVolume:
    """Open a volume. A file is read only once per process.

    Parameters
    ----------
    path
        Path of an ``.npz`` (with ``#key``) or ``.npy``, a precomputed volume (folder or URL), or a TensorStore JSON
        spec.
    resolution, voxel_offset
        Values that replace those of the source: nanometres per voxel, and the first voxel, both (x, y, z).
    n_dimensions
        3 for labels and images, 4 for affinities (x, y, z, channel).
    labels
        Whether the voxels of a volume of 3 dimensions are labels, which must be stored in a lossless encoding.

    Raises
    ------
    InputError
        If the source cannot be read, is empty, or has another number of dimensions.
    """
    return _open(path, resolution, voxel_offset, n_dimensions, labels=labels and n_dimensions == 3)


def _open(
    path: str, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int, *, labels: bool
) -> SourceVolume:
    file, key = split_key(path)
    if not file.endswith((".npz", ".npy")):
        return _from_tensorstore(path, resolution, offset, n_dimensions, labels=labels)
    if not Path(file).is_file():
        fault = "is not a file" if Path(file).exists() else "does not exist"
        raise InputError(f"{file} {fault}.", remedy="Check the paths in source.")
    stat = Path(file).stat()
    return _open_file(file, key, resolution, offset, n_dimensions, f"{stat.st_size} {stat.st_mtime_ns}")


@lru_cache(maxsize=4)
def _open_file(
    file: str, key: str | None, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int, stamp: str
) -> SourceVolume:
    """Open a volume in a file. The cache depends on ``stamp``, so that a file that was replaced is read again."""
    if file.endswith(".npy"):
        return _from_array(file, load_npy(file), resolution, offset, stamp, n_dimensions)
    headers = read_headers(file)
    name = choose_array(file, key, headers, n_dimensions)
    resolution = resolution or _triple(file, "resolution", float, headers)
    offset = offset or _triple(file, "voxel_offset", int, headers)
    array = read_array(file, name)
    return _from_array(f"{file}#{name}", array, resolution, offset, f"{headers[name].crc}", n_dimensions)


# -- NumPy files ------------------------------------------------------------------------------------------------------


def _from_array(
    name: str,
    array: npt.NDArray[Any],
    resolution: FloatTriple | None,
    offset: Triple | None,
    check: str,
    n_dimensions: int,
) -> SourceVolume:
    if len(array.shape) != n_dimensions and fits(array.shape, n_dimensions):
        array = array[..., 0]
    _check_shape(name, array.shape, n_dimensions)
    start = np.asarray(offset or (0, 0, 0))
    return SourceVolume(
        name=name,
        store=array,
        bounds=Box.of(start, start + array.shape[:3]),
        dtype=array.dtype.newbyteorder("="),
        channels=array.shape[3] if n_dimensions == 4 else None,
        resolution=resolution,
        in_memory=True,
        fingerprint=f"{array.dtype} {array.shape} {check}",
    )


def _triple(file: str, name: str, kind: type, headers: dict[str, ArrayHeader]) -> Any:
    if name not in headers:
        return None
    header = headers[name]
    if header.fault or np.prod(header.shape) != 3 or header.dtype.kind not in "iuf":
        raise InputError(
            f"{file}: {name} must be three numbers, not {header.fault or f'{header.dtype} of shape {header.shape}'}."
        )
    values = read_array(file, name).ravel()
    if not np.isfinite(values).all():
        raise InputError(f"{file}: {name} must be three numbers, not {values.tolist()}.")
    triple = tuple(kind(v) for v in values)
    if any(a != b for a, b in zip(triple, values, strict=True)):
        raise InputError(f"{file}: {name} must be whole numbers, not {values.tolist()}.")
    return triple


def _check_shape(name: str, shape: Sequence[int], n_dimensions: int) -> None:
    if len(shape) != n_dimensions:
        axes = "x, y, z" if n_dimensions == 3 else "x, y, z, channel"
        raise InputError(f"{name} has {len(shape)} dimensions; expected {n_dimensions} ({axes}).")
    if 0 in shape:
        raise InputError(f"{name} is empty (shape {tuple(shape)}).")


# -- TensorStore ------------------------------------------------------------------------------------------------------


class _StoreView:
    """A TensorStore with its origin at 0, read synchronously."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getitem__(self, index: Any) -> Any:
        return retry_transport(lambda: self._store[index].read(order="F").result(), what="reading the source")


def _from_tensorstore(
    path: str, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int, *, labels: bool
) -> SourceVolume:
    store, stored = open_store(path, labels=labels)
    if n_dimensions == 3 and store.rank == 4 and store.shape[3] == 1:
        store = store[..., store.domain.inclusive_min[3]]
    _check_shape(path, store.shape, n_dimensions)
    dtype = np.dtype(store.dtype.numpy_dtype)
    own_start = tuple(int(v) for v in store.domain.inclusive_min[:3])
    start = np.asarray(offset or own_start)
    own_resolution = _dimension_units(store)
    return SourceVolume(
        name=path,
        store=_StoreView(store[ts.d[:].translate_to[0]]),
        bounds=Box.of(start, start + store.shape[:3]),
        dtype=dtype,
        channels=int(store.shape[3]) if n_dimensions == 4 else None,
        resolution=resolution or own_resolution,
        in_memory=False,
        fingerprint=f"{redacted(path)} {dtype} {store.shape} {own_start} {own_resolution}",
        stored=stored,
    )


def _dimension_units(store: Any) -> FloatTriple | None:
    """Voxel size in nanometres; None if the format has none."""
    metres = {"nm": 1.0, "um": 1e3, "µm": 1e3, "mm": 1e6, "m": 1e9}
    units = store.dimension_units[:3]
    if any(u is None or u.base_unit not in metres for u in units):
        return None
    x, y, z = (float(u.multiplier) * metres[u.base_unit] for u in units)
    return x, y, z
