"""Says that a graph is being built, so that nobody removes it meanwhile. Works among processes that share a local home.

A process that builds holds a shared lock of the operating system on a file beside the graph's entry in the registry,
and one that removes the graph an exclusive one. A lock ends with its process, however that ends, so nothing has to be
cleaned up. A home in a bucket has no locks: there, nobody notices.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sv_pipeline.config import validate_graph_id
from sv_pipeline.errors import ConflictError
from sv_pipeline.places import LOCK_SUFFIX
from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import local_path
from sv_pipeline.waiting import locked_by

__all__ = ["building", "removing", "require_unbuilt"]

PATIENCE = 1.0
"""Seconds for which a builder waits for others that only take a look, or remove the file."""
GLANCE = 0.2
"""Seconds for which those who remove a graph, or take a look, wait for others that only take a look."""


@contextmanager
def building(home: str, graph_id: str) -> Iterator[None]:
    """Say during the block that this process builds a graph; any number of processes may.

    Raises
    ------
    ConflictError
        If the graph is being removed, or was while this process waited.
    """
    path = _path(home, graph_id)
    deadline, waited = time.monotonic() + PATIENCE, False
    while True:
        try:
            lock = _locked(path, fcntl.LOCK_SH)
            break
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise _refusal_to_build(f"graph {graph_id!r} is being retired, so it cannot be built.") from error
            waited = True
            time.sleep(0.02)
    try:
        if waited and path is not None and not path.with_name(f"{graph_id}.json").exists():
            # What would be built now, no command would find.
            raise _refusal_to_build(f"graph {graph_id!r} has just been retired, so it cannot be built.")
        yield
    finally:
        if lock is not None and path is not None:
            _leave(lock, path)


@contextmanager
def removing(home: str, graph_id: str) -> Iterator[None]:
    """Keep others from building a graph during the block; ConflictError if somebody builds it."""
    path = _path(home, graph_id)
    try:
        lock = _locked_soon(path)
    except BlockingIOError as error:
        raise _refusal(path, graph_id) from error
    try:
        yield
    finally:
        if lock is not None and path is not None:
            _leave(lock, path)


def require_unbuilt(home: str, graph_id: str) -> None:
    """Raise ConflictError if somebody builds a graph now. Changes nothing."""
    path = _path(home, graph_id)
    try:
        lock = _locked_soon(path, create=False)
    except BlockingIOError as error:
        raise _refusal(path, graph_id) from error
    if lock is not None:
        os.close(lock)


def _refusal_to_build(message: str) -> ConflictError:
    return ConflictError(message, remedy="Use another graph_id, or ingest it again when the retirement has ended.")


def _refusal(path: Path | None, graph_id: str) -> ConflictError:
    try:
        lock = _locked(path, fcntl.LOCK_SH, create=False)
    except BlockingIOError:
        return ConflictError(
            f"graph {graph_id!r} is being retired by another process.", remedy="Wait until that has ended."
        )
    if lock is not None:
        os.close(lock)
    seen = None if path is None else locked_by(path, "FLOCK")
    by = "" if seen is None else f" by process {seen.pid} of this machine"
    return ConflictError(
        f"graph {graph_id!r} is being built{by}.", remedy="Wait until its ingest has ended, or stop it first."
    )


def _path(home: str, graph_id: str) -> Path | None:
    folder = local_path(kv.as_url(home))
    return None if folder is None else folder / "graphs" / f"{validate_graph_id(graph_id)}{LOCK_SUFFIX}"


def _locked_soon(path: Path | None, *, create: bool = True) -> int | None:
    """Lock a file for this process alone, see :func:`_locked`; wait for others that only take a look."""
    deadline = time.monotonic() + GLANCE
    while True:
        try:
            return _locked(path, fcntl.LOCK_EX, create=create)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _locked(path: Path | None, how: int, *, create: bool = True) -> int | None:
    """Lock a file, and return its descriptor; None where there is no file, or no lock can be had of the system.

    Raises
    ------
    BlockingIOError
        If another process has locked it.
    """
    while path is not None:
        try:
            descriptor = _opened(path, os.O_CLOEXEC | (os.O_CREAT if create else 0))
        except OSError:
            return None  # no home yet, or a read-only one
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # the last builder has just removed it
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            return None  # a file system without locks
        os.close(descriptor)
    return None


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)  # NFS lends an exclusive lock to those only who may write
    except OSError:
        return os.open(path, os.O_RDONLY | flags, 0o666)  # the file is another user's


def _leave(lock: int, path: Path) -> None:
    """Give up a lock; remove the file if no other process has locked it."""
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            path.unlink()
    os.close(lock)
