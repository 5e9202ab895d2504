"""Decodes the manifest of an OCDBT database. Reads and writes nothing.

TensorStore's own dump has the same content, but each call of it leaves objects behind that are never freed (0.1.86: all
that is nested in JSON which it returns), as many as the manifest has entries. Each edit of voxels reads the manifest
several times, so a process that edits for days must not use it.

The format is that of https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format::

    manifest  magic 0x0cdb3a2a (big-endian) | length of all (8 bytes) | version 0 | 0 plain, 1 zstd | body | crc32c
    body      uuid (16 bytes) | kind | bytes of inline values | bytes of nodes | log2 of the arity (1 byte)
              | 0 plain, 1 zstd and its level (4 bytes)
              | files | versions | nodes of the version tree, which hold the versions before
    files     number | prefix lengths but for the first | suffix lengths | base path lengths | suffixes
    versions  number | generation numbers | heights (1 byte each) | file numbers | offsets | lengths
              | keys below | bytes of nodes below | bytes of values below | commit times (8 bytes each)
    nodes     number | generation numbers | file numbers | offsets | lengths | numbers of generations
              | commit times (8 bytes each) | heights (1 byte each)

All other numbers are varints; columns are stored one after another. A database whose manifests are numbered keeps only
the configuration, without what follows it, under this name.
"""

from __future__ import annotations

import struct
from typing import Any
from urllib.parse import quote

import google_crc32c
import zstandard

__all__ = ["SINGLE_MANIFEST", "decode_manifest", "is_numbered"]

SINGLE_MANIFEST = "manifest.ocdbt"
"""Name of the manifest. If manifests are numbered, this object contains only the configuration."""
MAGIC = 0x0CDB3A2A
NO_ROOT = (1 << 64) - 1
"""Offset and length of the root of a generation without keys."""


def decode_manifest(data: bytes) -> dict[str, Any] | None:
    """Return the content of a manifest in the form of TensorStore's dump; None if its versions are stored elsewhere.

    Raises
    ------
    ValueError
        If the bytes are no manifest of this format, or are damaged.
    """
    reader = _Reader(_body(data))
    config = _config(reader)
    if "manifest_kind" in config:
        return None
    files = _files(reader)
    content = {"config": config, "versions": _versions(reader, files), "version_tree_nodes": _nodes(reader, files)}
    if reader.rest():
        raise ValueError("it is longer than its content")
    return content


def is_numbered(data: bytes) -> bool:
    """Return whether a manifest holds only the configuration of a database with numbered manifests.

    Raises
    ------
    ValueError
        If the bytes are no manifest of this format, or are damaged.
    """
    return "manifest_kind" in _config(_Reader(_body(data)))


def _body(data: bytes) -> bytes:
    """Return the body of a manifest, decompressed."""
    if len(data) < 18 or struct.unpack(">I", data[:4])[0] != MAGIC or struct.unpack("<Q", data[4:12])[0] != len(data):
        raise ValueError("it does not begin like a manifest, or is incomplete")
    if google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("its checksum does not fit")
    header = _Reader(data[12:-4])
    if (version := header.varint()) != 0:
        raise ValueError(f"version {version} of the format is unknown")
    compression, body = header.varint(), header.rest()
    if compression == 1:
        try:
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    elif compression:
        raise ValueError(f"compression {compression} is unknown")
    return body


class _Reader:
    """Takes values from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, n: int) -> bytes:
        end = self._at + n
        if end > len(self._data):
            raise ValueError("it ends too early")
        found, self._at = self._data[self._at : end], end
        return found

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def varints(self, n: int) -> list[int]:
        return [self.varint() for _ in range(n)]

    def numbers(self, n: int) -> list[int]:
        """Take numbers of 8 bytes each."""
        return list(struct.unpack(f"<{n}Q", self.take(8 * n)))


def _config(reader: _Reader) -> dict[str, Any]:
    config: dict[str, Any] = {"uuid": reader.take(16).hex()}
    kind = reader.varint()
    if kind > 1:
        raise ValueError(f"kind {kind} of manifest is unknown")
    if kind:
        config["manifest_kind"] = "numbered"
    config["max_inline_value_bytes"] = reader.varint()
    config["max_decoded_node_bytes"] = reader.varint()
    config["version_tree_arity_log2"] = reader.take(1)[0]
    compression = reader.varint()
    if compression > 1:
        raise ValueError(f"compression {compression} of nodes is unknown")
    config["compression"] = None
    if compression:
        level = struct.unpack("<i", reader.take(4))[0]
        config["compression"] = {"id": "zstd", "level": level} if level else {"id": "zstd"}
    return config


def _files(reader: _Reader) -> list[tuple[str, str]]:
    """Take the table of files: the base path and the rest of each."""
    n = reader.varint()
    prefixes = [0, *reader.varints(max(n - 1, 0))][:n]
    suffixes, bases = reader.varints(n), reader.varints(n)
    files, before = [], b""
    for prefix, suffix, base in zip(prefixes, suffixes, bases, strict=True):
        before = before[:prefix] + reader.take(suffix)
        files.append((before[:base].decode(), before[base:].decode()))
    return files


def _location(kind: str, file: tuple[str, str], offset: int, length: int) -> str:
    base, path = (quote(part, safe="/").replace("~", "%7E") for part in file)
    return f"{kind}:{base}:{path}:{offset}:{length}"


def _versions(reader: _Reader, files: list[tuple[str, str]]) -> list[dict[str, Any]]:
    n = reader.varint()
    generations, heights = reader.varints(n), list(reader.take(n))
    numbers, offsets, lengths = (reader.varints(n) for _ in range(3))
    keys, nodes, values = (reader.varints(n) for _ in range(3))
    times = reader.numbers(n)
    versions = []
    for i in range(n):
        statistics = {"num_keys": keys[i], "num_tree_bytes": nodes[i], "num_indirect_value_bytes": values[i]}
        root: dict[str, Any] = {"statistics": statistics}
        if offsets[i] != NO_ROOT:
            root["location"] = _location("btreenode", files[numbers[i]], offsets[i], lengths[i])
        versions.append(
            {
                "generation_number": generations[i],
                "commit_time": times[i],
                "root_height": heights[i],
                "root": root,
            }
        )
    return versions


def _nodes(reader: _Reader, files: list[tuple[str, str]]) -> list[dict[str, Any]]:
    n = reader.varint()
    generations = reader.varints(n)
    numbers, offsets, lengths = (reader.varints(n) for _ in range(3))
    counts, times, heights = reader.varints(n), reader.numbers(n), list(reader.take(n))
    return [
        {
            "location": _location("versionnode", files[numbers[i]], offsets[i], lengths[i]),
            "generation_number": generations[i],
            "commit_time": times[i],
            "num_generations": counts[i],
            "height": heights[i],
        }
        for i in range(n)
    ]
