"""Commits the voxels of an edit to a fork, and restores them. The caller decides which voxels change.

One edit is one generation or none. One atomic transaction holds

- the voxels of whole storage chunks, only those that changed;
- the operation's record, on the condition that there was none;
- its pending key, for the job that makes coarser mips;
- the digest of each storage chunk that it writes (`digests`).

It has the further condition that the operation's fence has not changed, that is, no other process has taken over the
operation.

Storage may apply a commit and lose the answer. TensorStore then commits again by itself, but this fails on the
condition on the record, which exists by now; a process that finds its own record there has committed. So a commit is
never made twice (without this condition there would be two generations), and its outcome is known unless storage stays
unavailable. Conditions that fail for other reasons are detected before the commit; `transactions` explains why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConflictError, CorruptionError, DamagedError, InputError, UnavailableError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.fork.digests import digest_writer
from sv_pipeline.segmentation.fork.horizon import no_such_version
from sv_pipeline.segmentation.fork.pending import add_to_entry
from sv_pipeline.segmentation.fork.records import (
    NEWEST,
    Newest,
    OperationRecord,
    fence_key,
    fenced_off,
    first_generation,
    operation_key,
    pending_key,
    record_in,
    store_at,
)
from sv_pipeline.segmentation.fork.transactions import ChangedError, checked_transaction
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.generations import current_version
from sv_pipeline.storage.history import oldest_generation
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.storage.retry import TRANSPORT_CODES, retry_transport, status_code

__all__ = ["CommitResult", "EditCommit", "commit_edit", "restore_operation"]

ATTEMPTS = 8
BACKOFF = Backoff(0.1, 10.0)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EditCommit:
    """The voxels of one edit, and the contents of its record."""

    operation_id: int
    blocks: Sequence[VoxelBlock]
    """Voxels of the base mip in whole storage chunks, only those that changed."""
    generation_before: int
    """Generation at which the voxels were read, under the edit's locks."""
    logical_time: int
    """Logical time of the edit, in milliseconds since the epoch."""
    owner: str
    """Token of the process that commits; different for each attempt at the operation as a whole."""
    boxes: tuple[Box, ...] | None = None
    """Boxes that the record and the pending key list as changed; by default those of the blocks."""
    identity: str | None = None
    """Identity of the operation, which its record names."""
    graph: str | None = None
    """Identity of the graph. If it is given, the fork also records this operation as its newest."""


@dataclass(frozen=True)
class CommitResult:
    """A commit that was made."""

    generation: int
    """The generation that it made."""
    record: OperationRecord


def commit_edit(store: ocdbt.OcdbtStore, volume: VolumeInfo, edit: EditCommit) -> CommitResult:
    """Commit the voxels of an edit; see `Fork.commit`."""
    boxes = tuple(block.box for block in edit.blocks) if edit.boxes is None else edit.boxes
    if not boxes:
        raise InputError(f"operation {edit.operation_id} changes no voxels: there is nothing to commit.")
    for box in boxes:
        if box.clip(volume.bounds) != box:
            raise InputError(
                f"operation {edit.operation_id} changes {box}, which is not inside the volume ({volume.bounds})."
            )
    record = OperationRecord(
        edit.operation_id, boxes, (0,), edit.generation_before, edit.logical_time, edit.owner, edit.identity
    )

    def write(transaction: ts.Transaction) -> None:
        kv, voxels = store.kv.with_transaction(transaction), store.array(0).with_transaction(transaction)
        futures: list[Any] = []
        with digest_writer(volume) as digests:
            for block in edit.blocks:
                # Blocks are computed for this commit, and nothing changes them: the transaction needs no copy of them.
                place = voxels[block.box.slices]
                futures.append(place.write(_checked(block), can_reference_source_data_indefinitely=True))
                digests.add(block)
            digests.write(kv)
        if len(volume.scales) > 1:
            add_to_entry(kv, edit.operation_id, boxes)
        futures.append(kv.write(operation_key(edit.operation_id), record.encode()))
        if edit.graph is not None and edit.identity is not None:
            newest = Newest(edit.graph, edit.operation_id, edit.identity)
            futures.append(kv.write(NEWEST, newest.encode()))  # without a condition: the last commit wins
        for future in futures:
            future.result()

    ocdbt.require_one_store(store.kv, store.array(0))
    before = current_version(store.base).generation
    _commit(store, _Change(edit.operation_id, None, record.encode(), edit.owner, must_hold_fence=False), write)
    generation = _generation(store, record, before)
    _logger.info("operation %d: %d boxes, generation %d of %s", edit.operation_id, len(boxes), generation, store.folder)
    return CommitResult(generation, record)


