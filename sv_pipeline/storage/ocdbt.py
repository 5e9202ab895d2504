"""OCDBT specs (base, part, fork) and the handles opened from them. No other module builds such specs.

Layout below a watershed folder::

    ocdbt/base/manifest.ocdbt, d/...                     the base
    ocdbt/base/parts/<task>/<attempt>/...                private stores of populate tasks; the merged ones are part of
                                                         the base
    ocdbt/<graph id>/manifest.ocdbt, <graph id>_d/...    a fork: its own manifest and data over those of the base

The volume (neuroglancer precomputed) is at the root of each of these key spaces: ``info``, ``<scale key>/...``. Our
own keys are beside it, below ``_sv_pipeline/``, which is not a scale of any volume.

A fork is a ``kvstack`` of three layers: the base, the fork's manifest in place of the base's, and everything under
``<graph id>_d/`` in the fork's own folder. All three data prefixes are ``<graph id>_d/``, so that nothing is ever
written into the base. This is the layout of PyChunkedGraph, which builds the same spec from the graph's meta.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import tensorstore as ts

from sv_pipeline.config import OcdbtConfig, validate_graph_id
from sv_pipeline.errors import ConfigError
from sv_pipeline.storage.context import process_context, remembers_another, reset_context
from sv_pipeline.storage.file_guard import commit_guard, heal
from sv_pipeline.storage.kv import as_url, join_url
from sv_pipeline.storage.manifest import SINGLE_MANIFEST

__all__ = [
    "OWN_KEYS",
    "OWN_PREFIX",
    "SINGLE_MANIFEST",
    "SOURCE_PREFIX",
    "OcdbtFormat",
    "OcdbtStore",
    "Version",
    "array_spec",
    "base_folder",
    "base_spec",
    "check_version",
    "data_prefix",
    "folder_of",
    "fork_folder",
    "fork_spec",
    "ocdbt_folder",
    "part_folder",
    "part_spec",
    "require_one_store",
]

OWN_KEYS = "_sv_pipeline/"
"""Prefix of our own keys inside an OCDBT key space; the volume is at its root."""
SOURCE_PREFIX = "watershed/"
"""Prefix of the watershed's own files in the underlying key space of a base that refers to them."""
OWN_PREFIX = "data_prefix"
"""Name of the file in a fork's folder with the prefix of its data files, if it is not that of the graph id."""

Version = int | str
"""A generation number, or a time ``YYYY-MM-DDTHH:MM:SS[.frac]Z``."""
Json = dict[str, Any]
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(frozen=True)
class OcdbtFormat:
    """The format of an OCDBT database, which is fixed when it is created."""

    max_inline_value_bytes: int
    max_decoded_node_bytes: int
    version_tree_arity_log2: int
    compression_level: int | None
    manifest_kind: Literal["single", "numbered"]

    @classmethod
    def of(cls, config: OcdbtConfig) -> OcdbtFormat:
        """Return the format that a configuration describes."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})

    def to_json(self) -> Json:
        """Return the format as plain values, for our own files."""
        return asdict(self)

    def config_json(self) -> Json:
        """Return the ``config`` member of a TensorStore spec."""
        level = self.compression_level
        return {
            "max_inline_value_bytes": self.max_inline_value_bytes,
            "max_decoded_node_bytes": self.max_decoded_node_bytes,
            "version_tree_arity_log2": self.version_tree_arity_log2,
            "compression": None if level is None else {"id": "zstd", "level": level},
            "manifest_kind": self.manifest_kind,
        }


def ocdbt_folder(watershed_url: str | Path) -> str:
    """Return the folder of all OCDBT databases of a watershed."""
    return join_url(as_url(watershed_url), "ocdbt")


def base_folder(watershed_url: str | Path) -> str:
    """Return the folder of the base."""
    return join_url(ocdbt_folder(watershed_url), "base")


def part_folder(watershed_url: str | Path, task: str, attempt: str) -> str:
    """Return the folder of the private store of one attempt at a populate task."""
    return join_url(base_folder(watershed_url), "parts", task, attempt)


def fork_folder(watershed_url: str | Path, graph_id: str) -> str:
    """Return the folder of a fork."""
    return join_url(ocdbt_folder(watershed_url), validate_graph_id(graph_id))


def data_prefix(graph_id: str) -> str:
    """Return the prefix of a fork's data files, both in its folder and in the kvstack through which it is read."""
    return validate_graph_id(graph_id) + "_d/"


