"""The files of a folder with their sizes and times, by the clock of the storage; and the deletion of some of them.

Times come from the server of a bucket or from the file system, never from the clock of this machine. So processes on
several machines agree on the age of a file, however wrong their own clocks are.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sv_pipeline.errors import ConfigError
from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import LOCK_SUFFIX, clear_stale_lock, local_path
from sv_pipeline.storage.object_listing import timed_objects
from sv_pipeline.storage.wall import wall

__all__ = ["TimedFile", "delete_files", "list_files", "require_times", "storage_time"]


class TimedFile(NamedTuple):
    """A file, and when it was last written."""

    name: str
    """Path relative to the folder that was listed."""
    size: int
    """Size in bytes."""
    time: int
    """Nanoseconds since the epoch, by the clock of the storage."""


def require_times(url: str) -> None:
    """Raise ConfigError unless files at this place have times that can be read."""
    if not url.startswith(("file://", "gs://")):
        raise ConfigError(
            f"the age of files at {url} cannot be read: that is possible on disk (file://) and in buckets (gs://).",
            remedy="Use a folder in one of them.",
        )


def storage_time(url: str, prefix: str) -> int:
    """Return the present time of a storage: that of a file that this writes, and removes.

    Parameters
    ----------
    url
        A folder.
    prefix
        Prefix of the name of the file. If the process is killed, the file stays.

    Returns
    -------
    int
        Nanoseconds since the epoch.
    """
    require_times(url)
    while True:
        key = f"{prefix}clock-{secrets.token_hex(8)}"
        kv.write_bytes(url, key, b"")
        try:
            if found := list_files(url, key):  # another process may have deleted it as unused
                return found[0].time
        finally:
            kv.delete_key(url, key)


def list_files(url: str, prefix: str = "") -> list[TimedFile]:
    """Return the files of a folder, and of folders in it, whose paths begin with a prefix, sorted by path.

    The lock files that TensorStore leaves beside files on disk are included.
    """
    require_times(url)
    folder = local_path(url)
    if folder is None:
        return sorted(TimedFile(*found) for found in timed_objects(url, prefix))
    # Only the folder that the prefix names is searched, since the others may be large.
    start = folder / prefix.rpartition("/")[0]
    found: list[TimedFile] = []
    with wall(f"listing {start}"):
        for place, _, names in os.walk(start):
            for name in names:
                path = Path(place, name)
                relative = str(path.relative_to(folder))
                with suppress(FileNotFoundError):  # it was deleted meanwhile
                    if relative.startswith(prefix):
                        status = path.stat()
                        found.append(TimedFile(relative, status.st_size, status.st_mtime_ns))
    return sorted(found)


def delete_files(url: str, names: Iterable[str]) -> None:
    """Delete files of a folder; a file that is missing is no error, and a lock file that a process holds stays."""
    folder = local_path(url)
    if folder is None:
        kv.delete_keys(url, names)
        return
    with wall(f"deleting files of {folder}"):
        for name in names:
            if name.endswith(LOCK_SUFFIX):
                clear_stale_lock(folder / name.removesuffix(LOCK_SUFFIX))
            else:
                (folder / name).unlink(missing_ok=True)
