"""The source segmentation as a volume that can be read box by box: ``.npz``, ``.npy``, precomputed, TensorStore spec.

Owns formats and their checks; does not know chunks, ids or what the labels are used for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import ConfigError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation import kv
from sv_pipeline.segmentation.context import process_context

__all__ = ["LABEL_ARRAYS", "SourceVolume", "is_archive", "open_source", "read_arrays", "split_key"]

LABEL_ARRAYS = ("segmentation", "supervoxels", "labels", "agglomeration", "groundtruth")
"""Names under which a volume is looked for in an ``.npz`` that holds several."""

FloatTriple = tuple[float, float, float]
Triple = tuple[int, int, int]


class _Readable(Protocol):
    def __getitem__(self, index: Any) -> Any: ...


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
    """Path and array name of ``path.npz#key``."""
    base, separator, key = path.partition("#")
    return (base, key) if separator and base.endswith(".npz") else (path, None)


def is_archive(path: str) -> bool:
    """True for an ``.npz``, with or without a key."""
    return split_key(path)[0].endswith(".npz")


def open_source(
    path: str,
    *,
    resolution: FloatTriple | None = None,
    voxel_offset: Triple | None = None,
    n_dimensions: int = 3,
) -> SourceVolume:
    """Open a volume; each process opens a source once.

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


@lru_cache(maxsize=8)
def _open(path: str, resolution: FloatTriple | None, offset: Triple | None, n_dimensions: int) -> SourceVolume:
    file, key = split_key(path.removeprefix("file://"))
    if file.endswith(".npz"):
        arrays = read_arrays(file)
        name, array = _choose_array(file, key, arrays, n_dimensions)
        resolution = resolution or _triple(arrays.get("resolution"), float, f"{file}: resolution")
        offset = offset or _triple(arrays.get("voxel_offset"), int, f"{file}: voxel_offset")
        checks = {info.filename: info.CRC for info in zipfile.ZipFile(file).infolist()}
        return _from_array(f"{file}#{name}", array, resolution, offset, f"{sorted(checks.items())}", n_dimensions)
    if file.endswith(".npy"):
        array = _load(file, mmap_mode="r")
        stat = Path(file).stat()
        return _from_array(file, array, resolution, offset, f"{stat.st_size} {stat.st_mtime_ns}", n_dimensions)
    return _from_tensorstore(path, resolution, offset, n_dimensions)


# -- NumPy files ------------------------------------------------------------------------------------------------------


def _load(file: str, **options: Any) -> Any:
    try:
        return np.load(file, allow_pickle=False, **options)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist.", remedy="Check the path in source.") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read: {error}.") from error


@lru_cache(maxsize=4)
def read_arrays(file: str) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an ``.npz``; InputError if it cannot be read."""
    with _load(file) as archive:
        try:
            return {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{file} cannot be read: {error}.") from error


def _choose_array(
    file: str, key: str | None, arrays: dict[str, npt.NDArray[Any]], n_dimensions: int
) -> tuple[str, npt.NDArray[Any]]:
    if key is not None:
        if key not in arrays:
            raise InputError(f"{file} holds no array {key!r}.", remedy=f"It has: {', '.join(arrays) or 'none'}.")
        return key, arrays[key]
    fitting = [n for n, a in arrays.items() if a.ndim == n_dimensions]
    if n_dimensions == 3:
        integers = [n for n in fitting if arrays[n].dtype.kind in "iu"]
        known = [n for n in LABEL_ARRAYS if n in integers]
        chosen = integers if len(integers) == 1 else known[:1] if known else fitting if len(fitting) == 1 else []
    else:
        chosen = fitting
    if len(chosen) != 1:
        shapes = ", ".join(f"{n} {a.dtype} {a.shape}" for n, a in arrays.items())
        raise InputError(
            f"cannot tell which array of {file} is the {n_dimensions}-d volume (it has: {shapes or 'none'}).",
            remedy=f"Name it: {file}#name.",
        )
    return chosen[0], arrays[chosen[0]]


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
        fingerprint=f"{name} {array.dtype} {array.shape} {check}",
    )


def _triple(values: npt.NDArray[Any] | None, kind: type, where: str) -> Any:
    if values is None:
        return None
    flat = np.asarray(values).ravel()
    if flat.size != 3 or flat.dtype.kind not in "iuf":
        raise InputError(f"{where} must be three numbers, not {values!r}.")
    return tuple(kind(v) for v in flat)


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
        return self._store[index].read(order="F").result()


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
        place = path.removeprefix("precomputed://")
        spec = {"driver": "neuroglancer_precomputed", "kvstore": kv.as_url(place)}
    try:
        return ts.open(spec, context=process_context(), open=True, create=False, read=True).result()
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
