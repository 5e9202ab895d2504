"""Checks whether the commit of an edit's voxels can succeed: access, free space, and the operation's own keys."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sv_pipeline.errors import ConfigError, ConflictError, SvPipelineError, UnavailableError
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.records import fence_in, fenced_off, record_in
from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import local_path
from sv_pipeline.storage.ocdbt import OcdbtStore

__all__ = ["MIN_FREE_BYTES", "require_committable", "require_room"]

MIN_FREE_BYTES = 64 << 20
"""Free space that an edit requires, in bytes: many times what it takes, so that its recovery has space as well."""


def require_committable(fork: Fork, operation_id: int, owner: str) -> OcdbtStore:
    """Raise the error that would make a commit fail, before anything depends on it.

    This writes one empty file to the fork's folder, and removes it.

    Returns
    -------
    OcdbtStore
        The keys and voxels of the fork, for the commit.

    Raises
    ------
    NotFoundError
        If there is no fork.
    ConfigError
        If the fork's folder cannot be written to.
    UnavailableError
        If there is too little free space, or storage does not answer.
    ConflictError
        If the fork has voxels of an operation with this number already, or another owner has taken it over.
    """
    store, graph_id = fork.store(), fork.graph_id
    folder = store.folder
    if (path := local_path(folder)) is not None:
        for place in (path, path / store.spec.get("value_data_prefix", "d/")):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"the folder {place} of graph {graph_id!r} cannot be written to.", remedy=_REMEDY, repeat=_REPEAT
                )
        require_room(path, f"the fork of graph {graph_id!r}")
    if (record := record_in(store.kv, operation_id)) is not None:
        raise ConflictError(
            f"the fork of graph {graph_id!r} has voxels of an operation {operation_id} already, which "
            f"{record.owner!r} has committed.",
            remedy=f"Table and fork are of different days; run 'sv-pipeline verify {graph_id}'.",
        )
    holder = fence_in(store.kv, operation_id)
    if holder not in (None, owner):
        raise fenced_off(operation_id, owner, holder)
    key = f"probe-{operation_id}-{owner}"
    try:
        kv.write_bytes(folder, key, b"")
        kv.delete_key(folder, key)
    except SvPipelineError as error:
        error.advise(f"{error.repair or ''} {_REMEDY}".strip(), repeat=_REPEAT)
        raise
    return store


def require_room(place: Path, what: str) -> None:
    """Raise UnavailableError if the disk of a place has less than `MIN_FREE_BYTES` of free space."""
    free = shutil.disk_usage(place).free
    if free < MIN_FREE_BYTES:
        raise UnavailableError(
            f"only {free / 1e6:.1f} MB are left on the disk of {what} ({place}); an edit needs "
            f"{MIN_FREE_BYTES / 1e6:.0f} MB, so that it can be completed.",
            remedy="Free some space.",
            repeat=_REPEAT,
        )


_REMEDY = "Nothing was written. Let this process write to the fork."
_REPEAT = "Then ask for the edit again."
