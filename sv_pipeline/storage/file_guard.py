"""Protects folders on disk against what a killed writer leaves behind. Buckets need no protection.

TensorStore's file driver writes a value to ``<key>.__lock``, on which it holds a lock of the operating system, and then
renames it. A writer that is killed leaves the lock file with a part of its value. The next writer should empty it, but
(as observed with version 0.1.86) only overwrites it. If its own value is shorter, the rest of the old one stays at the
end. A manifest with such an end cannot be read at all: ``DATA_LOSS: Length in header does not match``.

Therefore lock files that no process holds are removed before anything is written, and a manifest that is longer than
its header says is truncated to that length, which is exactly what its writer wrote. Commits to one database on disk
hold a lock of ours from then until they are complete, so no other commit can be killed between clean-up and write.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sv_pipeline.errors import UnavailableError
from sv_pipeline.failpoints import reach
from sv_pipeline.waiting import NOTE_BYTES, Holder, Wait, lock_wait, locked_by

__all__ = ["clear_stale_lock", "clear_stale_locks", "commit_guard", "heal", "local_path", "written"]

LOCK_SUFFIX = ".__lock"
GUARD = "commit" + LOCK_SUFFIX
"""File that is locked during commits; the suffix hides it from TensorStore's listings."""
_MANIFEST_HEADER = struct.Struct("<4sQ")
"""Magic number, and length of the whole file."""
_MANIFEST_MAGIC = bytes.fromhex("0cdb3a2a")
# struct flock: type, whence, start, length (0 means all), process.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

_logger = logging.getLogger(__name__)


def local_path(url: str) -> Path | None:
    """Return the folder of a ``file://`` URL; None for other places."""
    return Path(unquote(url.removeprefix("file://"))) if url.startswith("file://") else None


def clear_stale_lock(path: Path) -> bool:
    """Remove the lock file of ``path`` if it exists and no living writer holds it; return whether it was removed."""
    lock = path.with_name(path.name + LOCK_SUFFIX)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # there is none, or the folder is read-only for this user
    try:
        if not _try_lock(descriptor) or not _same_file(descriptor, lock):
            return False
        # The holder of the lock may remove the file: writers that wait for it notice that, and create a new one.
        lock.unlink()
    finally:
        os.close(descriptor)
    _logger.info("removed %s, which a killed writer had left", lock)
    return True


def clear_stale_locks(url: str, keys: Iterable[str]) -> None:
    """Apply `clear_stale_lock` to keys of a folder; does nothing if the folder is not on disk."""
    folder = local_path(url)
    if folder is not None:
        for key in keys:
            clear_stale_lock(folder / key)


def written(write: Any, url: str, key: str) -> Any:
    """Wait for a write that was begun (a future of TensorStore), on disk no longer than `lock_wait`; return its result.

    Raises
    ------
    UnavailableError
        If a stopped process holds the lock file of that key.
    """
    folder = local_path(url)
    if folder is None:
        return write.result()
    try:
        return write.result(timeout=lock_wait())
    except TimeoutError as error:
        lock = folder / (key + LOCK_SUFFIX)
        raise UnavailableError(
            f"{folder / key} could not be written for {lock_wait():.0f} s: another process has locked {lock}.",
            remedy=f"'fuser -v {lock}' names it. If it is stopped, let it go on (kill -CONT) or end it (kill -9). "
            "No file has to be removed.",
            repeat="Then run this again.",
        ) from error


def heal(url: str) -> None:
    """Make an OCDBT database on disk readable and writable after a writer was killed; does nothing for other places."""
    folder = local_path(url)
    if folder is None or not folder.is_dir():
        return
    for lock in folder.glob("manifest.*" + LOCK_SUFFIX):
        clear_stale_lock(lock.with_name(lock.name.removesuffix(LOCK_SUFFIX)))
    manifests = sorted(path for path in folder.glob("manifest.*") if not path.name.endswith(LOCK_SUFFIX))
    # Of numbered manifests, sorted by name, only the last is read; "manifest.ocdbt" sorts after all of them.
    for manifest in manifests[-2:]:
        _cut_to_length(manifest)


@contextmanager
def commit_guard(url: str) -> Iterator[None]:
    """Heal a database on disk, and keep other writers of this package from committing to it during the block.

    Raises
    ------
    UnavailableError
        If another process holds the guard for too long; the message names the process and what it does.
    """
    folder = local_path(url)
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / GUARD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock_in_time(descriptor, folder)
        reach("commit guard")
        heal(url)
        yield
    finally:
        os.close(descriptor)


def _lock_in_time(descriptor: int, folder: Path) -> None:
    """Take the guard, and leave a note in it."""
    wait = Wait(f"the commit guard of {folder}", lambda: _holder_of(folder / GUARD))
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the owner dies
            break
        except BlockingIOError:
            wait.pause()
    with suppress(OSError):  # the disk may be full
        os.pwrite(descriptor, Holder.this_process().encode().ljust(NOTE_BYTES), 0)


def _holder_of(guard: Path) -> Holder | None:
    noted, seen = Holder.decode(guard.read_bytes()), locked_by(guard, "FLOCK")
    # A process that was stopped between the two steps has the guard, while the note is of the holder before it.
    elsewhere = noted is not None and noted.host != socket.gethostname()
    return noted if seen is None or elsewhere or (noted is not None and noted.pid == seen.pid) else seen


def _try_lock(descriptor: int) -> bool:
    """Take the lock that TensorStore uses: a lock of the open file on Linux, flock elsewhere."""
    try:
        if hasattr(fcntl, "F_OFD_SETLK"):
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _cut_to_length(manifest: Path) -> None:
    if not _surplus(manifest):
        return
    # This follows the protocol of a writer: nobody can replace the manifest while its lock is held.
    lock = manifest.with_name(manifest.name + LOCK_SUFFIX)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        _logger.warning("%s ends with bytes of a killed writer and cannot be repaired: %s", manifest, error)
        return
    try:
        if not _try_lock(descriptor) or not _same_file(descriptor, lock):
            return  # a living writer is at work, and will leave a valid manifest
        if surplus := _surplus(manifest):
            _logger.warning("%s ends with %d bytes of a killed writer, which are removed", manifest, surplus)
            content = manifest.read_bytes()[:-surplus]
            # The file is not changed in place, because readers and writers identify it by its inode.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            os.fsync(descriptor)
            lock.rename(manifest)
        else:
            lock.unlink()
    finally:
        os.close(descriptor)


def _surplus(manifest: Path) -> int:
    """Return by how many bytes a manifest is longer than its header says."""
    try:
        with manifest.open("rb") as file:
            header = file.read(_MANIFEST_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0
    if len(header) < _MANIFEST_HEADER.size:
        return 0
    magic, length = _MANIFEST_HEADER.unpack(header)
    return max(0, size - length) if magic == _MANIFEST_MAGIC and length > _MANIFEST_HEADER.size else 0
