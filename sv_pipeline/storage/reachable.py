"""What a generation of an OCDBT database refers to: which bytes of which files. Reads only; deletes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import tensorstore as ts

from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.ocdbt import SOURCE_PREFIX

__all__ = ["Extent", "Reachable", "reachable"]


@dataclass(frozen=True)
class Extent:
    """A range of bytes of a file."""

    file: str
    """Path relative to the base of the database."""
    start: int
    length: int

    @classmethod
    def parse(cls, location: str) -> tuple[str, Extent]:
        """Parse a location in TensorStore's dump into its kind (btreenode, value, versionnode) and its range."""
        head, start, length = location.rsplit(":", 2)
        kind, base, relative = head.split(":", 2)
        return kind, cls(unquote(base + relative), int(start), int(length))


@dataclass
class Reachable:
    """The nodes and values that a database refers to."""

    nodes: set[Extent] = field(default_factory=set)
    values: set[Extent] = field(default_factory=set)

    @property
    def files(self) -> set[str]:
        """Files of the database that hold any of it: what may not be deleted, and what a copy must have."""
        return {file for file in self._every_file if not file.startswith(SOURCE_PREFIX)}

    @property
    def files_of_watershed(self) -> set[str]:
        """Files of the watershed that are only referred to, relative to its folder: they must stay where they are."""
        found = self._every_file
        return {file.removeprefix(SOURCE_PREFIX) for file in found if file.startswith(SOURCE_PREFIX)}

    @property
    def _every_file(self) -> set[str]:
        return {extent.file for extent in self.nodes | self.values}

    @property
    def n_bytes(self) -> int:
        """Total number of bytes."""
        return sum(extent.length for extent in self.nodes | self.values)


def reachable(base: ts.KvStore, *, all_versions: bool = False) -> Reachable:
    """Walk the B+trees of a database and collect what they refer to.

    Parameters
    ----------
    base
        Underlying key space of the database, e.g. ``OcdbtStore.base``.
    all_versions
        Walk every generation of the history, not only the latest.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 26}})
    manifest = read_manifest(base)
    found = Reachable()
    versions = list(manifest["versions"])
    if all_versions:
        pending = [node["location"] for node in manifest.get("version_tree_nodes", [])]
        while pending:
            entries = [entry for node in _dump(base, pending, found.nodes, context) for entry in node["entries"]]
            pending = [entry["location"] for entry in entries if "location" in entry]
            versions += [entry for entry in entries if "root" in entry]
    else:
        versions = versions[-1:]
    roots = [version["root"]["location"] for version in versions if "location" in version["root"]]
    level = list(dict.fromkeys(roots))
    while level:
        entries = [entry for node in _dump(base, level, found.nodes, context) for entry in node["entries"]]
        found.values |= {Extent.parse(entry["indirect_value"])[1] for entry in entries if "indirect_value" in entry}
        children = dict.fromkeys(entry["location"] for entry in entries if "location" in entry)
        level = [location for location in children if Extent.parse(location)[1] not in found.nodes]
    return found


def _dump(base: ts.KvStore, locations: list[str], seen: set[Extent], context: ts.Context) -> list[dict[str, Any]]:
    """Read nodes concurrently, and add them to ``seen``."""
    seen |= {Extent.parse(location)[1] for location in locations}
    futures = [ts.ocdbt.dump(base, location, context=context) for location in locations]
    return [future.result() for future in futures]
