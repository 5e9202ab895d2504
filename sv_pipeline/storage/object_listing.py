"""Looks up sizes and versions of many objects of a folder: by listings in a bucket, by file status on disk.

A bucket answers a listing with up to a thousand objects, in the order of their names. Objects between two wanted ones
are therefore listed as well, unless there are more of them than fit in one such page.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConfigError, InputError, UnavailableError
from sv_pipeline.patience import patience
from sv_pipeline.storage.file_guard import local_path

__all__ = [
    "PAGE",
    "REQUESTS_AT_ONCE",
    "StoredObjects",
    "TimedObject",
    "can_look_up",
    "first_objects",
    "look_up",
    "object_names",
    "timed_objects",
]

PAGE = 1000
"""Largest number of objects in one answer of a bucket."""
REQUESTS_AT_ONCE = 16
ENDPOINT_VARIABLE = "TENSORSTORE_GCS_HTTP_URL"
"""Environment variable with the URL of another storage server than Google's; TensorStore reads the same variable."""
_FIELDS = "items(name,size,generation,contentEncoding),nextPageToken"
_PLAIN = (None, "", "identity")

IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Names: TypeAlias = npt.NDArray[np.bytes_]
Row: TypeAlias = tuple[bytes, int, int, bool]
"""Name, size, version, whether the object is compressed as a whole."""


class TimedObject(NamedTuple):
    """An object of a bucket, and when it was written."""

    name: str
    """Name relative to the folder that was listed."""
    size: int
    """Size in bytes."""
    time: int
    """Nanoseconds since the epoch, by the clock of the bucket's server."""


@dataclass(frozen=True, eq=False)
class StoredObjects:
    """Sizes and versions of objects, in the order of the request."""

    sizes: IntArray
    """Size of each object in bytes, shape (n,); -1 if it does not exist."""
    versions: IntArray
    """Generation of each object in a bucket, or time of its last modification on disk in ns, shape (n,)."""
    compressed: BoolArray
    """Whether each object is compressed as a whole (``.gz``, or a content encoding), which no codec reads; (n,)."""

    @property
    def there(self) -> BoolArray:
        """Whether each object exists in a form that a codec can read, shape (n,)."""
        return (self.sizes >= 0) & ~self.compressed


def can_look_up(url: str) -> bool:
    """Return whether sizes and versions of objects can be looked up at the place of a volume."""
    return url.startswith(("file://", "gs://"))


def look_up(folder_url: str, names: Names, ranks: IntArray, suffixes: Sequence[str] = ()) -> StoredObjects:
    """Look up objects of a folder.

    Parameters
    ----------
    folder_url
        URL of the folder, ``file://`` or ``gs://``, ending with ``/``.
    names
        Names in that folder, ascending, shape (n,).
    ranks
        Place of each name among all names that the folder may contain, shape (n,). The difference of two ranks limits
        the number of objects between them, and so determines whether these are listed as well.
    suffixes
        Suffixes of compressed files in the folder.

    Raises
    ------
    UnavailableError
        If the bucket does not answer.
    ConfigError
        If access is denied.
    """
    folder = local_path(folder_url)
    if folder is not None:
        return _on_disk(os.fspath(folder), names, suffixes)
    runs = np.split(np.arange(len(names)), np.flatnonzero(np.diff(ranks) > PAGE) + 1) if len(names) else []
    bounds = [(names[run[0]], names[run[-1]] + b"\0") for run in runs]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = [row for rows in pool.map(lambda ends: list(_listed(folder_url, *ends)), bounds) for row in rows]
    return _aligned(names, found)


def first_objects(folder_url: str, limit: int = PAGE, suffixes: Sequence[str] = ()) -> list[Row]:
    """Return up to ``limit`` objects of a folder in the order in which the storage lists them."""
    folder = local_path(folder_url)
    if folder is None:
        return list(_listed(folder_url, limit=limit))
    rows: list[Row] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and not entry.name.startswith(".") and not entry.name.endswith(".__lock"):
                    found = entry.stat()
                    packed = entry.name.endswith(tuple(suffixes))
                    rows.append((os.fsencode(entry.name), found.st_size, found.st_mtime_ns, packed))
                if len(rows) == limit:
                    break
    except FileNotFoundError:
        return []
    return rows


def object_names(folder_url: str, prefixes: Sequence[str]) -> Iterator[str]:
    """Yield the names of the objects of a folder in a bucket that begin with one of some prefixes, in their order.

    Several listings run at once, of which each holds the names of one prefix.
    """

    def listed(prefix: str) -> list[str]:
        last = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return [name.decode() for name, *_ in _listed(folder_url, prefix.encode(), last.encode())]

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        waiting: deque[Future[list[str]]] = deque()
        for prefix in prefixes:
            waiting.append(pool.submit(listed, prefix))
            if len(waiting) > REQUESTS_AT_ONCE:
                yield from waiting.popleft().result()
        for future in waiting:
            yield from future.result()


