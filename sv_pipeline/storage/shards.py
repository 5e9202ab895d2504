"""Finds the chunks of a sharded mip in its shard files: file, first byte, length. Reads indices, never chunks.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md ::

    shard file       shard index | chunks and minishard indices, in any order
    shard index      per minishard: first byte and end of its index (2 x uint64)
    minishard index  3 rows of uint64: chunk ids (each as the difference to the one before)
                     | starts (each as the distance from the end of the chunk before) | lengths

Bytes are counted from the end of the shard index.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import InputError
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.retry import retry_transport, status_code
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = ["ShardedChunks", "find_in_shards"]

IntArray: TypeAlias = npt.NDArray[np.int64]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]
Names: TypeAlias = npt.NDArray[np.bytes_]


@dataclass(frozen=True, eq=False)
class ShardedChunks:
    """Places of chunks in shard files, in the order of the request."""

    shards: IntArray
    """Number of the shard of each chunk, shape (n,)."""
    files: Names
    """Name of the file of that shard, in the folder of the mip, shape (n,)."""
    offsets: IntArray
    """First byte of each chunk in its file, shape (n,)."""
    lengths: IntArray
    """Length of each chunk in bytes, shape (n,); -1 if the chunk does not exist."""


def find_in_shards(stored: StoredScale, cells: IntArray) -> ShardedChunks:
    """Look chunks up in the indices of their shards; a few requests for each shard and minishard.

    Parameters
    ----------
    stored
        A sharded mip.
    cells
        Positions in the chunk grid, shape (n, 3).

    Raises
    ------
    InputError
        If the sharding in the info file, or the index of a shard, cannot be read.
    """
    specification = _specification(stored)
    ids = stored.chunk_ids(cells)
    shards, minishards = _locations(specification, ids)
    digits = -(-int(specification.shard_bits) // 4)
    distinct, which = np.unique(shards, return_inverse=True)
    names = [f"{shard:0{digits}x}.shard" for shard in distinct.tolist()]
    order = np.argsort(which, kind="stable")
    by_shard = np.split(order, np.searchsorted(which[order], np.arange(1, len(names))))
    offsets, lengths = np.zeros(len(ids), np.int64), np.full(len(ids), -1, np.int64)
    index_bytes = 16 << int(specification.minishard_bits)
    store = retry_transport(
        lambda: ts.KvStore.open(stored.folder, context=uncached_context()).result(), what=f"opening {stored.folder}"
    )
    heads = _read(store, [(name, 0, index_bytes) for name in names], stored.folder)
    # Without chunks there are no names, but one empty part.
    for name, head, mine in zip(names, heads, by_shard, strict=False):
        if head is None:
            continue
        table = np.frombuffer(head, "<u8").reshape(-1, 2).astype(np.int64)
        wanted = [m for m in np.unique(minishards[mine]).tolist() if table[m, 0] < table[m, 1]]
        ranges = [(name, index_bytes + int(table[m, 0]), index_bytes + int(table[m, 1])) for m in wanted]
        for minishard, raw in zip(wanted, _read(store, ranges, stored.folder), strict=True):
            index = _decoded(raw, specification.minishard_index_encoding, f"{stored.folder}{name}")
            here = mine[minishards[mine] == minishard]
            offsets[here], lengths[here] = _look_up(index, ids[here], index_bytes)
    return ShardedChunks(shards, np.array(names, np.bytes_)[which], offsets, lengths)


def _specification(stored: StoredScale) -> Any:
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
    from cloudvolume.exceptions import SpecViolation

    try:
        return ShardingSpecification.from_dict(stored.sharding)
    except (SpecViolation, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the sharding of {stored.folder} in the info file cannot be used: {error}.") from error


def _locations(specification: Any, ids: UInt64Array) -> tuple[IntArray, IntArray]:
    """Return the shard and the minishard of each chunk, shape (n,)."""
    hashed = ids >> np.uint64(specification.preshift_bits)
    if specification.hash != "identity":
        hashed = np.array([specification.hashfn(code) for code in hashed], np.uint64)
    bits, shard_bits = int(specification.minishard_bits), int(specification.shard_bits)
    minishards = hashed & np.uint64((1 << bits) - 1)
    shards = (hashed >> np.uint64(bits)) & np.uint64((1 << shard_bits) - 1)
    return shards.astype(np.int64), minishards.astype(np.int64)


def _read(store: ts.KvStore, ranges: Iterable[tuple[str, int, int]], folder: str) -> list[bytes | None]:
    def read() -> list[bytes | None]:
        futures = [(name, store.read(name, byte_range=slice(start, stop))) for name, start, stop in ranges]
        results = [_in_file(future, f"{folder}{name}") for name, future in futures]
        return [None if result.state == "missing" else bytes(result.value) for result in results]

    return retry_transport(read, what=f"reading the indices of shards of {folder}")


def _in_file(future: ts.Future[Any], where: str) -> Any:
    try:
        return future.result()
    except ValueError as error:
        if status_code(error) != "OUT_OF_RANGE":
            raise
        raise InputError(
            f"the shard {where} ends before its index does.", remedy="Restore the file from its source."
        ) from error


def _decoded(raw: bytes | None, encoding: str, where: str) -> IntArray:
    try:
        content = gzip.decompress(raw or b"") if encoding == "gzip" else raw or b""
        return np.frombuffer(content, "<u8").reshape(3, -1).astype(np.int64)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the index of {where} cannot be read: {error}.", remedy="Restore the file from its source."
        ) from error


def _look_up(index: IntArray, ids: UInt64Array, index_bytes: int) -> tuple[IntArray, IntArray]:
    """Return the start and length of chunks in one minishard; the length is -1 for chunks that it does not contain."""
    known = np.cumsum(index[0])
    if not len(known):
        return np.zeros(len(ids), np.int64), np.full(len(ids), -1, np.int64)
    lengths = index[2]
    starts = np.cumsum(index[1] + lengths) - lengths + index_bytes
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], ids.astype(np.int64)), len(known) - 1)
    place = order[at]
    there = known[place] == ids.astype(np.int64)
    return np.where(there, starts[place], 0), np.where(there, lengths[place], -1)
