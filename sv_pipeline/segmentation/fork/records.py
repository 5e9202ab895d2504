"""Owns the keys in a fork that belong to operations, and finds the generation that each operation made.

=============================  =======================================================================================
``_sv_pipeline/ops/<op>``      `OperationRecord`: the voxels that the operation changed. It is written in the same
                               commit as those voxels, so it exists if and only if they are committed.
``_sv_pipeline/fence/<op>``    Token of the only owner that may commit the operation. It is missing until a process
                               takes the operation over; from then on the earlier owner cannot commit any more.
``_sv_pipeline/pending/<op>``  ``{"boxes": [[start, stop], ...]}`` in voxels of the base mip: the boxes whose coarser
                               mips are behind.
``_sv_pipeline/newest``        `Newest`: the graph, and the operation whose voxels were committed last.
=============================  =======================================================================================

Voxels and these keys are committed in `commit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import tensorstore as ts

from sv_pipeline.errors import ConflictError, CorruptionError, DamagedError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.horizon import no_such_version
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.history import oldest_generation
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "NEWEST",
    "Newest",
    "OperationRecord",
    "fence_in",
    "fence_key",
    "fenced_off",
    "first_generation",
    "generation_at",
    "operation_key",
    "pending_key",
    "pending_value",
    "read_value",
    "record_in",
    "records_in",
    "store_at",
    "write_fence",
]

OPERATIONS = ocdbt.OWN_KEYS + "ops/"
FENCES = ocdbt.OWN_KEYS + "fence/"
PENDING = ocdbt.OWN_KEYS + "pending/"
NEWEST = ocdbt.OWN_KEYS + "newest"


def operation_key(operation_id: int) -> str:
    """Return the key of an operation's record; keys sort in the order of the ids."""
    return f"{OPERATIONS}{operation_id:020d}"


def fence_key(operation_id: int) -> str:
    """Return the key of an operation's fence."""
    return f"{FENCES}{operation_id:020d}"


def pending_key(operation_id: int) -> str:
    """Return the key of the boxes whose coarser mips an operation has left behind."""
    return f"{PENDING}{operation_id:020d}"


def pending_value(boxes: Iterable[Box], since: int | None = None) -> bytes:
    """Return the value of a pending key; ``since`` is the logical time of the operation, in milliseconds."""
    content: dict[str, Any] = {"boxes": [[box.start, box.stop] for box in boxes]}
    return json.dumps(content if since is None else {**content, "since": since}).encode()


