"""Counts the storage chunks of a volume that are missing, since readers silently treat them as background."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import ConfigError, DamagedError, InputError
from sv_pipeline.grid import Box
from sv_pipeline.storage.context import process_context
from sv_pipeline.storage.retry import retry_transport, status_code
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = ["Coverage", "check_coverage", "coverage"]

MOST_LISTED = 1 << 21
"""Volumes with more chunks are not listed; a sample of their chunks is checked."""
SAMPLED = 512
FEW = 3
"""Number of missing chunks that is reported only, in a volume with at least eight times as many chunks."""
_WITH_ENDING = re.compile(r"-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+\.[\w.]+")
NOT_LISTABLE = ("http://", "https://")
_REFUSED = frozenset({"UNIMPLEMENTED", "NOT_FOUND"})

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How many storage chunks of one mip are missing."""

    place: str
    """Folder of the chunks."""
    expected: int
    """Number of chunks according to the info file, in the part of the volume that is of interest."""
    looked_for: int
    """Number of chunks that were checked: all of them, or a sample of very many."""
    missing: int
    """Number of checked chunks that are missing."""
    example: str | None = None
    """Name of a missing chunk."""
    unread: str | None = None
    """A file with the name of a chunk and an unknown extension."""

    @property
    def text(self) -> str:
        """The numbers as a text."""
        of = f"{self.expected}" if self.looked_for == self.expected else f"{self.looked_for} (of {self.expected})"
        return f"{self.missing} of {of} storage chunks of {self.place} are missing"


def check_coverage(found: Coverage, field: str) -> None:
    """Refuse a volume of which more than a few chunks are missing.

    Parameters
    ----------
    found
        Result of `coverage`.
    field
        Field of the configuration that allows missing chunks.

    Raises
    ------
    InputError
        If more than three chunks are missing, or more than an eighth of all.
    """
    if found.missing > min(FEW, found.looked_for // 8):
        unread = f" {found.unread} exists, but files with such an extension are not read." if found.unread else ""
        raise InputError(
            f"{found.text}, first {found.example}; they would be treated as background.{unread}",
            remedy="Check the place, and that the copy is complete. If the volume is sparse (chunks that contain only "
            f"background were never stored), set {field}: true.",
        )


def coverage(stored: StoredScale, within: Box | None = None) -> Coverage:
    """Count the missing storage chunks of a mip.

    A folder of up to two million chunks is listed once. For larger folders, and where listing is not possible, some
    hundred chunks are checked, evenly spread.

    Parameters
    ----------
    stored
        The mip.
    within
        Box in coordinates of the mip; only chunks that it touches are counted. Default: all chunks.
    """
    first, last = _cells(stored, within)
    shape = last - first
    expected = int(np.prod(shape))
    numbers = np.arange(expected) if expected <= MOST_LISTED else None
    listed = _listed(stored) if numbers is not None and not stored.url.startswith(NOT_LISTABLE) else None
    if listed is None:
        numbers = np.unique(np.linspace(0, expected - 1, min(SAMPLED, expected)).astype(np.int64))
    assert numbers is not None
    cells = np.stack(np.unravel_index(numbers, tuple(shape)), axis=-1) + first
    keys = _keys(stored, cells)
    there = [key in listed for key in keys] if listed is not None else _looked_for(stored, keys)
    missing = np.flatnonzero(~np.asarray(there, bool))
    example = stored.names(cells[missing[:1]])[0] if len(missing) else None
    unread = _unread(listed) if listed is not None and example is not None and stored.sharding is None else None
    return Coverage(stored.folder, expected, len(numbers), len(missing), example, unread)


def _unread(listed: set[bytes]) -> str | None:
    """Return the first file with the name of a chunk and an extension; None if there is none."""
    names = sorted(key.decode(errors="replace") for key in listed)
    return next((name for name in names if _WITH_ENDING.fullmatch(name)), None)


def _cells(stored: StoredScale, within: Box | None) -> tuple[IntArray, IntArray]:
    """Return the first and last (exclusive) position in the chunk grid, per axis."""
    scale = stored.scale
    box = scale.bounds if within is None else scale.bounds.clip(within)
    start = np.subtract(box.start, scale.voxel_offset) // scale.chunk_size
    stop = -(-np.subtract(box.stop, scale.voxel_offset) // scale.chunk_size)
    return start.astype(np.int64), stop.astype(np.int64)


def _keys(stored: StoredScale, cells: IntArray) -> list[bytes]:
    """Return the keys of chunks in the store of `_store`."""
    if stored.sharding is None:
        return [name.encode() for name in stored.names(cells)]
    return [chunk_id.to_bytes(8, "big") for chunk_id in stored.chunk_ids(cells).tolist()]


def _store(stored: StoredScale) -> ts.KvStore:
    spec: object = stored.folder
    if stored.sharding is not None:
        spec = {"driver": "neuroglancer_uint64_sharded", "base": stored.folder, "metadata": stored.sharding}
    try:
        return ts.KvStore.open(spec, context=process_context()).result()
    except ValueError as error:
        raise InputError(f"the sharding of {stored.folder} in the info file cannot be used: {error}.") from error


def _listed(stored: StoredScale) -> set[bytes] | None:
    """Return the keys of all existing chunks; None if they cannot be listed."""
    try:
        keys = retry_transport(lambda: _store(stored).list().result(), what=f"listing {stored.folder}")
    except (DamagedError, NotImplementedError) as error:
        if status_code(error) not in _REFUSED and not isinstance(error, NotImplementedError):
            raise InputError(f"the chunks of {stored.folder} cannot be listed: {error}.") from error
        return None
    except ConfigError:  # listing is not allowed, though reading may be
        return None
    return set(_without_suffixes(stored, keys))


def _without_suffixes(stored: StoredScale, keys: Iterable[bytes]) -> Iterable[bytes]:
    suffixes = tuple(suffix.encode() for suffix in stored.suffixes)
    if not suffixes:
        return keys
    names: list[bytes] = []
    for key in keys:
        stem, dot, suffix = key.rpartition(b".")
        names.append(stem if dot + suffix in suffixes else key)
    if len(names) != len(set(names)):
        values, counts = np.unique(np.array(names), return_counts=True)
        raise InputError(
            f"{int((counts > 1).sum())} storage chunks of {stored.folder} exist in two forms, first "
            f"{values[counts > 1][0].decode()}: uncompressed and compressed, or compressed in two ways. One of the two "
            "is out of date.",
            remedy="Remove the outdated one.",
        )
    return names


def _looked_for(stored: StoredScale, keys: list[bytes]) -> list[bool]:
    forms = (b"", *(suffix.encode() for suffix in stored.suffixes))

    def read() -> list[bool]:
        store = _store(stored)
        futures = [[store.read(key + form) for form in forms] for key in keys]
        return [any(future.result().state == "value" for future in each) for each in futures]

    return retry_transport(read, what=f"looking for chunks in {stored.folder}")
