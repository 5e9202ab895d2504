"""The history of an OCDBT database: reads all its generations, and encodes a manifest that begins later.

The generations are the leaves of the *version tree*. The manifest holds the newest leaf, and refers to at most one node
of each height for the generations before::

    manifest   versions 289..301 | node of height 1: 257..288 | node of height 2: 1..256
                                        /          \\                     |
                                  257..272      273..288            (height 1) 1..256

A tree that begins later lacks the nodes before its first generation. On the way to that generation, at most one node of
each height has to be encoded anew; the others are used as they are. The module writes nothing to a store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import tensorstore as ts

from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "ManifestFrom",
    "PastGeneration",
    "manifest_from",
    "manifest_until",
    "node_reader",
    "oldest_generation",
    "read_history",
]

Json = dict[str, Any]
ReadNode = Callable[[str], Json]


@dataclass(frozen=True)
class PastGeneration:
    """One generation of the history of a database."""

    number: int
    commit_time: int
    """Nanoseconds since the epoch, by the clock of the writer."""
    root: str | None
    """Location of the root of its B+tree; None if it has no keys."""

    @classmethod
    def of(cls, version: Json) -> PastGeneration:
        """Return the generation that an entry of TensorStore's dump describes."""
        return cls(int(version["generation_number"]), int(version["commit_time"]), version["root"].get("location"))


def node_reader(base: ts.KvStore) -> ReadNode:
    """Return a function that reads a node of a database by its location, given the database's underlying key space."""
    context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 24}})

    def read(location: str) -> Json:
        found: Json = retry_transport(
            lambda: ts.ocdbt.dump(base, location, context=context).result(), what="reading the history of a store"
        )
        return found

    return read


def read_history(base: ts.KvStore, manifest: Json | None = None) -> list[PastGeneration]:
    """Return all generations of a database, oldest first.

    Parameters
    ----------
    base
        Underlying key space of the database.
    manifest
        TensorStore's dump of its manifest, if it was read before.
    """
    manifest = read_manifest(base) if manifest is None else manifest
    return [PastGeneration.of(version) for version in _versions(manifest, node_reader(base))]


def _versions(manifest: Json, read: ReadNode) -> list[Json]:
    """Return the entries of all generations, oldest first, as TensorStore dumps them."""
    found = list(manifest["versions"])
    pending = [node["location"] for node in manifest.get("version_tree_nodes", [])]
    while pending:
        entries = [entry for location in pending for entry in read(location)["entries"]]
        pending = [entry["location"] for entry in entries if "location" in entry]
        found += [entry for entry in entries if "root" in entry]
    return sorted(found, key=lambda version: int(version["generation_number"]))


def oldest_generation(base: ts.KvStore) -> PastGeneration:
    """Return the oldest generation that a database still has; this reads one node of each height."""
    manifest = read_manifest(base)
    read, entry = node_reader(base), [*manifest.get("version_tree_nodes", []), *manifest["versions"]][0]
    while "root" not in entry:
        entry = read(entry["location"])["entries"][0]
    return PastGeneration.of(entry)


@dataclass(frozen=True)
class ManifestFrom:
    """A manifest without the generations before a horizon, and the nodes that it needs."""

    manifest: bytes
    """Content of ``manifest.ocdbt``."""
    nodes: bytes
    """Content of the file with the nodes that were encoded anew; empty if there are none."""
    removed: int
    """Number of generations that are left out."""


def manifest_from(manifest: Json, horizon: int, read: ReadNode, file: str) -> ManifestFrom:
    """Encode a manifest whose history begins with a generation.

    Parameters
    ----------
    manifest
        TensorStore's dump of the present manifest.
    horizon
        The oldest generation to keep; at most the latest one.
    read
        Function that reads a node of the version tree by its location.
    file
        File, relative to the database's base, in which the caller will store `ManifestFrom.nodes` before the manifest.
    """
    if horizon > int(manifest["versions"][-1]["generation_number"]):
        raise ValueError(f"generation {horizon} does not exist yet")
    trimmer = _Trimmer(manifest["config"], horizon, read, file)
    nodes = [kept for node in manifest.get("version_tree_nodes", []) if (kept := trimmer.reference(node)) is not None]
    versions = trimmer.versions(manifest["versions"])
    # TensorStore rejects a configuration with the kind of the manifest as incomplete.
    config = {name: value for name, value in manifest["config"].items() if name != "manifest_kind"}
    content = {"config": config, "versions": versions, "version_tree_nodes": nodes}
    return ManifestFrom(bytes(ts.ocdbt.undump_manifest(content)), bytes(trimmer.data), trimmer.removed)


