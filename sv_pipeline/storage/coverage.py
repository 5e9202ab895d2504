"""Owns counting the storage chunks of a volume that are not there: readers take them for background, without a word."""

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
"""Volumes of more chunks are not listed; some of their chunks are looked for."""
SAMPLED = 512
FEW = 3
"""Missing chunks that are reported only, in a volume that has eight times as many."""
_WITH_ENDING = re.compile(r"-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+\.[\w.]+")
NOT_LISTABLE = ("http://", "https://")
_REFUSED = frozenset({"UNIMPLEMENTED", "NOT_FOUND"})

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How many storage chunks of one mip are there."""

    place: str
    """Folder of the chunks."""
    expected: int
    """Chunks that the info file asks for, in the part of the volume that is of interest."""
    looked_for: int
    """Chunks that were looked for: all of them, or some of very many."""
    missing: int
    """Chunks that were looked for and are not there."""
    example: str | None = None
    """One of those."""
    unread: str | None = None
    """A file that is there under the name of a chunk, with an ending that is not known."""

    @property
    def text(self) -> str:
        """The numbers, for people."""
        of = f"{self.expected}" if self.looked_for == self.expected else f"{self.looked_for} (of {self.expected})"
        return f"{self.missing} of {of} storage chunks of {self.place} are not there"


def check_coverage(found: Coverage, field: str) -> None:
    """Refuse a volume of which more than a few chunks are missing.

    Parameters
    ----------
    found
        What was counted.
    field
        Of the configuration, that allows for it.

    Raises
    ------
    InputError
        If more than three chunks are missing, or more than an eighth of all.
    """
    if found.missing > min(FEW, found.looked_for // 8):
        unread = f" {found.unread} is there, but files with such an ending are not read." if found.unread else ""
        raise InputError(
            f"{found.text}, first {found.example}; they would be taken for background.{unread}",
            remedy="Check the place, and that the copy is complete. If the volume is sparse (chunks of background only "
            f"were never stored), set {field}: true.",
        )


def coverage(stored: StoredScale, within: Box | None = None) -> Coverage:
    """Count the chunks of a mip that are not there.

    One listing does for a folder of up to two million chunks. Of larger ones, and where nothing can be listed, some
    hundred chunks are looked for, evenly spread.

    Parameters
    ----------
    stored
        The mip.
    within
        Only chunks that this box touches, in coordinates of the mip; default: all.
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
    """The first file with the name of a chunk and an ending of its own."""
    names = sorted(key.decode(errors="replace") for key in listed)
    return next((name for name in names if _WITH_ENDING.fullmatch(name)), None)


def _cells(stored: StoredScale, within: Box | None) -> tuple[IntArray, IntArray]:
    """First and last (exclusive) position in the chunk grid, per axis."""
    scale = stored.scale
    box = scale.bounds if within is None else scale.bounds.clip(within)
    start = np.subtract(box.start, scale.voxel_offset) // scale.chunk_size
    stop = -(-np.subtract(box.stop, scale.voxel_offset) // scale.chunk_size)
    return start.astype(np.int64), stop.astype(np.int64)


def _keys(stored: StoredScale, cells: IntArray) -> list[bytes]:
    """Keys of chunks in the store of `_store`."""
    if stored.sharding is None:
        return [name.encode() for name in stored.names(cells)]
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    codes = np.asarray(compressed_morton_code(cells, stored.cells), np.uint64)
    return [code.to_bytes(8, "big") for code in codes.tolist()]


def _store(stored: StoredScale) -> ts.KvStore:
    spec: object = stored.folder
    if stored.sharding is not None:
        spec = {"driver": "neuroglancer_uint64_sharded", "base": stored.folder, "metadata": stored.sharding}
    try:
        return ts.KvStore.open(spec, context=process_context()).result()
    except ValueError as error:
        raise InputError(f"the sharding of {stored.folder} in the info file is of no use: {error}.") from error


def _listed(stored: StoredScale) -> set[bytes] | None:
    """Keys of all chunks that there are; None where that cannot be told."""
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
            f"{int((counts > 1).sum())} storage chunks of {stored.folder} are there in two forms, first "
            f"{values[counts > 1][0].decode()}: as they are and compressed, or compressed in two ways. One of the two "
            "is out of date.",
            remedy="Remove the one that is.",
        )
    return names


def _looked_for(stored: StoredScale, keys: list[bytes]) -> list[bool]:
    forms = (b"", *(suffix.encode() for suffix in stored.suffixes))

    def read() -> list[bool]:
        store = _store(stored)
        futures = [[store.read(key + form) for form in forms] for key in keys]
        return [any(future.result().state == "value" for future in each) for each in futures]

    return retry_transport(read, what=f"looking for chunks in {stored.folder}")