def restore_operation(
    store: ocdbt.OcdbtStore,
    volume: VolumeInfo,
    operation_id: int,
    owner: str,
    boxes: Sequence[Box] | None = None,
    generation: ocdbt.Version | None = None,
) -> bool:
    """Restore the voxels that an operation changed, and remove its record; see `Fork.restore`."""
    record = record_in(store.kv, operation_id)
    if record is not None:
        boxes, generation = record.boxes, record.generation_before
    if boxes is None or generation is None:
        return False
    if isinstance(generation, int) and generation < oldest_generation(store.base).number:
        raise no_such_version(store.base, "the fork", generation)  # TensorStore may have a part of it in its cache
    old = _array_at(store, generation)
    old_keys = store_at(store, generation).kv

    def write(transaction: ts.Transaction) -> None:
        kv, voxels = store.kv.with_transaction(transaction), store.array(0).with_transaction(transaction)
        futures: list[Any] = []
        with digest_writer(volume) as digests:
            for box in boxes:
                block = VoxelBlock(box, np.asarray(old[box.slices].read(order="F").result(), np.uint64))
                futures.append(voxels[box.slices].write(block.voxels))
                digests.add(block)
            digests.keep(old_keys)
            digests.write(kv)
        if len(volume.scales) > 1:
            add_to_entry(kv, operation_id, boxes)
        futures.append(kv.write(operation_key(operation_id), None))
        for future in futures:
            future.result()

    there = None if record is None else record.encode()
    _commit(store, _Change(operation_id, there, None, owner, must_hold_fence=True), write)
    _logger.info("operation %d: voxels of generation %s put back in %s", operation_id, generation, store.folder)
    return True


# -- the transaction --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """The change of an operation's record in the commit of its voxels."""

    operation_id: int
    before: bytes | None
    after: bytes | None
    owner: str
    must_hold_fence: bool
    """Whether ``owner`` must hold the fence; otherwise it is enough that no process holds it."""


def _commit(store: ocdbt.OcdbtStore, change: _Change, write: Callable[[ts.Transaction], None]) -> None:
    """Write in one transaction that changes the record; exactly once, even if answers get lost."""
    what = f"committing operation {change.operation_id}"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(store, change, write)
        except Exception as error:
            if status_code(error) not in TRANSPORT_CODES and not isinstance(error, ChangedError):
                raise
            if attempt == ATTEMPTS:
                raise UnavailableError(
                    f"{what}: no success after {attempt} attempts, last error: {error}",
                    remedy="It may still be in: recover the operation once storage can be reached.",
                ) from error
            delay = BACKOFF.jittered(attempt)
            _logger.info("%s: %r; looking whether it is in, in %.2f s", what, error, delay)
            time.sleep(delay)
        else:
            return


def _attempt(store: ocdbt.OcdbtStore, change: _Change, write: Callable[[ts.Transaction], None]) -> None:
    key = operation_key(change.operation_id)
    with checked_transaction(store) as checked:
        kv = store.kv.with_transaction(checked.transaction)
        # These reads are conditions of the commit: their results must still hold when it is made.
        checked.keys |= {key, fence_key(change.operation_id), pending_key(change.operation_id)}
        _check_fence(kv, change)
        found = kv.read(key).result()
        value = None if found.state == "missing" else bytes(found.value)
        if value == change.after != change.before:
            return  # an earlier attempt was applied, but its answer was lost
        if value != change.before:
            by = "nobody" if value is None else repr(OperationRecord.decode(value, key).owner)
            raise ConflictError(
                f"the voxels of operation {change.operation_id} are not as {change.owner!r} has left them: the last "
                f"to commit them was {by}.",
                remedy="Nothing was written. If that was an earlier try, restore the operation before trying again.",
            )
        write(checked.transaction)


def _check_fence(kv: ts.KvStore, change: _Change) -> None:
    found = kv.read(fence_key(change.operation_id)).result()
    holder = None if found.state == "missing" else bytes(found.value).decode()
    if holder is None and change.must_hold_fence:
        raise ConflictError(
            f"{change.owner!r} has not claimed operation {change.operation_id}.",
            remedy="Take its fence first (Fork.take_fence).",
        )
    if holder not in (None, change.owner):
        raise fenced_off(change.operation_id, change.owner, holder)


def _checked(block: VoxelBlock) -> npt.NDArray[np.uint64]:
    if block.voxels.dtype != np.uint64 or block.voxels.shape != block.box.shape:
        raise InputError(f"voxels of {block.box} must be uint64 of its shape, not {block.voxels.dtype}.")
    return block.voxels


def _generation(store: ocdbt.OcdbtStore, record: OperationRecord, before: int) -> int:
    """Return the generation that a commit made; raise CorruptionError if there was more than one."""
    after = current_version(store.base).generation
    if after == before + 1:
        return after
    # Other processes have committed as well, or the commit was made before: check that voxels came with the record.
    generation, box = first_generation(store, record), record.boxes[-1]

    def at(when: int) -> npt.NDArray[np.uint64]:
        array = _array_at(store, when)
        return retry_transport(lambda: array[box.slices].read().result(), what=f"reading {box} back")

    planned_on, previous, current = (at(when) for when in (record.generation_before, generation - 1, generation))
    if np.array_equal(previous, current) and not np.array_equal(planned_on, current):
        raise CorruptionError(
            f"operation {record.operation_id} was committed in more than one generation of the fork.",
            remedy="Voxels and keys must be written through one OcdbtStore; restore the operation.",
        )
    return generation


def _array_at(store: ocdbt.OcdbtStore, generation: ocdbt.Version) -> ts.TensorStore:
    try:
        return retry_transport(lambda: store_at(store, generation).array(0), what=f"opening generation {generation}")
    except DamagedError as error:
        if error.code != "NOT_FOUND" or error.place is not None:
            raise
        raise no_such_version(store.base, "the fork", generation) from error
