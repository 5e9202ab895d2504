"""Encodes a B+tree of OCDBT whose values lie in files that exist already, and the manifest of its store.

The format is that of https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format, which allows data
files of any path ("to refer to existing data, both in OCDBT format and in other formats"). Everything else is left to
TensorStore: it reads these trees, copies their entries into others, and encodes the manifest.

::

    node      magic 0x0cdb20de (big-endian) | length of all (8 bytes) | version 0 | 0 plain, 1 zstd | body | crc32c
    body      height | file table | number of entries | entries, column by column
    files     number | prefix lengths but for the first | suffix lengths | base path lengths | suffixes
    leaf      key prefix lengths but for the first | key suffix lengths | key suffixes
              | value lengths | value kinds (1: outside the node) | file numbers | offsets
    interior  key prefix lengths but for the first | key suffix lengths | common prefix lengths | key suffixes
              | file numbers | offsets | lengths | keys below | bytes of nodes below | bytes of values below
"""

from __future__ import annotations

import struct
import time
import uuid
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import tensorstore as ts
import zstandard

from sv_pipeline.storage.byte_strings import ByteStrings, varints

__all__ = ["MAX_ENTRIES", "References", "Tree", "encode_tree", "tree_manifest"]

MAGIC = 0x0CDB20DE
MAX_ENTRIES = 1 << 20
"""Largest number of entries of one node that TensorStore accepts."""
ENTRY = 40
"""Largest size of an entry without its key and its path, in bytes."""
AT_ONCE = 1 << 16
"""Number of entries that are processed together, so that they fit in the processor's cache."""
OVERHEAD = 64
"""Largest size of a body without its entries, in bytes."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class References:
    """Values of keys that lie in files: n ascending keys, each with a range of bytes."""

    keys: ByteStrings
    files: ByteStrings
    """File of each value, relative to the database's base; n strings."""
    offsets: IntArray
    """First byte of each value in its file, shape (n,)."""
    lengths: IntArray
    """Length of each value in bytes, shape (n,)."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Tree:
    """An encoded B+tree: all its nodes, one after another, as the content of one file."""

    data: bytes
    height: int
    root_offset: int
    """Offset of the root node in ``data``; the root is the last node."""
    n_keys: int
    n_value_bytes: int
    """Total size of all values, in bytes."""

    def version(self, file: str) -> dict[str, Any]:
        """Return the tree as generation 1, in the form of TensorStore's dump; ``file`` is the file with ``data``."""
        length = len(self.data) - self.root_offset
        statistics = {
            "num_keys": self.n_keys,
            "num_tree_bytes": len(self.data),
            "num_indirect_value_bytes": self.n_value_bytes,
        }
        return {
            "generation_number": 1,
            "commit_time": time.time_ns(),
            "root_height": self.height,
            "root": {"location": f"btreenode::{file}:{self.root_offset}:{length}", "statistics": statistics},
        }


@dataclass(frozen=True, eq=False)
class _Level:
    """Nodes of one height."""

    first_keys: ByteStrings
    """Smallest key below each node; n strings."""
    offsets: IntArray
    lengths: IntArray
    statistics: IntArray
    """Number of keys, bytes of nodes (including the node itself) and bytes of values below each node, shape (3, n)."""

    def __len__(self) -> int:
        return len(self.offsets)


def encode_tree(references: References, file: str, *, max_node_bytes: int, compression_level: int | None = 3) -> Tree:
    """Encode references as a B+tree.

    Parameters
    ----------
    references
        The references; at least one.
    file
        File in which the caller will store the tree, relative to the database's base.
    max_node_bytes
        Limit of the decoded size of a node; a node of one entry (or two, above the leaves) may be larger.
    compression_level
        Level of zstd; None disables compression.

    Raises
    ------
    ValueError
        If there is no reference, or the keys are not in ascending order.
    """
    writer = _Writer(max_node_bytes, compression_level)
    level, height = writer.leaves(references), 0
    while len(level) > 1:
        height += 1
        level = writer.parents(level, file.encode(), height)
    return Tree(
        data=bytes(writer.data),
        height=height,
        root_offset=int(level.offsets[0]),
        n_keys=len(references),
        n_value_bytes=int(references.lengths.sum()),
    )


def tree_manifest(tree: Tree, file: str, config: dict[str, Any]) -> bytes:
    """Return the content of ``manifest.ocdbt`` for a store that contains only a tree.

    Parameters
    ----------
    file
        File that holds the tree, relative to the database's base.
    config
        TensorStore's ``config`` member. Its ``manifest_kind`` is ignored: the manifest is always a single one.
    """
    content = {
        # TensorStore rejects a configuration with the kind of the manifest as incomplete.
        "config": {**{k: v for k, v in config.items() if k != "manifest_kind"}, "uuid": uuid.uuid4().hex},
        "versions": [tree.version(file)],
        "version_tree_nodes": [],
    }
    return bytes(ts.ocdbt.undump_manifest(content))


