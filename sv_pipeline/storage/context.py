"""Owns the one ``ts.Context`` of a process: cache, retries, concurrency. Opens nothing."""

from __future__ import annotations

import os
from typing import Any

import tensorstore as ts

__all__ = [
    "CONTEXT_OPTIONS",
    "is_of_another_database",
    "process_context",
    "remembers_another",
    "reset_context",
    "uncached_context",
]

_RETRIES = {"max_retries": 2, "initial_delay": "200ms", "max_delay": "2s"}

CONTEXT_OPTIONS: dict[str, Any] = {
    # Decoded B+tree nodes and chunks: without a pool every chunk read fetches its manifest and nodes again.
    "cache_pool": {"total_bytes_limit": 128 << 20},
    # TensorStore would try 32 times with up to 32 s between; our own retries, which are visible, are around it.
    **{f"{driver}_request_retries": _RETRIES for driver in ("gcs", "http", "s3")},
}

UNCACHED_BYTES = 8 << 20

_MISMATCH = "Configuration mismatch"

# A server that accepts and then never answers would be waited for without an end. Read by libcurl at its first use.
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "8")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "8")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")

_contexts: dict[int, ts.Context] = {}


def process_context() -> ts.Context:
    """The context that every handle of this process shares.

    Handles of different contexts cannot take part in one commit: TensorStore would split it without a word.
    """
    # Keyed by process: threads and caches of a context do not survive a fork of the process.
    pid = os.getpid()
    if pid not in _contexts:
        _contexts.clear()
        _contexts[pid] = ts.Context(CONTEXT_OPTIONS)
    return _contexts[pid]


def uncached_context() -> ts.Context:
    """A context of its own for large reads that are made once: it keeps nodes of the tree, hardly any voxels."""
    return ts.Context({**CONTEXT_OPTIONS, "cache_pool": {"total_bytes_limit": UNCACHED_BYTES}})


def reset_context() -> None:
    """Forget the context, for handles opened from now on.

    What is cached in it includes the configuration of each OCDBT database; so after one has been removed, a new one in
    its place would seem to have the configuration of the old.
    """
    _contexts.clear()


def is_of_another_database(error: BaseException) -> bool:
    """Whether TensorStore says that a database has another configuration (or number) than the one it remembers.

    A base that was wiped and made again, by this or another process, is such a database.
    """
    cause = error.__cause__
    return _MISMATCH in str(error) or (cause is not None and is_of_another_database(cause))


def remembers_another(kv: ts.KvStore) -> bool:
    """Whether the database at the place of a handle is not the one that the handle was opened for; one small read."""
    try:
        kv.read("", byte_range=slice(0, 0)).result()
    except ValueError as error:
        return is_of_another_database(error)  # any other error is for those who read something
    return False