def base_spec(
    watershed_url: str | Path,
    *,
    form: OcdbtFormat | None = None,
    coordinator: str | None = None,
    refers: bool = False,
    version: Version | None = None,
) -> Json:
    """Return the key-value spec of the base.

    Parameters
    ----------
    form
        Format of the database; only the process that creates the base gives it.
    coordinator
        Address of the coordinator through which the base is written, as host:port. Default: commits are made directly.
    refers
        Whether the base refers to files of the watershed.
    version
        Generation or time at which the base is read; such a spec is read-only. Default: the latest generation.
    """
    spec = _plain_spec(_base_of_base(watershed_url, refers), form, coordinator)
    return spec if version is None else {**spec, "version": version}


def part_spec(
    watershed_url: str | Path, task: str, attempt: str, *, form: OcdbtFormat | None = None, refers: bool = False
) -> Json:
    """Return the key-value spec of a part; if the base refers to the watershed, the part shares its key space."""
    folder = part_folder(watershed_url, task, attempt)
    if not refers:
        return _plain_spec(folder, form, None)
    if form is not None:
        form = replace(form, manifest_kind="single")
    own = folder.removeprefix(base_folder(watershed_url)) + "d/"
    return {**_plain_spec(_base_of_base(watershed_url, refers), form, None), "manifest": folder, **_data_in(own)}


def _base_of_base(watershed_url: str | Path, refers: bool) -> str | Json:
    folder = base_folder(watershed_url)
    return {"driver": "kvstack", "layers": [{"base": folder}, _source_layer(watershed_url)]} if refers else folder


def _source_layer(watershed_url: str | Path) -> Json:
    return {"prefix": SOURCE_PREFIX, "base": as_url(watershed_url)}


def _data_in(prefix: str) -> Json:
    # One left out would default to "d/": the base's own data.
    names = ("value_data_prefix", "btree_node_data_prefix", "version_tree_node_data_prefix")
    return dict.fromkeys(names, prefix)


def _plain_spec(folder: str | Json, form: OcdbtFormat | None, coordinator: str | None) -> Json:
    spec: Json = {"driver": "ocdbt", "base": folder}
    if form is not None:
        spec["config"] = form.config_json()
    if coordinator is not None:
        spec["coordinator"] = {"address": coordinator}
    return spec


def fork_spec(
    watershed_url: str | Path,
    graph_id: str,
    *,
    manifest_kind: Literal["single", "numbered"] = "single",
    version: Version | None = None,
    refers: bool = False,
    own: str | None = None,
) -> Json:
    """Return the key-value spec of a fork; any TensorStore can read it. A ``config`` in it could only mismatch.

    ``own`` is the prefix of its data files if it is not that of the graph id, as in a fork that was restored under
    another id.
    """
    fork = fork_folder(watershed_url, graph_id)
    if manifest_kind == "single":
        manifest: Json = {"exact": SINGLE_MANIFEST, "base": fork + SINGLE_MANIFEST}
    else:
        # The base is not "<fork>/manifest.", because the file driver would list a folder of that name.
        manifest = {"base": fork, "prefix": "manifest.", "strip_prefix": 0}
    own = data_prefix(graph_id) if own is None else own
    spec: Json = {
        "driver": "ocdbt",
        "base": {
            "driver": "kvstack",
            "layers": [
                {"base": base_folder(watershed_url)},
                *([_source_layer(watershed_url)] if refers else []),
                manifest,
                {"prefix": own, "base": fork + own},
            ],
        },
        **_data_in(own),
    }
    if version is not None:
        spec["version"] = version
    return spec


