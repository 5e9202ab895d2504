"""The generations of a base or fork. Reads only."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import tensorstore as ts

from sv_pipeline.errors import DamagedError, NotFoundError
from sv_pipeline.storage import kv
from sv_pipeline.storage.manifest import SINGLE_MANIFEST, decode_manifest
from sv_pipeline.storage.retry import retry_transport

__all__ = ["CommittedVersion", "current_version", "read_manifest"]


@dataclass(frozen=True)
class CommittedVersion:
    """One generation of an OCDBT database."""

    generation: int
    commit_time: datetime
    """Time by the writer's clock, not before that of the preceding generation. Pin by generation, not by time."""
    n_keys: int
    """Number of keys in the generation."""


def read_manifest(folder_or_kv: str | Path | ts.KvStore) -> dict[str, Any]:
    """Return TensorStore's dump of a manifest: ``config``, ``versions`` and ``version_tree_nodes``.

    Raises
    ------
    NotFoundError
        If there is no database.
    """
    store = _opened(folder_or_kv)
    with suppress(ValueError):  # TensorStore names what is missing or damaged
        data = _stored(store)
        decoded = None if data is None else decode_manifest(data)
        if decoded is not None:
            return decoded
    return _dumped(store, folder_or_kv)


def _opened(folder_or_kv: str | Path | ts.KvStore) -> ts.KvStore:
    return folder_or_kv if isinstance(folder_or_kv, ts.KvStore) else kv.open_kv(folder_or_kv)


def _stored(store: ts.KvStore) -> bytes | None:
    found = retry_transport(lambda: store.read(SINGLE_MANIFEST).result(), what="reading a manifest")
    return bytes(found.value) if found.state == "value" else None


def _dumped(store: ts.KvStore, named: object) -> dict[str, Any]:
    """Let TensorStore decode the manifest of a database, which messages call ``named``."""
    # The context has no cache, because the current manifest is needed.
    try:
        manifest: dict[str, Any] = retry_transport(
            lambda: ts.ocdbt.dump(store, context=ts.Context()).result(), what="reading a manifest"
        )
    except DamagedError as error:
        if error.code == "NOT_FOUND" and error.place is None:
            raise NotFoundError(f"there is no OCDBT database at {named}.") from error
        raise
    return manifest


def current_version(folder_or_kv: str | Path | ts.KvStore) -> CommittedVersion:
    """Return the latest generation of the database in a folder (or in a kvstack)."""
    store = _opened(folder_or_kv)
    latest: CommittedVersion | None = None
    with suppress(ValueError):
        data = _stored(store)
        latest = None if data is None else _latest_in(data)
    return latest or _committed(_dumped(store, folder_or_kv)["versions"][-1])


@lru_cache(8)
def _latest_in(manifest: bytes) -> CommittedVersion | None:
    """Return the latest generation in a manifest; an edit of voxels reads the same one several times."""
    decoded = decode_manifest(manifest)
    return None if decoded is None else _committed(decoded["versions"][-1])


def _committed(latest: dict[str, Any]) -> CommittedVersion:
    return CommittedVersion(
        generation=int(latest["generation_number"]),
        commit_time=datetime.fromtimestamp(latest["commit_time"] / 1e9, UTC),
        n_keys=int(latest["root"]["statistics"]["num_keys"]),
    )