class _Writer:
    """Appends nodes to the content of a file."""

    def __init__(self, max_node_bytes: int, level: int | None) -> None:
        self.data = bytearray()
        self._limit = max_node_bytes
        self._compressor = None if level is None else zstandard.ZstdCompressor(level=level)

    def leaves(self, references: References) -> _Level:
        # A node begins with a whole key and a whole path; all others leave out what they share with the one before.
        if not len(references):
            raise ValueError("references need keys, in ascending order")
        costs = np.concatenate([_costs(references, at) for at in range(0, len(references), AT_ONCE)])
        cuts = _cuts(costs, references.keys.lengths + references.files.lengths, self._limit, 1)
        places = [self._leaf(references, a, b) for a, b in pairwise(cuts)]
        starts = np.asarray(cuts[:-1])
        values = np.add.reduceat(references.lengths, starts)
        return self._level(references.keys[starts], places, np.diff(cuts), 0, values)

    def _leaf(self, references: References, first: int, stop: int) -> tuple[int, int]:
        part = slice(first, stop)
        names = references.files[part]
        if names.ascends(names.shared):
            files, numbers = names, np.arange(stop - first)
        else:
            files, numbers = names.distinct()
        lengths = references.lengths[part]
        entries = [
            _prefixed(references.keys[part]),
            varints(lengths),
            bytes([1]) * len(lengths),
            varints(numbers),
            varints(references.offsets[part]),
        ]
        return self._node(0, files, stop - first, entries)

    def parents(self, below: _Level, file: bytes, height: int) -> _Level:
        shared = below.first_keys.shared
        cuts = _cuts(below.first_keys.lengths - shared + 60, below.first_keys.lengths + len(file), self._limit, 2)
        places = [self._interior(below, file, height, a, b) for a, b in pairwise(cuts)]
        starts = np.asarray(cuts[:-1])
        keys, nodes, values = np.add.reduceat(below.statistics, starts, axis=1)
        return self._level(below.first_keys[starts], places, keys, nodes, values)

    def _interior(self, below: _Level, file: bytes, height: int, first: int, stop: int) -> tuple[int, int]:
        part, n = slice(first, stop), stop - first
        zeros = bytes(n)
        prefixes, suffix_lengths, suffixes = _prefix_columns(below.first_keys[part])
        columns = (below.offsets[part], below.lengths[part], *below.statistics[:, part])
        entries = [prefixes, suffix_lengths, zeros, suffixes, zeros, *map(varints, columns)]
        return self._node(height, ByteStrings.of([file]), n, entries)

    def _node(self, height: int, files: ByteStrings, n_entries: int, entries: list[bytes]) -> tuple[int, int]:
        prefixes, suffix_lengths, suffixes = _prefix_columns(files)
        table = [varints([len(files)]), prefixes, suffix_lengths, bytes(len(files)), suffixes]
        body = b"".join([bytes([height]), *table, varints([n_entries]), *entries])
        if self._compressor is not None:
            body = self._compressor.compress(body)
        content = bytes([0, 0 if self._compressor is None else 1]) + body
        node = struct.pack(">I", MAGIC) + struct.pack("<Q", 16 + len(content)) + content
        place = (len(self.data), len(node) + 4)
        self.data += node + struct.pack("<I", google_crc32c.value(node))
        return place

    def _level(
        self,
        first_keys: ByteStrings,
        places: list[tuple[int, int]],
        keys: IntArray,
        nodes: IntArray | int,
        values: IntArray,
    ) -> _Level:
        offsets, lengths = np.asarray(places, np.int64).T
        return _Level(first_keys, offsets, lengths, np.stack([keys, nodes + lengths, values]).astype(np.int64))


def _costs(references: References, first: int) -> IntArray:
    """Return upper limits of the sizes of `AT_ONCE` entries in a leaf, from ``first`` on; check the order of keys."""
    lead = min(first, 1)
    part = slice(first - lead, first + AT_ONCE)
    keys, files = references.keys[part], references.files[part]
    shared = keys.shared
    if not keys.ascends(shared):
        raise ValueError("references need keys, in ascending order")
    return (keys.lengths - shared + files.lengths - files.shared + ENTRY)[lead:]


def _prefix_columns(strings: ByteStrings) -> tuple[bytes, bytes, bytes]:
    """Return three columns: lengths of common prefixes (without the first), lengths of suffixes, and suffixes."""
    shared = strings.shared
    return varints(shared[1:]), varints(strings.lengths - shared), strings.after(shared)


def _prefixed(strings: ByteStrings) -> bytes:
    return b"".join(_prefix_columns(strings))


def _cuts(costs: IntArray, whole: IntArray, limit: int, least: int) -> list[int]:
    """Return the first entry of each node, and the end.

    A node fits the limit, but has at least ``least`` entries as long as there are so many.
    """
    total = np.concatenate([[0], np.cumsum(costs)])
    cuts, n = [0], len(costs)
    while cuts[-1] < n:
        first = cuts[-1]
        room = total[first] + limit - OVERHEAD - int(whole[first])
        stop = int(np.searchsorted(total, room, side="right")) - 1
        stop = min(max(stop, first + least), first + MAX_ENTRIES, n)
        cuts.append(stop)
    return cuts