@dataclass(frozen=True)
class OperationRecord:
    """The record of the voxels of a fork that an operation has changed."""

    operation_id: int
    boxes: tuple[Box, ...]
    """Boxes in voxels of the base mip, outside of which nothing has changed."""
    mips: tuple[int, ...]
    """Mips that were written in the same commit."""
    generation_before: int
    """Generation on which the operation was planned, and from which its voxels can be restored."""
    logical_time: int
    """Timestamp of all rows of the operation, in milliseconds since the epoch."""
    owner: str
    """Token of the owner that committed it."""
    identity: str | None = None
    """Identity of the operation, the same for all its owners; None if an older version committed it."""

    def encode(self) -> bytes:
        """Encode the record as JSON; equal records give equal bytes."""
        content = {
            "operation_id": self.operation_id,
            "boxes": [[box.start, box.stop] for box in self.boxes],
            "mips": self.mips,
            "generation_before": self.generation_before,
            "logical_time": self.logical_time,
            "owner": self.owner,
        }
        if self.identity is not None:
            content["identity"] = self.identity
        return json.dumps(content).encode()

    @classmethod
    def decode(cls, value: bytes, key: str) -> OperationRecord:
        """Decode a record from JSON; raise CorruptionError, which names the key, if that is impossible."""
        try:
            content: dict[str, Any] = json.loads(value)
            return cls(
                operation_id=int(content["operation_id"]),
                boxes=tuple(Box.of(start, stop) for start, stop in content["boxes"]),
                mips=tuple(int(mip) for mip in content["mips"]),
                generation_before=int(content["generation_before"]),
                logical_time=int(content["logical_time"]),
                owner=str(content["owner"]),
                identity=None if content.get("identity") is None else str(content["identity"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(
                f"the key {key} of the fork is not the record of an operation: {error!r}.",
                remedy="It was written by another version, or damaged; see the operation's row for what it changed.",
            ) from error


@dataclass(frozen=True)
class Newest:
    """The graph of a fork and its newest operation, rewritten by each commit of an edit's voxels."""

    graph: str
    """Identity of the graph, which its table holds as well."""
    operation_id: int
    """Id of the operation whose voxels were committed last."""
    identity: str
    """Identity of that operation."""

    def encode(self) -> bytes:
        """Encode the value as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, value: bytes) -> Newest:
        """Decode the value from JSON; raise CorruptionError, which names the key, if that is impossible."""
        try:
            content: dict[str, Any] = json.loads(value)
            return cls(str(content["graph"]), int(content["operation_id"]), str(content["identity"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(
                f"the key {NEWEST} of the fork does not name its newest operation: {error!r}.",
                remedy="Restore the fork's files from a backup of the same day as the table.",
            ) from error


# -- records ----------------------------------------------------------------------------------------------------------


def record_in(kv: ts.KvStore, operation_id: int) -> OperationRecord | None:
    """Read the record of an operation from a key space, which may be pinned to a generation; None if missing."""
    key = operation_key(operation_id)
    value = read_value(kv, key)
    return None if value is None else OperationRecord.decode(value, key)


def read_value(kv: ts.KvStore, key: str) -> bytes | None:
    """Read the value of one key of an OCDBT key space; None if it is missing."""
    result = retry_transport(lambda: kv.read(key).result(), what=f"reading {key}")
    return None if result.state == "missing" else bytes(result.value)


def records_in(kv: ts.KvStore, after: int = 0) -> list[OperationRecord]:
    """Read the records of committed operations with ids above ``after``, in order of their ids."""
    wanted = ts.KvStore.KeyRange(operation_key(after + 1), _after(OPERATIONS))

    def read() -> list[tuple[str, bytes]]:
        keys = sorted(key.decode() for key in kv.list(wanted).result())
        results = [future.result() for future in [kv.read(key) for key in keys]]
        # An operation may have been restored between the two steps.
        return [(key, bytes(r.value)) for key, r in zip(keys, results, strict=True) if r.state == "value"]

    found = retry_transport(read, what="listing the operations of a fork")
    return [OperationRecord.decode(value, key) for key, value in found]


def _after(prefix: str) -> str:
    """Return the first key that sorts after all keys with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


# -- fences -----------------------------------------------------------------------------------------------------------


def fence_in(kv: ts.KvStore, operation_id: int) -> str | None:
    """Read the token of the only owner that may commit an operation; None if no process has claimed it."""
    value = read_value(kv, fence_key(operation_id))
    return None if value is None else value.decode()


def write_fence(store: ocdbt.OcdbtStore, operation_id: int, owner: str) -> str | None:
    """Claim an operation for an owner; return the token of the owner that had claimed it before, or None."""
    key, value = fence_key(operation_id), owner.encode()
    # Only the first attempt can see the earlier owner: a later one may find what an earlier one has written.
    seen: list[str | None] = []

    def write() -> None:
        with store.transaction(repeatable_read=True) as transaction:
            kv = store.kv.with_transaction(transaction)
            found = kv.read(key).result()
            before = None if found.state == "missing" else bytes(found.value).decode()
            if before != owner or not seen:
                seen.append(before)
            if before != owner:
                kv.write(key, value).result()

    retry_transport(write, what=f"claiming operation {operation_id}")
    return seen[-1]


def fenced_off(operation_id: int, owner: str, holder: str | None) -> ConflictError:
    """Return the error for an owner that has lost its operation to another one."""
    return ConflictError(
        f"operation {operation_id} has been taken over by {holder!r}: {owner!r} may not commit it any more.",
        remedy="Nothing was written. See the operation's log for how it ended.",
    )


# -- generations ------------------------------------------------------------------------------------------------------


def store_at(store: ocdbt.OcdbtStore, generation: ocdbt.Version) -> ocdbt.OcdbtStore:
    """Open the same key space at one of its generations, or at a time; read-only."""
    return ocdbt.OcdbtStore({**store.spec, "version": generation}, context=store.context)


def first_generation(store: ocdbt.OcdbtStore, record: OperationRecord) -> int:
    """Return the first generation that holds a record which the latest generation holds.

    Raises
    ------
    NotFoundError
        If the history does not reach back to that generation.
    """
    key, value = operation_key(record.operation_id), record.encode()
    low, high = record.generation_before + 1, current_version(store.base).generation
    step = 1
    # It is mostly one of the next few generations, so the search starts there with growing steps.
    while low < high:
        probe = min(low + step - 1, (low + high) // 2)
        held = _holds(store, probe, key, value)
        if held is None:  # the history was shortened; the record may have been written since all the same
            oldest = oldest_generation(store.base).number
            if oldest <= probe or _holds(store, oldest, key, value) is not False:
                raise no_such_version(store.base, "the fork", probe)
            low, step = oldest + 1, 1
        elif held:
            high = probe
        else:
            low, step = probe + 1, 2 * step
    return low


def _holds(store: ocdbt.OcdbtStore, generation: int, key: str, value: bytes) -> bool | None:
    """Return whether a generation holds a value; None if the history does not reach back to it."""
    try:
        return read_value(store_at(store, generation).kv, key) == value
    except DamagedError as error:
        if error.code != "NOT_FOUND" or error.place is not None:
            raise
        return None


def generation_at(store: ocdbt.OcdbtStore, time: int, within: Box | None = None) -> int:
    """Return the last generation before the first commit of an operation later than ``time``, in milliseconds.

    With ``within``, only operations that changed voxels in this box count.
    """
    latest = current_version(store.base).generation
    later = [
        record
        for record in records_in(store.kv)
        if record.logical_time > time and (within is None or any(box.clip(within).volume for box in record.boxes))
    ]
    first = latest + 1
    for record in sorted(later, key=lambda r: r.generation_before):
        if record.generation_before + 1 >= first:
            break
        first = min(first, first_generation(store, record))
    return first - 1
