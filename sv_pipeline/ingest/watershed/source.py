"""The source segmentation as a volume that can be read box by box: ``.npz``, ``.npy``, precomputed, TensorStore spec.

Owns formats and their checks; does not know chunks, ids or what the labels are used for.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.places import WRITABLE, is_spec, parse_source
from sv_pipeline.segmentation.context import process_context
from sv_pipeline.segmentation.retry import retry_transport

__all__ = ["LABEL_ARRAYS", "ArrayHeader", "SourceVolume", "open_source", "read_array", "read_headers", "split_key"]

LABEL_ARRAYS = ("segmentation", "supervoxels", "labels", "agglomeration", "groundtruth")
"""Names under which a volume is looked for in an ``.npz`` that holds several."""

UNREADABLE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise for a file that is broken or not theirs."""

FloatTriple = tuple[float, float, float]
Triple = tuple[int, int, int]


class _Readable(Protocol):
    def __getitem__(self, index: Any) -> Any: ...


class ArrayHeader(NamedTuple):
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class SourceVolume:
    """A volume that is read box by box, in absolute coordinates.

    The first three axes are x, y, z; a volume of affinities has a fourth.
    """

    name: str
    """What the user called it, for messages."""
    store: _Readable
    bounds: Box
    dtype: np.dtype[Any]
    channels: int | None
    """Length of the fourth axis; None for a 3-d volume."""
    resolution: FloatTriple | None
    """Nanometres per voxel; None where the format has none."""
    in_memory: bool
    """True if all of it can be looked at without cost worth a thought."""
    fingerprint: str
    """Changes when the source's format, place or (for local files) content changes."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Voxels of a box inside the bounds, shape of the box (and channels), Fortran order."""
        relative = box.shifted(-np.asarray(self.bounds.start))
        try:
            return np.asfortranarray(self.store[relative.slices])
        except (ValueError, OSError) as error:
            raise InputError(f"cannot read {box} of {self.name}: {error}") from error


def split_key(path: str) -> tuple[str, str | None]:
    """Path and array name of ``path.npz#key``; what is no local file stays as it is."""
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
) -> SourceVolume:
    """Open a volume; a file is read once per process.

    Parameters
    ----------
    path
        ``.npz`` (with ``#key``), ``.npy``, a precomputed volume (folder or URL), or a TensorStore JSON spec.
    resolution, voxel_offset
        Replace those of the source.
    n_dimensions
        3 for labels, 4 for affinities (x, y, z, channel).

    Raises
    ------
    InputError
        If the source cannot be read, is empty, or has other dimensions.
    """
    return _open(path, resolution, voxel_offset, n_dimensions)


def _open(path: str, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int) -> SourceVolume:
    file, key = split_key(path)
    if not file.endswith((".npz", ".npy")):
        return _from_tensorstore(path, resolution, offset, n_dimensions)
    if not Path(file).is_file():
        raise InputError(f"{file} does not exist.", remedy="Check the paths in source.")
    stat = Path(file).stat()
    return _open_file(file, key, resolution, offset, n_dimensions, f"{stat.st_size} {stat.st_mtime_ns}")


@lru_cache(maxsize=4)
def _open_file(
    file: str, key: str | None, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int, stamp: str
) -> SourceVolume:
    """A volume in a file; ``stamp`` is part of the key of the cache, so that a file that was replaced is read again."""
    if file.endswith(".npy"):
        array = _load(file, mmap_mode="r")
        return _from_array(file, array, resolution, offset, stamp, n_dimensions)
    headers = read_headers(file)
    name = _choose_array(file, key, headers, n_dimensions)
    resolution = resolution or _triple(file, "resolution", float, headers)
    offset = offset or _triple(file, "voxel_offset", int, headers)
    with zipfile.ZipFile(file) as archive:
        check = archive.getinfo(f"{name}.npy").CRC
    return _from_array(f"{file}#{name}", read_array(file, name), resolution, offset, f"{check}", n_dimensions)


# -- NumPy files ------------------------------------------------------------------------------------------------------


def _load(file: str, **options: Any) -> Any:
    try:
        return np.load(file, allow_pickle=False, **options)
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read: {error}.") from error


