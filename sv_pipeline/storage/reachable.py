"""What a generation of an OCDBT database refers to: which bytes of which files. Reads only; deletes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import tensorstore as ts

from sv_pipeline.storage.generations import read_manifest
from sv_pipeline.storage.ocdbt import SOURCE_PREFIX
from sv_pipeline.storage.retry import retry_transport

__all__ = ["Extent", "Reachable", "Walk", "reachable"]

NODES_AT_ONCE = 64


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
    walk = Walk(base)
    manifest = read_manifest(base)
    versions = list(manifest["versions"])
    if all_versions:
        versions += walk.add_version_tree(manifest)
    else:
        versions = versions[-1:]
    walk.add_roots(version["root"].get("location") for version in versions)
    return walk.found


class Walk:
    """Walks the trees of one database, each node once, and collects what they refer to.

    Parameters
    ----------
    base
        Underlying key space of the database.
    within
        Prefixes of files. Nodes and values in other files are neither read nor collected. A fork never refers to its
        own files from a node of its base, so its own prefixes find all of its own files.
    """

    def __init__(self, base: ts.KvStore, within: tuple[str, ...] | None = None) -> None:
        self.found = Reachable()
        self._base, self._within = base, within
        self._parts = [quote(prefix) for prefix in within or ()]
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 26}})

    def add_version_tree(self, manifest: dict[str, Any]) -> list[dict[str, Any]]:
        """Walk the nodes of the version tree; return the generations in its leaves, as TensorStore dumps them."""
        versions: list[dict[str, Any]] = []
        pending = self._new(node["location"] for node in manifest.get("version_tree_nodes", []))
        while pending:
            entries = [entry for node in self._nodes(pending) for entry in node["entries"]]
            pending = self._new(entry["location"] for entry in entries if "location" in entry)
            versions += [entry for entry in entries if "root" in entry]
        return versions

    def add_roots(self, roots: Iterable[str | None]) -> None:
        """Walk B+trees, given the locations of their roots; None stands for an empty tree."""
        level = self._new(root for root in roots if root is not None)
        while level:
            below: dict[str, None] = {}
            for node in self._nodes(level):
                values = [entry["indirect_value"] for entry in node["entries"] if "indirect_value" in entry]
                self.found.values |= {*self._wanted(values).values()}
                below |= dict.fromkeys(entry["location"] for entry in node["entries"] if "location" in entry)
            level = self._new(below)

    def _new(self, locations: Iterable[str]) -> list[str]:
        return [at for at, extent in self._wanted(locations).items() if extent not in self.found.nodes]

    def _wanted(self, locations: Iterable[str]) -> dict[str, Extent]:
        """Return the ranges of bytes of locations, without those in other files than the wanted ones."""
        if self._within is None:
            return {location: Extent.parse(location)[1] for location in locations}
        # Most entries of a node are values of the base, so they are sorted out before they are parsed.
        likely = [location for location in locations if any(part in location for part in self._parts)]
        found = {location: Extent.parse(location)[1] for location in likely}
        return {location: extent for location, extent in found.items() if extent.file.startswith(self._within)}

    def _nodes(self, locations: list[str]) -> Iterator[dict[str, Any]]:
        """Read nodes, some at once, and note them."""
        for first in range(0, len(locations), NODES_AT_ONCE):
            some = locations[first : first + NODES_AT_ONCE]
            yield from retry_transport(partial(self._dump, some), what="reading the nodes of a store")
            self.found.nodes |= {Extent.parse(location)[1] for location in some}

    def _dump(self, locations: list[str]) -> list[dict[str, Any]]:
        futures = [ts.ocdbt.dump(self._base, location, context=self._context) for location in locations]
        return [future.result() for future in futures]
