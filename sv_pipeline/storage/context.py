"""The one ``ts.Context`` of a process: cache, retries, concurrency. Opens nothing."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import tensorstore as ts

__all__ = [
    "CONTEXT_OPTIONS",
    "give_back_memory",
    "is_of_another_database",
    "process_context",
    "remembers_another",
    "reset_context",
    "uncached_context",
]

_RETRIES = {"max_retries": 2, "initial_delay": "200ms", "max_delay": "2s"}

CONTEXT_OPTIONS: dict[str, Any] = {
    # Decoded B+tree nodes and chunks. Without a pool, every read of a chunk fetches its manifest and nodes again. Each
    # commit leaves nodes here that are not needed any more, so a process that edits for a long time fills the pool.
    "cache_pool": {"total_bytes_limit": 64 << 20},
    # By default TensorStore retries 32 times with up to 32 s between. Our own retries around it are logged.
    **{f"{driver}_request_retries": _RETRIES for driver in ("gcs", "http", "s3")},
}

UNCACHED_BYTES = 8 << 20

_MISMATCH = "Configuration mismatch"

# Without limits, a server that accepts a request and never answers would block for ever. libcurl reads them on first
# use.
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "8")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "8")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")

_contexts: dict[int, ts.Context] = {}


def process_context() -> ts.Context:
    """Return the context that all handles of this process share.

    Handles of different contexts cannot take part in one commit: TensorStore would silently split it.
    """
    # Contexts are kept per process, because their threads and caches do not survive a fork of the process.
    pid = os.getpid()
    if pid not in _contexts:
        _contexts.clear()
        _contexts[pid] = ts.Context(CONTEXT_OPTIONS)
    return _contexts[pid]


def uncached_context() -> ts.Context:
    """Return a separate context for large reads that are made once; it caches nodes of the tree, hardly any voxels."""
    return ts.Context({**CONTEXT_OPTIONS, "cache_pool": {"total_bytes_limit": UNCACHED_BYTES}})


def give_back_memory() -> None:
    """Return freed memory to the operating system, where the C library can: large commits free theirs in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_context() -> None:
    """Discard the context, for handles that are opened from now on.

    Its cache includes the configuration of each OCDBT database. If a database was removed, a new one in its place would
    seem to have the configuration of the old one.
    """
    _contexts.clear()


def is_of_another_database(error: BaseException) -> bool:
    """Whether TensorStore reports that a database has another configuration (or number) than the cached one.

    This happens after a base was removed and created again, by this or another process.
    """
    cause = error.__cause__
    return _MISMATCH in str(error) or (cause is not None and is_of_another_database(cause))


def remembers_another(kv: ts.KvStore) -> bool:
    """Whether the database at the place of a handle is another one than the handle was opened for; one small read."""
    try:
        kv.read("", byte_range=slice(0, 0)).result()
    except ValueError as error:
        return is_of_another_database(error)  # other errors are left to the functions that read data
    return False
