"""Finds the keys of a fork that are its own: written to the fork itself, rather than shared with the base. Reads only.

A commit rewrites the nodes of the tree that lead to its changes, below the fork's own prefix. Only nodes with that
prefix are read, so the cost depends on the number of edits, not on the size of the volume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import tensorstore as ts

from sv_pipeline.segmentation.fork.digests import DIGESTS, StorageChunk
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.storage.reachable import Extent
from sv_pipeline.storage.retry import retry_transport

__all__ = ["OwnChunks", "own_chunks"]

NODES_AT_ONCE = 64
_SPANS = re.compile("_".join([r"(-?\d+)--?\d+"] * 3))


@dataclass
class OwnChunks:
    """Storage chunks of a fork that it does not share with the base."""

    outside: set[StorageChunk] = field(default_factory=set)
    """Chunks that are stored in data files of the fork."""
    inline: set[StorageChunk] = field(default_factory=set)
    """Chunks that are stored inside nodes of the fork's tree, which have checksums; some of them are the base's."""
    digests: dict[StorageChunk, bytes] = field(default_factory=dict)
    """Digests by chunk. A chunk that is all background has a digest but is not stored."""

    @property
    def every(self) -> list[StorageChunk]:
        """All of these chunks, by mip and position."""
        return sorted(self.outside | self.inline | self.digests.keys())


def own_chunks(store: ocdbt.OcdbtStore, volume: VolumeInfo) -> OwnChunks:
    """Walk the nodes that belong to a fork. For a store that is not a fork, only chunks with a digest are found."""
    if "value_data_prefix" not in store.spec:
        return _noted_chunks(store)
    prefixes = tuple(
        store.spec[name] for name in ("value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix")
    )
    places = {f"{scale.key}/": (mip, scale) for mip, scale in reversed(list(enumerate(volume.scales)))}
    found = OwnChunks()

    def own(location: str) -> bool:
        return Extent.parse(location)[1].file.startswith(prefixes)

    root = read_manifest(store.base)["versions"][-1]["root"]
    waiting = [(b"", root["location"])] if "location" in root and own(root["location"]) else []
    while waiting:
        now, waiting = waiting[:NODES_AT_ONCE], waiting[NODES_AT_ONCE:]
        for (prefix, _), node in zip(now, _dump(store.base, [location for _, location in now]), strict=True):
            for entry in node["entries"]:
                key = prefix + entry["key"]
                if "location" in entry:
                    if own(entry["location"]):
                        waiting.append((prefix + entry["subtree_common_prefix"], entry["location"]))
                elif "inline_value" in entry or own(entry["indirect_value"]):
                    _note(found, places, key.decode(), entry)
    elsewhere = [chunk for chunk, value in found.digests.items() if not value]
    reads = [store.kv.read(chunk.digest_key) for chunk in elsewhere]
    found.digests.update({c: bytes(r.result().value) for c, r in zip(elsewhere, reads, strict=True)})
    return found


def _noted_chunks(store: ocdbt.OcdbtStore) -> OwnChunks:
    folder = store.kv / DIGESTS

    def read() -> dict[StorageChunk, bytes]:
        keys = [DIGESTS + key.decode() for key in folder.list().result()]
        results = [future.result() for future in [store.kv.read(key) for key in keys]]
        return {StorageChunk.of_digest_key(key): bytes(r.value) for key, r in zip(keys, results, strict=True)}

    return OwnChunks(digests=retry_transport(read, what="reading the digests of a store"))


def _note(found: OwnChunks, places: dict[str, Any], key: str, entry: dict[str, Any]) -> None:
    if key.startswith(DIGESTS):
        found.digests[StorageChunk.of_digest_key(key)] = bytes(entry.get("inline_value", b""))
        return
    folder, _, name = key.rpartition("/")
    if folder + "/" not in places:
        return
    mip, scale = places[folder + "/"]
    spans = _SPANS.fullmatch(name)
    if spans is not None:
        chunks = found.inline if "inline_value" in entry else found.outside
        chunks.add(StorageChunk.of_start(mip, scale, [int(start) for start in spans.groups()]))


def _dump(base: ts.KvStore, locations: list[str]) -> list[dict[str, Any]]:
    context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 24}})

    def read() -> list[dict[str, Any]]:
        return [f.result() for f in [ts.ocdbt.dump(base, location, context=context) for location in locations]]

    return retry_transport(read, what="reading the nodes of a fork")
