"""One mip of a neuroglancer volume as it is stored: its files, and opening it, whichever software wrote it.

TensorStore reads only what follows the specification exactly. Other forms that are in use are adapted here. An ``info``
file whose values differ in case or form is replaced by its normal form, in memory only. Chunk files that are compressed
as a whole (`compressed_files`), or have encodings that only cloud-volume knows, are decoded by cloud-volume.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import DamagedError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.storage.compressed_files import only_form, suffixes_in
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.volume_info import Scale, VolumeInfo, info_json

__all__ = ["StoredScale"]

TENSORSTORE_ENCODINGS = ("raw", "compressed_segmentation", "jpeg", "png")
SPEC = "neuroglancer_precomputed"

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoredScale:
    """One mip of a volume on storage.

    Parameters
    ----------
    url
        Folder of the volume, as a kvstore URL that ends with ``/``.
    raw
        Raw content of its ``info`` file.
    volume
        Parsed content of its ``info`` file.
    mip
        Number of the mip.
    """

    url: str
    raw: Mapping[str, Any]
    volume: VolumeInfo
    mip: int = 0

    @property
    def scale(self) -> Scale:
        """Description of the mip in the info file."""
        return self.volume.scales[self.mip]

    @property
    def sharding(self) -> dict[str, Any] | None:
        """Specification of its shards; None if every chunk has its own file."""
        found: dict[str, Any] | None = self.raw["scales"][self.mip].get("sharding")
        return found

    @property
    def folder(self) -> str:
        """Folder of its chunks."""
        scheme, _, path = self.url.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(path, quote(self.scale.key)))}/"

    @property
    def cells(self) -> tuple[int, int, int]:
        """Storage chunks per axis."""
        x, y, z = (-(-n // c) for n, c in zip(self.scale.size, self.scale.chunk_size, strict=True))
        return (x, y, z)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of compressed chunk files in the folder."""
        return () if self.sharding is not None else suffixes_in(self.folder)

    def names(self, cells: IntArray) -> list[str]:
        """Return the file names of storage chunks at positions in the chunk grid, shape (n, 3)."""
        starts = cells * np.asarray(self.scale.chunk_size, np.int64) + self.scale.voxel_offset
        stops = np.minimum(starts + self.scale.chunk_size, self.scale.bounds.stop)
        rows = np.concatenate([starts, stops], axis=1).tolist()
        return [f"{a}-{d}_{b}-{e}_{c}-{f}" for a, b, c, d, e, f in rows]

    def chunk_ids(self, cells: IntArray) -> npt.NDArray[np.uint64]:
        """Return the ids (compressed Morton codes) of storage chunks at positions in the chunk grid, shape (n, 3)."""
        from cloudvolume.datasource.precomputed.common import compressed_morton_code

        return np.atleast_1d(np.asarray(compressed_morton_code(cells, self.cells), np.uint64))

    def open(self, *, writable: bool = False) -> ts.TensorStore:
        """Open the mip as a store (x, y, z, channel) in absolute coordinates.

        Raises
        ------
        InputError
            If its chunks are compressed or encoded in a way that cannot be read.
        """
        suffixes = () if writable else self.suffixes
        if suffixes or self.scale.encoding not in TENSORSTORE_ENCODINGS:
            return self._decoded(suffixes)
        what = f"mip {self.mip} of {self.url}"
        try:
            return retry_transport(lambda: self._open(writable=writable), what=f"opening {what}")
        except DamagedError as error:
            raise InputError(
                f"{what} cannot be opened as its info file says: {error.message.rstrip('.')}.",
                remedy="Correct the info file.",
            ) from error

    def check_readable(self) -> None:
        """Decode a chunk at the beginning and one in the middle; raise InputError if that fails."""
        store = self.open()[..., 0]
        for voxel in (self.scale.bounds.start, np.add(self.scale.voxel_offset, np.asarray(self.scale.size) // 2)):
            try:
                retry_transport(lambda at=tuple(voxel): store[at].read().result(), what=f"reading {self.folder}")  # type: ignore[misc]
            except DamagedError as error:
                raise InputError(
                    f"a chunk of {self.folder} cannot be decoded as its info file says ({self.scale.encoding}): "
                    f"{error.message.rstrip('.')}.",
                    remedy="Correct the info file, or restore the chunk from its source.",
                ) from error

    def _open(self, *, writable: bool) -> ts.TensorStore:
        spec: dict[str, Any] = {"driver": SPEC, "kvstore": self.url, "scale_index": self.mip}
        if writable:
            # All chunks are stored, so that a missing chunk is always a lost one and never one of background only.
            spec["store_data_equal_to_fill_value"] = True
        normal = self._normal_form()
        if not writable and not _says(self.raw, normal, self.mip):
            spec |= {"kvstore": _with_info(self.url, self.mip, normal), "scale_index": 0}
        return ts.open(spec, context=process_context(), open=True, read=True, write=writable or None).result()

    def _normal_form(self) -> dict[str, Any]:
        normal = info_json(replace(self.volume, scales=(self.scale,)))
        if self.sharding is not None:
            normal["scales"][0]["sharding"] = self.sharding
        return normal

    def _decoded(self, suffixes: tuple[str, ...]) -> ts.TensorStore:
        if self.sharding is not None:
            raise InputError(
                f"mip {self.mip} of {self.url} is sharded, and has the encoding {self.scale.encoding}, which is not "
                "supported together.",
                remedy="Export it unsharded, or as compressed_segmentation.",
            )
        folder = retry_transport(
            lambda: ts.KvStore.open(self.folder, context=process_context()).result(), what=f"opening {self.folder}"
        )
        scale, dtype = self.scale, np.dtype(self.volume.data_type)
        offset, size = np.asarray(scale.voxel_offset), np.asarray(scale.chunk_size)

        def read(domain: ts.IndexDomain, target: npt.NDArray[Any], _: object) -> None:
            cell = (np.asarray(domain.inclusive_min[:3]) - offset) // size
            start = cell * size + offset
            box = Box.of(start, start + size).clip(scale.bounds)
            (name,) = self.names(cell[None])
            values = [folder.read(name + suffix).result() for suffix in ("", *suffixes)]
            contents = [None if value.state == "missing" else bytes(value.value) for value in values]
            data = only_form(name, contents, suffixes, self.folder)
            labels = _decode(data, scale, (*box.shape, self.volume.num_channels), dtype, self.folder + name)
            relative = np.asarray(domain.inclusive_min[:3]) - start
            inside = Box.of(relative, relative + domain.shape[:3]).slices
            target[...] = labels[inside][..., domain.inclusive_min[3] : domain.exclusive_max[3]]

        units: list[Any] = [ts.Unit(r, "nm") for r in scale.resolution]
        return ts.virtual_chunked(
            read,
            dtype=ts.dtype(dtype),
            domain=ts.IndexDomain(
                inclusive_min=[*scale.voxel_offset, 0],
                shape=[*scale.size, self.volume.num_channels],
                labels=["x", "y", "z", "channel"],
            ),
            chunk_layout=ts.ChunkLayout(
                grid_origin=[*scale.voxel_offset, 0], read_chunk_shape=[*scale.chunk_size, self.volume.num_channels]
            ),
            dimension_units=[*units, None],
            context=process_context(),
        )


def _decode(
    data: bytes | None, scale: Scale, shape: tuple[int, ...], dtype: np.dtype[Any], where: str
) -> npt.NDArray[Any]:
    if data is None:
        return np.zeros(shape, dtype, order="F")
    from cloudvolume import chunks, exceptions

    try:
        decoded = chunks.decode(data, scale.encoding, shape=shape, dtype=dtype, block_size=scale.block_size)
    except (ValueError, IndexError, RuntimeError, ImportError, exceptions.DecodingError) as error:
        raise InputError(
            f"{where} cannot be decoded as {scale.encoding}: {error}.", remedy="Restore the file from its source."
        ) from error
    return np.asarray(decoded).reshape(shape, order="F")


def _says(raw: Mapping[str, Any], normal: Mapping[str, Any], mip: int) -> bool:
    """Whether an info file is in the normal form, so that TensorStore understands it."""
    mine, theirs = normal["scales"][0], raw["scales"][mip]
    same = all(raw.get(field) == normal[field] for field in ("@type", "data_type", "num_channels"))
    same &= isinstance(raw.get("type"), str)
    same &= all(theirs.get(field) == mine[field] for field in mine if field != "chunk_sizes")
    return bool(same and theirs["chunk_sizes"][:1] == mine["chunk_sizes"])


def _with_info(url: str, mip: int, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the key-value spec of a volume with another info file, which is kept in memory."""
    path = f"sv_pipeline/info/{mip}/{url}info"
    memory = {"driver": "memory", "path": path}
    store = ts.KvStore.open({**memory, "path": path.removesuffix("info")}, context=process_context()).result()
    store.write("info", json.dumps(info).encode()).result()
    return {"driver": "kvstack", "layers": [{"base": url}, {"base": memory, "exact": "info"}]}
