"""Owns the digests of storage chunks, which tell whether a chunk still is what was written.

OCDBT has checksums of its manifest and its tree, but not of values. So each commit that writes storage chunks of a fork
writes, in the same transaction, one key for each::

    _sv_pipeline/digests/<mip>/<x>_<y>_<z>     "<algorithm>:<digest> <nonce>"

``x_y_z`` numbers the chunks from the start of the volume. The digest is that of the decoded voxels, so other software
may encode them differently: the shape as three little-endian uint32, then the voxels as little-endian uint64, x
fastest. The nonce is random for each commit. It distinguishes a damaged chunk from one that other software has written
since without a digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.box_arrays import as_array, parts_by_chunk
from sv_pipeline.algorithms.voxel_blocks import Labels, VoxelBlock
from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.records import read_value, store_at
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.history import oldest_generation
from sv_pipeline.storage.precomputed import Scale, VolumeInfo
from sv_pipeline.storage.retry import retry_transport, status_code

__all__ = ["DIGESTS", "DigestWriter", "StorageChunk", "agrees", "chunks_in", "digest_of", "digest_writer", "made_anew"]

DIGESTS = ocdbt.OWN_KEYS + "digests/"
ALGORITHM = "sha256-128"
"""The first 16 bytes of SHA-256. Processors have instructions for it, so it is nearly as fast as zlib's CRC here."""
HASHERS = 2

Triple = tuple[int, int, int]
_KEY = re.compile(re.escape(DIGESTS) + r"(\d+)/(\d+)_(\d+)_(\d+)")