def manifest_until(manifest: Json, last: int, read: ReadNode, file: str) -> ManifestFrom:
    """Encode a manifest whose history ends with a generation; its whole version tree is encoded anew.

    Parameters
    ----------
    manifest
        TensorStore's dump of the present manifest.
    last
        The generation that becomes the latest one; the history must contain it.
    read, file
        As for `manifest_from`.
    """
    every = _versions(manifest, read)
    versions = [version for version in every if int(version["generation_number"]) <= last]
    if not versions or int(versions[-1]["generation_number"]) != last:
        raise ValueError(f"there is no generation {last}")
    arity = int(manifest["config"]["version_tree_arity_log2"])
    data, nodes = bytearray(), []

    def encoded(entries: list[Json], height: int) -> Json:
        content = {"entries": entries, "height": height, "version_tree_arity_log2": arity}
        node = ts.ocdbt.undump_version_tree_node(manifest["config"], content)
        place = f"versionnode::{quote(file)}:{len(data)}:{len(node)}"
        data.extend(node)
        return {
            "location": place,
            "height": height,
            "generation_number": entries[-1]["generation_number"],
            "num_generations": sum(int(entry.get("num_generations", 1)) for entry in entries),
            "commit_time": entries[0]["commit_time"],
        }

    def divided(entries: list[Json], height: int) -> list[list[Json]]:
        """Divide entries among nodes of a height."""
        groups: dict[int, list[Json]] = {}
        for entry in entries:
            groups.setdefault((int(entry["generation_number"]) - 1) >> (arity * (height + 1)), []).append(entry)
        return list(groups.values())

    *full, newest = divided(versions, 0)
    level, height, upto = [encoded(entries, 0) for entries in full], 0, (last - 1) >> arity << arity
    while upto:
        height += 1
        before = (upto - 1) >> (arity * (height + 1)) << (arity * (height + 1))
        mine = [entry for entry in level if int(entry["generation_number"]) > before]
        if mine:
            nodes.append(encoded(mine, height))
        older = [entry for entry in level if int(entry["generation_number"]) <= before]
        level, upto = [encoded(entries, height) for entries in divided(older, height)], before
    config = {name: value for name, value in manifest["config"].items() if name != "manifest_kind"}
    content = {"config": config, "versions": newest, "version_tree_nodes": nodes[::-1]}
    return ManifestFrom(bytes(ts.ocdbt.undump_manifest(content)), bytes(data), len(every) - len(versions))


class _Trimmer:
    """Leaves out the generations before a horizon, and collects the nodes that change."""

    def __init__(self, config: Json, horizon: int, read: ReadNode, file: str) -> None:
        self.data, self.removed = bytearray(), 0
        self._config, self._horizon, self._read, self._file = config, horizon, read, file

    def versions(self, entries: list[Json]) -> list[Json]:
        kept = [entry for entry in entries if int(entry["generation_number"]) >= self._horizon]
        self.removed += len(entries) - len(kept)
        return kept

    def reference(self, entry: Json) -> Json | None:
        """Return the reference to a node without what is before the horizon; None if nothing of it is left."""
        before = self.removed
        if int(entry["generation_number"]) < self._horizon:
            self.removed += int(entry["num_generations"])
            return None
        node = self._read(entry["location"])
        if node["height"] == 0:
            entries = self.versions(node["entries"])
        else:
            # Only the first node that is kept can reach below the horizon, so no other one is read.
            first = next(i for i, e in enumerate(node["entries"]) if int(e["generation_number"]) >= self._horizon)
            gone, rest = node["entries"][:first], node["entries"][first:]
            self.removed += sum(int(e["num_generations"]) for e in gone)
            child = self.reference(rest[0])
            assert child is not None, "its last generation is not before the horizon"
            entries = [child, *rest[1:]]
        gone_now = self.removed - before
        if not gone_now:
            return entry
        content = ts.ocdbt.undump_version_tree_node(self._config, {**node, "entries": entries})
        place = f"versionnode::{quote(self._file)}:{len(self.data)}:{len(content)}"
        self.data += content
        return {
            **entry,
            "location": place,
            "num_generations": int(entry["num_generations"]) - gone_now,
            "commit_time": entries[0]["commit_time"],
        }
