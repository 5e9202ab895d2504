"""Raw key-value access to a folder (file, gs, memory). Knows neither volumes nor OCDBT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import tensorstore as ts

from sv_pipeline.errors import DamagedError
from sv_pipeline.places import parse_folder
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.file_guard import clear_stale_locks, written
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.wording import counted

__all__ = [
    "as_url",
    "delete_key",
    "delete_keys",
    "delete_prefix",
    "join_url",
    "list_keys",
    "open_kv",
    "read_bytes",
    "read_many",
    "write_bytes",
    "write_if_absent",
    "write_many",
]

_DELETE_ATTEMPTS = 20


def as_url(path_or_url: str | Path) -> str:
    """Return the normal form of a folder: a kvstore URL that ends with ``/``; see :mod:`sv_pipeline.places`.

    Raises
    ------
    ConfigError
        If the text does not name a usable folder.
    """
    if isinstance(path_or_url, str) and "://" in path_or_url and ".." not in path_or_url:
        return _folder_url(path_or_url)
    return parse_folder(path_or_url).folder_url


@lru_cache(1024)
def _folder_url(url: str) -> str:
    """Return the normal form of a URL that depends neither on the current folder nor on symbolic links."""
    return parse_folder(url).folder_url


def join_url(url: str, *parts: str) -> str:
    """Return the URL of a folder inside a folder."""
    return as_url(url) + "".join(quote(part.strip("/")) + "/" for part in parts)


def open_kv(url: str | Path) -> ts.KvStore:
    """Open a folder, in the context of this process."""
    return ts.KvStore.open(as_url(url), context=process_context()).result()


def read_bytes(url: str | Path, key: str) -> bytes | None:
    """Return the value of a key; None if it is missing."""
    return read_many(url, [key])[0]


def read_many(url: str | Path, keys: Iterable[str]) -> list[bytes | None]:
    """Return the values of keys in their order, read concurrently; None for each missing key."""
    keys = list(keys)

    def read() -> list[bytes | None]:
        store = open_kv(url)
        results = [future.result() for future in [store.read(key) for key in keys]]
        return [None if result.state == "missing" else bytes(result.value) for result in results]

    return retry_transport(read, what=f"reading {counted(len(keys), 'key')} of {url}")


def write_bytes(url: str | Path, key: str, data: bytes) -> None:
    """Set a key."""
    write_many(url, {key: data})


def write_many(url: str | Path, values: Mapping[str, bytes]) -> None:
    """Set keys concurrently; not atomic."""

    def write() -> None:
        clear_stale_locks(as_url(url), values)
        store = open_kv(url)
        for key, future in [(key, store.write(key, data)) for key, data in values.items()]:
            written(future, as_url(url), key)

    retry_transport(write, what=f"writing {counted(len(values), 'key')} to {url}")


def write_if_absent(url: str | Path, key: str, data: bytes) -> bool:
    """Set a key unless it exists; return whether it now holds ``data``.

    If several writers write different data, exactly one of them succeeds. A storage service may lose the answer to a
    write that it applied; therefore a writer that finds its own data has succeeded.
    """

    def write() -> bool:
        clear_stale_locks(as_url(url), [key])
        store = open_kv(url)
        found = store.read(key).result()
        if found.state != "missing":
            return bytes(found.value) == data
        if written(store.write(key, data, if_equal=found.stamp.generation), as_url(url), key).generation:
            return True
        return bytes(store.read(key).result().value) == data

    return retry_transport(write, what=f"creating {key} in {url}")


def list_keys(url: str | Path, prefix: str = "") -> list[str]:
    """Return the complete keys that start with ``prefix``, sorted."""

    def read() -> list[str]:
        store = open_kv(url)
        return sorted(prefix + key.decode() for key in (store / prefix).list().result())

    return retry_transport(read, what=f"listing {url}{prefix}")


def delete_key(url: str | Path, key: str) -> None:
    """Remove a key; a missing key is not an error."""
    delete_keys(url, [key])


def delete_keys(url: str | Path, keys: Iterable[str]) -> None:
    """Remove keys concurrently; missing keys are not an error."""
    keys = list(keys)

    def delete() -> None:
        store = open_kv(url)
        for future in [store.write(key, None) for key in keys]:
            future.result()

    _delete(delete, f"deleting {counted(len(keys), 'key')} of {url}")


def delete_prefix(url: str | Path, prefix: str = "") -> None:
    """Remove all keys that start with ``prefix``; "" removes the whole content of the folder."""

    def delete() -> None:
        (open_kv(url) / prefix).delete_range(ts.KvStore.KeyRange()).result()

    _delete(delete, f"deleting {url}{prefix}")


def _delete(delete: Callable[[], None], what: str) -> None:
    for attempt in range(_DELETE_ATTEMPTS):
        try:
            return retry_transport(delete, what=what)
        except DamagedError as error:
            # The file driver fails if another process has just removed the same file, or its lock.
            if error.code != "NOT_FOUND" or attempt == _DELETE_ATTEMPTS - 1:
                raise
    return None