@dataclass(frozen=True, order=True)
class StorageChunk:
    """One storage chunk of a volume."""

    mip: int
    number: Triple
    """Position along each axis (x, y, z), in chunks from the start of the volume."""

    @property
    def digest_key(self) -> str:
        """Key of the chunk's digest."""
        return f"{DIGESTS}{self.mip}/{'_'.join(map(str, self.number))}"

    @classmethod
    def of_digest_key(cls, key: str) -> StorageChunk:
        """Return the chunk whose digest a key holds; raise CorruptionError if it is not such a key."""
        found = _KEY.fullmatch(key)
        if found is None:
            raise CorruptionError(f"the key {key} of the fork names no storage chunk.", remedy="Remove that key.")
        mip, x, y, z = map(int, found.groups())
        return cls(mip, (x, y, z))

    def box(self, scale: Scale) -> Box:
        """Return the box of the chunk, in absolute voxels of its mip."""
        start = np.multiply(self.number, scale.chunk_size) + scale.voxel_offset
        return Box.of(start, start + scale.chunk_size).clip(scale.bounds)

    def key(self, scale: Scale) -> str:
        """Return the key of the chunk's voxels."""
        box = self.box(scale)
        spans = "_".join(f"{start}-{stop}" for start, stop in zip(box.start, box.stop, strict=True))
        return f"{scale.key}/{spans}"

    @classmethod
    def of_start(cls, mip: int, scale: Scale, start: npt.ArrayLike) -> StorageChunk:
        """Return the chunk that holds a voxel (x, y, z), in absolute coordinates of the mip."""
        x, y, z = (np.subtract(start, scale.voxel_offset) // scale.chunk_size).tolist()
        return cls(mip, (x, y, z))


def chunks_in(mip: int, scale: Scale, box: Box) -> list[StorageChunk]:
    """Return the storage chunks that a box touches; the box is in absolute voxels of the mip."""
    relative = as_array([box.shifted(np.negative(scale.voxel_offset))])
    numbers, _ = parts_by_chunk(relative, scale.chunk_size, hull=True)
    return [StorageChunk(mip, (x, y, z)) for x, y, z in numbers.tolist()]


def digest_of(voxels: Labels) -> str:
    """Return the digest of the voxels of a chunk, shape (x, y, z)."""
    hashed = hashlib.sha256(np.array(voxels.shape, "<u4").tobytes())
    # The transpose in C order has x fastest. Voxels are mostly in Fortran order, and then this makes no copy.
    hashed.update(np.ascontiguousarray(voxels.T, "<u8").data)
    return f"{ALGORITHM}:{hashed.hexdigest()[:32]}"


def agrees(value: bytes, voxels: Labels) -> bool | None:
    """Return whether a stored digest is that of some voxels; None if this version does not know its algorithm."""
    stored = value.decode(errors="replace").split(" ")[0]
    return stored == digest_of(voxels) if stored.startswith(ALGORITHM + ":") else None


@dataclass
class DigestWriter:
    """Collects the digests of the chunks that one commit writes; hashes in threads, in parallel with the commit."""

    volume: VolumeInfo
    _pool: ThreadPoolExecutor
    _nonce: str = field(default_factory=lambda: secrets.token_hex(6))
    _values: dict[StorageChunk, Future[str] | None] = field(default_factory=dict)
    _given: dict[StorageChunk, bytes] = field(default_factory=dict)

    def add(self, block: VoxelBlock, mip: int = 0) -> None:
        """Add voxels that are written. A chunk that they cover only partly loses its digest."""
        scale = self.volume.scales[mip]
        for chunk in chunks_in(mip, scale, block.box):
            box = chunk.box(scale)
            if box.clip(block.box) != box:
                self._values[chunk] = None
                continue
            inside = box.shifted(np.negative(block.box.start))
            self._values[chunk] = self._pool.submit(digest_of, block.voxels[inside.slices])

    def keep(self, before: ts.KvStore) -> None:
        """Use the digests that another key space holds for these chunks, where it has them, instead of new ones."""
        chunks = [chunk for chunk, value in self._values.items() if value is not None]
        reads = [before.read(chunk.digest_key) for chunk in chunks]
        for chunk, found in zip(chunks, [read.result() for read in reads], strict=True):
            if found.state == "value":
                self._given[chunk] = bytes(found.value)

    def write(self, kv: ts.KvStore) -> None:
        """Write the digests in the transaction of the given keys."""
        futures = []
        for chunk, value in self._values.items():
            digest = None if value is None else f"{value.result()} {self._nonce}".encode()
            if digest is not None and chunk in self._given:
                # The nonce is a new one, because this commit writes the digest.
                digest = self._given[chunk].split(b" ")[0] + f" {self._nonce}".encode()
            futures.append(kv.write(chunk.digest_key, digest))
        for future in futures:
            future.result()


@contextmanager
def digest_writer(volume: VolumeInfo) -> Iterator[DigestWriter]:
    """Provide a `DigestWriter` for one commit; at the end of the block nothing reads the voxels any more."""
    writer = DigestWriter(volume, _hashers(os.getpid()))
    try:
        yield writer
    finally:
        wait([value for value in writer._values.values() if value is not None])


@lru_cache(1)
def _hashers(_process: int) -> ThreadPoolExecutor:
    """Return the threads of a process, which are kept: to start them took as long as to hash a chunk."""
    return ThreadPoolExecutor(HASHERS, "digests")


def made_anew(store: ocdbt.OcdbtStore, chunk_key: str, digest_key: str) -> bool | None:
    """Return whether the commit that wrote the present version of a chunk has also written its digest.

    Returns
    -------
    bool | None
        None if the history does not reach back to that commit.
    """
    present = _stamp(store.kv, chunk_key)
    low, high = oldest_generation(store.base).number, current_version(store.base).generation
    if low > 1 and _stamp(store_at(store, low).kv, chunk_key) == present:
        return None
    try:
        while low < high:  # the present stamp holds for one contiguous range of generations, up to the latest
            middle = (low + high) // 2
            if _stamp(store_at(store, middle).kv, chunk_key) == present:
                high = middle
            else:
                low = middle + 1
        before, after = (
            (read_value(store_at(store, g).kv, digest_key) for g in (low - 1, low)) if low > 1 else (None, None)
        )
    except ValueError as error:
        if status_code(error) != "NOT_FOUND":
            raise
        return None
    return before != after


def _stamp(kv: ts.KvStore, key: str) -> bytes:
    found = retry_transport(lambda: kv.read(key, byte_range=slice(0, 0)).result(), what=f"reading {key}")
    return bytes(found.stamp.generation)