def timed_objects(folder_url: str, prefix: str = "") -> list[TimedObject]:
    """Return the objects of a folder in a bucket whose names begin with a prefix, with their times.

    Raises
    ------
    UnavailableError
        If the bucket does not answer.
    ConfigError
        If access is denied.
    """
    bucket, _, path = folder_url.removeprefix("gs://").partition("/")
    folder = unquote(path)
    fields = "items(name,size,timeCreated),nextPageToken"
    with _errors(folder_url):
        listing = _client().list_blobs(bucket, prefix=folder + prefix, fields=fields, retry=_retry())
        return [
            TimedObject(blob.name.removeprefix(folder), int(blob.size), int(blob.time_created.timestamp() * 1e6) * 1000)
            for blob in listing
        ]


def _on_disk(folder: str, names: Names, suffixes: Sequence[str]) -> StoredObjects:
    sizes, versions = np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64)
    compressed = np.zeros(len(names), bool)
    endings = [os.fsencode(suffix) for suffix in suffixes]
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return StoredObjects(sizes, versions, compressed)
    try:
        for i, name in enumerate(names.tolist()):
            found = _stat(name, descriptor)
            if found is not None:
                sizes[i], versions[i] = found.st_size, found.st_mtime_ns
            compressed[i] = any(_stat(name + ending, descriptor) is not None for ending in endings)
    finally:
        os.close(descriptor)
    return StoredObjects(sizes, versions, compressed)


def _stat(name: bytes, folder: int) -> os.stat_result | None:
    """Return the status of a file; None if it is missing or is a folder, which TensorStore treats as missing too."""
    try:
        found = os.stat(name, dir_fd=folder)
    except FileNotFoundError:
        return None
    return None if stat.S_ISDIR(found.st_mode) else found


def _aligned(names: Names, rows: list[Row]) -> StoredObjects:
    sizes, versions = np.full(len(names), -1, np.int64), np.zeros(len(names), np.int64)
    compressed = np.zeros(len(names), bool)
    if rows:
        found, found_sizes, found_versions, found_compressed = zip(*rows, strict=True)
        listed = np.array(found, np.bytes_)
        at = np.minimum(np.searchsorted(names, listed), len(names) - 1)
        wanted = names[at] == listed
        at = at[wanted]
        sizes[at] = np.array(found_sizes, np.int64)[wanted]
        versions[at] = np.array(found_versions, np.int64)[wanted]
        compressed[at] = np.array(found_compressed, bool)[wanted]
    return StoredObjects(sizes, versions, compressed)


# -- buckets --------------------------------------------------------------------------------------------------------


def _listed(folder_url: str, first: bytes = b"", stop: bytes = b"", limit: int | None = None) -> Iterator[Row]:
    """Yield the objects of a folder in a bucket with names from ``first`` up to but not including ``stop``."""
    bucket, _, path = folder_url.removeprefix("gs://").partition("/")
    prefix = unquote(path)
    with _errors(folder_url):
        listing = _client().list_blobs(
            bucket,
            prefix=prefix,
            start_offset=prefix + first.decode() if first else None,
            end_offset=prefix + stop.decode() if stop else None,
            max_results=limit,
            fields=_FIELDS,
            retry=_retry(),
        )
        for blob in listing:
            packed = blob.content_encoding not in _PLAIN
            yield blob.name.removeprefix(prefix).encode(), int(blob.size), int(blob.generation), packed


def _client() -> Any:
    return _client_of(os.environ.get(ENDPOINT_VARIABLE), os.getpid())


@lru_cache(maxsize=4)
def _client_of(endpoint: str | None, _process: int) -> Any:
    """Return the client that dagster-gcp's ``GCSResource`` uses; without credentials it reads public buckets only."""
    from google.auth.credentials import AnonymousCredentials
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    if endpoint:
        options = {"api_endpoint": endpoint.rstrip("/")}
        return storage.Client(project="none", credentials=AnonymousCredentials(), client_options=options)  # type: ignore[no-untyped-call]
    try:
        return storage.Client()
    except (DefaultCredentialsError, OSError):  # OSError: credentials, but no project
        return storage.Client.create_anonymous_client()


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(patience())


@contextmanager
def _errors(place: str) -> Iterator[None]:
    """Translate errors of the client into errors of this package."""
    from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, RetryError, Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except (Forbidden, Unauthorized, GoogleAuthError) as error:
        raise ConfigError(
            f"the objects of {place} cannot be listed: access denied ({error}).",
            remedy="Check GOOGLE_APPLICATION_CREDENTIALS or 'gcloud auth application-default login'; listing needs "
            "the permission storage.objects.list.",
        ) from error
    except NotFound as error:
        raise InputError(f"the bucket of {place} does not exist.", remedy="Check the URL.") from error
    except (GoogleAPICallError, RetryError, RequestException, ConnectionError) as error:
        raise UnavailableError(
            f"listing {place}: the bucket did not answer ({error}).",
            remedy="Check that it can be reached.",
            repeat="Then try again.",
        ) from error