def read_headers(file: str) -> dict[str, ArrayHeader]:
    """Shape and type of the arrays of an ``.npz``, by name, without reading them; InputError if it cannot be read."""
    headers = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2_0
                    shape, _, dtype = read(stream)
                    headers[member.removesuffix(".npy")] = ArrayHeader(tuple(shape), dtype)
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read: {error}.") from error
    return headers


_read_header_2_0 = np.lib.format.read_array_header_2_0


def read_array(file: str, name: str) -> npt.NDArray[Any]:
    """One array of an ``.npz``; InputError if it cannot be read."""
    try:
        with _load(file) as archive:
            return np.asarray(archive[name])
    except UNREADABLE as error:
        raise InputError(f"{file}: {name} cannot be read: {error}.") from error


def _choose_array(file: str, key: str | None, headers: dict[str, ArrayHeader], n_dimensions: int) -> str:
    if key is not None:
        if key not in headers:
            raise InputError(f"{file} holds no array {key!r}.", remedy=f"It has: {', '.join(headers) or 'none'}.")
        return key
    fitting = [name for name, header in headers.items() if len(header.shape) == n_dimensions]
    integers = [name for name in fitting if headers[name].dtype.kind in "iu"]
    known = [name for name in LABEL_ARRAYS if name in integers]
    for candidates in (integers, known[:1], fitting):
        if len(candidates) == 1:
            return candidates[0]
    shapes = ", ".join(f"{name} {header.dtype} {header.shape}" for name, header in headers.items())
    raise InputError(
        f"cannot tell which array of {file} is the {n_dimensions}-d volume (it has: {shapes or 'none'}).",
        remedy=f"Name it: {file}#name.",
    )


def _from_array(
    name: str,
    array: npt.NDArray[Any],
    resolution: FloatTriple | None,
    offset: Triple | None,
    check: str,
    n_dimensions: int,
) -> SourceVolume:
    _check_shape(name, array.shape, n_dimensions)
    start = np.asarray(offset or (0, 0, 0))
    return SourceVolume(
        name=name,
        store=array,
        bounds=Box.of(start, start + array.shape[:3]),
        dtype=array.dtype,
        channels=array.shape[3] if n_dimensions == 4 else None,
        resolution=resolution,
        in_memory=True,
        fingerprint=f"{array.dtype} {array.shape} {check}",
    )


def _triple(file: str, name: str, kind: type, headers: dict[str, ArrayHeader]) -> Any:
    if name not in headers:
        return None
    values = read_array(file, name).ravel()
    if values.size != 3 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise InputError(f"{file}: {name} must be three numbers, not {values!r}.")
    triple = tuple(kind(v) for v in values)
    if any(a != b for a, b in zip(triple, values, strict=True)):
        raise InputError(f"{file}: {name} must be whole numbers, not {values!r}.")
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
    path: str, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int
) -> SourceVolume:
    store = _open_tensorstore(path)
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
        fingerprint=f"{path} {dtype} {store.shape} {own_start} {own_resolution}",
    )


def _open_tensorstore(path: str) -> Any:
    spec: dict[str, Any]
    if path.lstrip().startswith("{"):
        try:
            spec = json.loads(path)
        except ValueError as error:
            raise ConfigError(f"source: not a valid TensorStore spec: {error}.") from error
    else:
        place = parse_source(path)
        kvstore = place.folder_url if place.scheme in WRITABLE else place.text
        spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore}
    try:
        return retry_transport(
            lambda: ts.open(spec, context=process_context(), open=True, create=False, read=True).result(),
            what=f"opening {path}",
        )
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be opened as a volume: {error}",
            remedy="Give an .npz, an .npy, a neuroglancer precomputed volume or a TensorStore spec.",
        ) from error


def _dimension_units(store: Any) -> FloatTriple | None:
    """Voxel size in nanometres, if the format knows it."""
    metres = {"nm": 1.0, "um": 1e3, "µm": 1e3, "mm": 1e6, "m": 1e9}
    units = store.dimension_units[:3]
    if any(u is None or u.base_unit not in metres for u in units):
        return None
    x, y, z = (float(u.multiplier) * metres[u.base_unit] for u in units)
    return x, y, z
