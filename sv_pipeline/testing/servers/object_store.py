"""Objects of buckets, with the generations and preconditions of Google Cloud Storage; `gcs` serves them by HTTP."""

from __future__ import annotations

import bisect
import itertools
import json
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["ObjectStore", "StoredObject", "failed_precondition"]


@dataclass(frozen=True)
class StoredObject:
    """One generation of an object."""

    generation: int
    size: int
    data: bytes | Path
    encoding: str = ""
    """Content encoding. As Google does, the server decompresses ``gzip`` for readers that do not accept it."""
    created: float = field(default_factory=time.time)
    """Seconds since the epoch, by the clock of the server."""

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes of a range."""
        stop = self.size if stop is None else stop
        if isinstance(self.data, bytes):
            return self.data[start:stop]
        with self.data.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


class ObjectStore:
    """The objects of all buckets, in memory, or in a folder that a later server can use again."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._objects: dict[tuple[str, str], StoredObject] = {}
        self._names: dict[str, list[str]] = {}
        self._generations = itertools.count(time.time_ns() // 1000)
        self._log = None
        if folder is not None:
            (folder / "data").mkdir(parents=True, exist_ok=True)
            index = folder / "index.jsonl"
            if index.exists():
                self._replay(index)
            self._log = index.open("a")

    def close(self) -> None:
        """Close the file of the index; another server can then use the folder."""
        if self._log is not None:
            self._log.close()

    def _replay(self, index: Path) -> None:
        assert self._folder is not None
        for line in index.read_text().splitlines():
            bucket, name, generation = json.loads(line)
            self._forget(bucket, name)
            path = self._folder / "data" / str(generation)
            if generation is not None and path.exists():
                found = path.stat()
                self._remember(bucket, name, StoredObject(generation, found.st_size, path, created=found.st_mtime))

    def get(self, bucket: str, name: str) -> StoredObject | None:
        """Return an object; None if it does not exist."""
        return self._objects.get((bucket, name))

    def put(
        self, bucket: str, name: str, data: bytes, conditions: dict[str, str], encoding: str = ""
    ) -> StoredObject | int:
        """Write an object; return it, or an HTTP status if a precondition fails."""
        with self._lock:
            if status := failed_precondition(conditions, self.get(bucket, name)):
                return status
            stored = replace(self._store(next(self._generations), data), encoding=encoding)
            self._forget(bucket, name)
            self._remember(bucket, name, stored)
            self._record(bucket, name, stored.generation)
            return stored

    def delete(self, bucket: str, name: str, conditions: dict[str, str]) -> int:
        """Delete an object; return the HTTP status."""
        with self._lock:
            found = self.get(bucket, name)
            status = 404 if found is None else failed_precondition(conditions, found)
            if status:
                return status
            self._forget(bucket, name)
            self._record(bucket, name, None)
            return 204

    def names(self, bucket: str, prefix: str, start: str, stop: str) -> list[str]:
        """Return names with a prefix, from ``start`` up to but not including ``stop``, in order."""
        with self._lock:
            names = self._names.get(bucket, [])
            low = bisect.bisect_left(names, max(prefix, start))
            found = itertools.takewhile(lambda n: n.startswith(prefix) and (not stop or n < stop), names[low:])
            return list(found)

    def _store(self, generation: int, data: bytes) -> StoredObject:
        if self._folder is None:
            return StoredObject(generation, len(data), data)
        path = self._folder / "data" / str(generation)
        path.write_bytes(data)
        return StoredObject(generation, len(data), path)

    def _remember(self, bucket: str, name: str, stored: StoredObject) -> None:
        self._objects[bucket, name] = stored
        bisect.insort(self._names.setdefault(bucket, []), name)

    def _forget(self, bucket: str, name: str) -> None:
        if self._objects.pop((bucket, name), None) is not None:
            names = self._names[bucket]
            del names[bisect.bisect_left(names, name)]

    def _record(self, bucket: str, name: str, generation: int | None) -> None:
        if self._log is not None:
            self._log.write(json.dumps([bucket, name, generation]) + "\n")
            self._log.flush()


def failed_precondition(conditions: dict[str, str], found: StoredObject | None) -> int | None:
    """Return the HTTP status of a failed precondition; None if all hold. Generation 0 stands for a missing object."""
    generation = found.generation if found else 0
    wanted, unwanted = conditions.get("ifGenerationMatch"), conditions.get("ifGenerationNotMatch")
    if wanted is not None and int(wanted) != generation:
        return 412
    if unwanted is not None and int(unwanted) == generation:
        return 304
    return None