def folder_of(spec: Json) -> str:
    """Return the folder of the manifest of a database, given the database's key-value spec."""
    if "manifest" in spec:
        return str(spec["manifest"])
    base = spec["base"]
    if isinstance(base, str):
        return base
    first, last = base["layers"][0], base["layers"][-1]
    return str(first["base"] if last["prefix"] == SOURCE_PREFIX else last["base"].removesuffix(last["prefix"]))


def check_version(version: Version | None) -> None:
    """Raise ConfigError unless a version is None, a generation number, or a time in the form that TensorStore reads."""
    if isinstance(version, bool) or (isinstance(version, int) and version < 1):
        raise ConfigError(f"generation {version!r} cannot be read.", remedy="Generations are numbered from 1.")
    if isinstance(version, str) and not _TIME.fullmatch(version):
        raise ConfigError(f"{version!r} is not a time.", remedy="Write it as 2026-01-31T12:00:00Z, with the Z.")


def array_spec(kvstore: Json, mip: int) -> Json:
    """Return the spec of one mip of the volume inside a key space."""
    return {"driver": "neuroglancer_precomputed", "kvstore": copy.deepcopy(kvstore), "scale_index": mip}


class OcdbtStore:
    """All handles of one OCDBT key space: its keys and the mips of its volume.

    All handles share one spec and one context, so that everything that is written through them in one atomic
    transaction becomes one generation.

    Parameters
    ----------
    spec
        Key-value spec, from this module.
    context
        Context of a store that was opened before. Default: the context of this process, which is reset if it remembers
        another database at this place.
    """

    def __init__(self, spec: Json, *, context: ts.Context | None = None) -> None:
        self._spec = copy.deepcopy(spec)
        self._arrays: dict[int, ts.TensorStore] = {}
        heal(self.folder)
        # The context is kept, because handles of two contexts cannot take part in one commit.
        self.context = context or process_context()
        self.kv: ts.KvStore = ts.KvStore.open(self.spec, context=self.context).result()
        if context is None and remembers_another(self.kv):
            reset_context()
            self.context = process_context()
            self.kv = ts.KvStore.open(self.spec, context=self.context).result()

    @property
    def spec(self) -> Json:
        """The key-value spec (a copy)."""
        return copy.deepcopy(self._spec)

    @property
    def folder(self) -> str:
        """Folder of the manifest and of new data files."""
        return folder_of(self._spec)

    @property
    def base(self) -> ts.KvStore:
        """The underlying key space: manifest and data files."""
        base = self.kv.base
        assert base is not None, "an OCDBT store has a base"
        return base

    def array(self, mip: int) -> ts.TensorStore:
        """Open one mip, axes (x, y, z), in absolute coordinates of that mip."""
        if mip not in self._arrays:
            spec = array_spec(self._spec, mip)
            self._arrays[mip] = ts.open(spec, context=self.context, open=True).result()[..., 0]
        return self._arrays[mip]

    @contextmanager
    def transaction(self, *, repeatable_read: bool = False) -> Iterator[ts.Transaction]:
        """Open an atomic transaction; it is committed at the end of the block, or aborted by an error in it.

        On disk, commits to one store are serialised, and each cleans up after killed writers first. Therefore nothing
        may be committed in another way.
        """
        transaction = ts.Transaction(atomic=True, repeatable_read=repeatable_read)
        try:
            yield transaction
        except BaseException:
            transaction.abort()
            raise
        with commit_guard(self.folder):
            transaction.commit_sync()


def require_one_store(*handles: ts.KvStore | ts.TensorStore) -> None:
    """Refuse handles that TensorStore would silently commit as several generations.

    Raises
    ------
    ConfigError
        If the handles were opened from different specs.
    """
    seen: list[ts.KvStore.Spec | None] = []
    for handle in handles:
        store = handle.kvstore if isinstance(handle, ts.TensorStore) else handle
        spec = None if store is None else store.spec()  # not its JSON, of which TensorStore never frees a part
        if spec is not None:
            spec.path = ""
        seen.append(spec)
    if any(spec != seen[0] for spec in seen[1:]):
        raise ConfigError(
            "handles of different stores cannot take part in one commit.",
            remedy="Open all of them from one OcdbtStore.",
        )
