"""Row keys: the key of each kind of row, and bulk conversion between uint64 ids and keys. Reads and writes nothing.

| row | key |
| --- | --- |
| node, or operation (layer 0) | ``%020d`` |
| counter of a chunk; of a root shard | ``i%020d``; ``i%020d_<shard>`` |
| counter of operations | ``ioperations`` |
| edges that edits made in a layer 2 chunk | ``f%020d`` |
| lock of a layer 2 chunk | 10 bytes: two of a hash, the chunk id as big-endian uint64 |
| meta, version | ``meta``, ``version`` |
| ingest of a chunk (our own) | ``sv_pipeline:ingest:<layer:02d>:<chunk:020d>`` |
| counts of a block of chunks (our own) | ``sv_pipeline:counts:<layer:02d>:<block:08d>`` |
| sign that counts are kept (our own) | ``sv_pipeline:counts`` |
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import LAYER_BITS, IdLayout, UInt64Array
from sv_pipeline.table.interface import RowKeyRange

__all__ = [
    "COUNTS_SIGN",
    "META",
    "OPERATION_COUNTER",
    "VERSION",
    "blocks_range",
    "chunk_lock_key",
    "chunk_range",
    "chunk_ranges",
    "counter_key",
    "counter_keys",
    "counts_key",
    "counts_range",
    "edit_edge_key",
    "edit_edge_keys",
    "ingest_chunks",
    "ingest_key",
    "ingest_keys",
    "ingest_range",
    "join_ranges",
    "layer_range",
    "node_ids",
    "node_key",
    "node_keys",
    "operation_range",
    "prefix_range",
    "root_counter_key",
    "split_counts_key",
    "split_ingest_key",
]

META = b"meta"
VERSION = b"version"
OPERATION_COUNTER = b"ioperations"

DIGITS = 20
FEW = 300
"""Number of keys below which formatting one after the other is faster than arithmetic on arrays."""
_POWERS = np.array([10**p for p in range(DIGITS - 1, -1, -1)], dtype=np.uint64)
_INGEST = b"sv_pipeline:ingest:"
COUNTS_SIGN = b"sv_pipeline:counts"
_COUNTS = COUNTS_SIGN + b":"


# -- nodes and operations ---------------------------------------------------------------------------------------------


def node_key(node_id: int) -> bytes:
    """Return the key of the row of a node or an operation."""
    return b"%020d" % int(node_id)


def node_keys(ids: npt.ArrayLike) -> list[bytes]:
    """Return the keys of the rows of many nodes, in the order of ``ids`` (shape (n,))."""
    return _padded(ids, b"")


def node_ids(keys: Sequence[bytes] | Iterable[bytes]) -> UInt64Array:
    """Return the ids in keys that end with 20 digits after at most one letter (nodes, ``f`` and ``i`` rows).

    Raises
    ------
    ValueError
        If a key has another form.
    """
    keys = list(keys)
    if not keys:
        return np.zeros(0, np.uint64)
    width = len(keys[0])
    joined = b"".join(keys)
    if width not in (DIGITS, DIGITS + 1) or len(joined) != width * len(keys):
        raise ValueError("these are not keys of node rows of one kind")
    digits = np.frombuffer(joined, np.uint8).reshape(-1, width)[:, width - DIGITS :] - np.uint8(ord("0"))
    if (digits > 9).any():
        raise ValueError("these are not keys of node rows")
    return np.asarray(digits.astype(np.uint64) @ _POWERS, np.uint64)


def chunk_range(layout: IdLayout, chunk_id: int) -> RowKeyRange:
    """Return the range of the rows of all nodes of one chunk."""
    layer = int(layout.layers(np.uint64(chunk_id)))
    return RowKeyRange(node_key(chunk_id), node_key(int(chunk_id) + layout.max_segment(layer) + 1))


def chunk_ranges(layout: IdLayout, chunk_ids: npt.ArrayLike) -> list[RowKeyRange]:
    """Return the ranges of several chunks, sorted; neighbours in key space are joined into one range."""
    return join_ranges(
        chunk_range(layout, chunk_id) for chunk_id in np.unique(np.asarray(chunk_ids, np.uint64)).tolist()
    )


def join_ranges(ranges: Iterable[RowKeyRange]) -> list[RowKeyRange]:
    """Return disjoint sorted ranges that cover the same keys; empty ranges are left out."""
    result: list[RowKeyRange] = []
    for start, stop in sorted(r for r in ranges if r.start < r.stop):
        if result and start <= result[-1].stop:
            result[-1] = RowKeyRange(result[-1].start, max(stop, result[-1].stop))
        else:
            result.append(RowKeyRange(start, stop))
    return result


def layer_range(layer: int) -> RowKeyRange:
    """Return the range of the rows of all nodes of a layer."""
    shift = 64 - LAYER_BITS
    return RowKeyRange(node_key(layer << shift), node_key((layer + 1) << shift))


def operation_range(first: int = 1, last: int | None = None) -> RowKeyRange:
    """Return the range of operation rows ``first`` to ``last`` (both inclusive; None means the newest)."""
    return RowKeyRange(node_key(first), layer_range(0).stop if last is None else node_key(last + 1))


# -- counters and edges of edits --------------------------------------------------------------------------------------


def counter_key(chunk_id: int) -> bytes:
    """Return the key of the id counter of a chunk."""
    return b"i%020d" % int(chunk_id)


def counter_keys(chunk_ids: npt.ArrayLike) -> list[bytes]:
    """Return the keys of the id counters of many chunks."""
    return _padded(chunk_ids, b"i")


def root_counter_key(root_chunk_id: int, shard: int) -> bytes:
    """Return the key of one of the 256 id counters of the root chunk."""
    return b"i%020d_%d" % (int(root_chunk_id), shard)


def edit_edge_key(chunk_id: int) -> bytes:
    """Return the key of the row with the edges that edits added in a layer 2 chunk."""
    return b"f%020d" % int(chunk_id)


def edit_edge_keys(chunk_ids: npt.ArrayLike) -> list[bytes]:
    """Return the keys of the rows with the edges that edits added, for many layer 2 chunks."""
    return _padded(chunk_ids, b"f")


def chunk_lock_key(chunk_id: int) -> bytes:
    """Return the key of the lock row of a layer 2 chunk. It begins with a hash, which spreads neighbouring chunks."""
    place = struct.pack(">Q", int(chunk_id))
    return hashlib.blake2b(place, digest_size=2).digest() + place


# -- ingest -----------------------------------------------------------------------------------------------------------


def ingest_key(layer: int, chunk_id: int) -> bytes:
    """Return the key of the ingest row of a chunk."""
    return b"%b%02d:%020d" % (_INGEST, layer, int(chunk_id))


def ingest_keys(layer: int, chunk_ids: npt.ArrayLike) -> list[bytes]:
    """Return the keys of the ingest rows of many chunks of a layer."""
    return _padded(chunk_ids, b"%b%02d:" % (_INGEST, layer))


def ingest_range(layer: int | None = None) -> RowKeyRange:
    """Return the range of the ingest rows of a layer; None means all layers."""
    return prefix_range(_INGEST if layer is None else b"%b%02d:" % (_INGEST, layer))


def split_ingest_key(key: bytes) -> tuple[int, int]:
    """Return layer and chunk id of the key of an ingest row."""
    layer, chunk_id = key.removeprefix(_INGEST).split(b":")
    return int(layer), int(chunk_id)


def ingest_chunks(keys: Sequence[bytes]) -> UInt64Array:
    """Return the chunk ids in the keys of ingest rows."""
    start = len(_INGEST) + 3
    return node_ids([key[start:] for key in keys])


def counts_key(layer: int, block: int) -> bytes:
    """Return the key of the row with the counts of a block of chunks of a layer."""
    return b"%b%02d:%08d" % (_COUNTS, layer, int(block))


def counts_range(layer: int | None = None) -> RowKeyRange:
    """Return the range of the rows of counts of a layer; None means all layers, and the sign that counts are kept."""
    return prefix_range(COUNTS_SIGN if layer is None else b"%b%02d:" % (_COUNTS, layer))


def blocks_range() -> RowKeyRange:
    """Return the range of the rows of counts of all layers, without the sign that counts are kept."""
    return prefix_range(_COUNTS)


def split_counts_key(key: bytes) -> tuple[int, int]:
    """Return layer and block number of the key of a row of counts."""
    layer, block = key.removeprefix(_COUNTS).split(b":")
    return int(layer), int(block)


def prefix_range(prefix: bytes) -> RowKeyRange:
    """Return the range of all keys that begin with a prefix, whose last byte must be below 255."""
    return RowKeyRange(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))


def _padded(ids: npt.ArrayLike, prefix: bytes) -> list[bytes]:
    rest = np.array(ids, dtype=np.uint64).ravel()
    if len(rest) < FEW:
        return [b"%b%020d" % (prefix, number) for number in rest.tolist()]
    text = np.empty((len(rest), len(prefix) + DIGITS), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    ten = np.uint64(10)
    for column in range(text.shape[1] - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, ten)
        text[:, column] = digit + np.uint64(ord("0"))
    keys: list[bytes] = text.view(f"S{text.shape[1]}").ravel().tolist()
    return keys
