"""Owns the ledger of coarser mips that are behind: reads its entries, and removes work that is done.

A fork holds one entry for each operation whose coarser mips are behind, ``_sv_pipeline/pending/<op>``, JSON
``{"boxes": [[start, stop], ...]}`` in voxels of the base mip, written in the same commit as the operation's voxels. A
voxel of a coarser mip outside of these boxes is up to date with the mip below. Entry 0 belongs to no operation; it
holds boxes whose coarser mips a user has asked to make again. The package `pyramid` makes the mips.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.box_arrays import as_array, as_boxes, clip, joined, subtract
from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.records import PENDING, OperationRecord, operation_key, pending_key, pending_value
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.wording import counted

__all__ = [
    "ASKED_FOR",
    "Lag",
    "PendingEntry",
    "add_pending",
    "add_to_entry",
    "boxes_of",
    "lag_of",
    "read_entries",
    "settle",
]

ASKED_FOR = 0
"""Number of the entry that belongs to no operation; operations are numbered from 1."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PendingEntry:
    """The boxes whose coarser mips one operation has left behind."""

    operation_id: int
    boxes: tuple[Box, ...]
    """Boxes in voxels of the base mip."""
    since: int | None
    """Logical time of the operation, in milliseconds since the epoch; None if it is unknown."""
    key: str
    """Key of the entry in the fork."""


@dataclass(frozen=True)
class Lag:
    """How far the coarser mips of a fork are behind its base mip."""

    entries: int
    """Number of operations with an entry."""
    boxes: int
    """Number of boxes in these entries."""
    voxels: int
    """Number of voxels of the base mip in these boxes; overlaps are counted twice."""
    oldest_seconds: float | None
    """Age of the oldest entry, in seconds; None if no age is known."""

    def __str__(self) -> str:
        if not self.entries:
            return "up to date"
        age = "" if self.oldest_seconds is None else f", the oldest {self.oldest_seconds:.0f} s old"
        return f"{counted(self.boxes, 'box', 'boxes')} of {counted(self.entries, 'operation')} behind{age}"


# -- reading ----------------------------------------------------------------------------------------------------------


def lag_of(entries: Sequence[PendingEntry]) -> Lag:
    """Summarise entries."""
    times = [entry.since for entry in entries if entry.since is not None]
    boxes = [box for entry in entries for box in entry.boxes]
    return Lag(
        entries=len(entries),
        boxes=len(boxes),
        voxels=sum(box.volume for box in boxes),
        oldest_seconds=max(0.0, time.time() - min(times) / 1000) if times else None,
    )


def read_entries(kv: ts.KvStore, keys: Sequence[str] | None = None) -> list[PendingEntry]:
    """Read the entries of an open fork, or those of ``keys`` that exist, in order of operation ids."""

    def read() -> list[tuple[str, bytes, bytes | None]]:
        wanted = [PENDING + key.decode() for key in (kv / PENDING).list().result()] if keys is None else keys
        values = [kv.read(key) for key in wanted]
        records = [kv.read(operation_key(_operation_id(key))) for key in wanted]
        found = zip(wanted, [v.result() for v in values], [r.result() for r in records], strict=True)
        # An entry may have been removed between the two steps.
        return [(k, bytes(v.value), bytes(r.value) or None) for k, v, r in found if v.state == "value"]

    found = retry_transport(read, what="reading the pending boxes of a fork")
    return sorted((_entry(*item) for item in found), key=lambda entry: entry.operation_id)


def _entry(key: str, value: bytes, record: bytes | None) -> PendingEntry:
    operation_id = _operation_id(key)
    content, boxes = _decode(key, value)
    since = content.get("since")
    if since is None and record is not None:
        since = OperationRecord.decode(record, operation_key(operation_id)).logical_time
    return PendingEntry(operation_id, tuple(as_boxes(boxes)), since, key)


def _operation_id(key: str) -> int:
    name = key.removeprefix(PENDING)
    if not name.isdecimal():
        raise CorruptionError(
            f"the key {key} of the fork does not end with the number of an operation.", remedy="Remove that key."
        )
    return int(name)


def _decode(key: str, value: bytes) -> tuple[dict[str, Any], IntArray]:
    try:
        content: dict[str, Any] = json.loads(value)
        boxes = np.array(content["boxes"], np.int64).reshape(len(content["boxes"]), 2, 3)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CorruptionError(
            f"the key {key} of the fork does not list boxes: {error!r}.",
            remedy="Write the boxes of its operation again, or remove it and rebuild all coarser mips.",
        ) from error
    return content, boxes


def boxes_of(key: str, value: bytes) -> IntArray:
    """Return the boxes in the value of a key, shape (n, 2, 3); raise CorruptionError if it is unreadable."""
    return _decode(key, value)[1]


# -- writing ----------------------------------------------------------------------------------------------------------


def settle(kv: ts.KvStore, key: str, part: Box, expected: IntArray, bounds: Box) -> bool:
    """Remove the voxels of ``part`` from an entry; an entry without boxes is removed.

    Parameters
    ----------
    kv
        Keys of the fork in a transaction with repeatable reads: the commit fails if the entry changes before it.
    part
        Box that was done, in voxels of the base mip.
    expected
        Boxes of the entry, clipped to ``part``, that were done.
    bounds
        Bounds of the volume; boxes outside it are dropped.

    Returns
    -------
    bool
        False if the entry has other boxes in ``part`` by now, or is gone; then nothing was removed.
    """
    found = kv.read(key).result()
    if found.state != "value":
        return False
    content, boxes = _decode(key, bytes(found.value))
    if not np.array_equal(clip(boxes, part), expected):
        return False
    left = clip(subtract(boxes, part), bounds)
    # If a large box is done piece by piece, the number of its fragments would grow without this.
    left = joined(left) if len(left) > len(boxes) else left
    kv.write(key, _encode({**content, "boxes": left.tolist()}) if len(left) else None).result()
    return True


def add_pending(kv: ts.KvStore, boxes: Iterable[Box]) -> None:
    """Add boxes to the entry of users' requests (`ASKED_FOR`), in a transaction with repeatable reads."""
    key = pending_key(ASKED_FOR)
    found = kv.read(key).result()
    content, there = ({}, as_array([])) if found.state != "value" else _decode(key, bytes(found.value))
    since = content.get("since", time.time_ns() // 1_000_000)
    wanted = np.unique(np.concatenate([there, as_array(boxes)]), axis=0)
    kv.write(key, _encode({**content, "boxes": joined(wanted).tolist(), "since": since})).result()


def add_to_entry(kv: ts.KvStore, operation_id: int, boxes: Iterable[Box], *, since: int | None = None) -> None:
    """Add boxes that an operation has changed to its entry, in a transaction with repeatable reads; once in each.

    Parameters
    ----------
    since
        Logical time of the operation, in milliseconds; needed if the fork has no record of it.
    """
    key = pending_key(operation_id)
    found = kv.read(key).result()
    if found.state != "value":
        kv.write(key, pending_value(boxes, since)).result()
        return
    content, there = _decode(key, bytes(found.value))
    every = np.unique(np.concatenate([there, as_array(boxes)]), axis=0)
    kv.write(key, _encode({**content, "boxes": joined(every).tolist()})).result()


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
