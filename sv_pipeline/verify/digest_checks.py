"""Checks of a fork's own storage chunks: voxels against the digests of their commits, supervoxels against the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import fastremap
import numpy as np

from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.segmentation.fork.digests import StorageChunk, agrees, made_anew
from sv_pipeline.segmentation.fork.own_chunks import OwnChunks, own_chunks
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.table import keys
from sv_pipeline.table.columns import FORMER_IDS
from sv_pipeline.table.interface import Table
from sv_pipeline.verify.blocks import ALL, Share, in_order, read_box, readable, sampled
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.volumes import StoredVolume

__all__ = ["OwnVoxels", "check_digests", "check_lineage", "read_own"]

DAMAGED = (
    "voxels of the fork differ from those that were written, according to the digest of their commit: a file of the "
    "fork is damaged. Restore the fork's folder and the table from backups of one day."
)
OTHERS = (
    "other software or an older version has overwritten a storage chunk without a digest: its voxels cannot be "
    "compared."
)
UNTOLD = (
    "voxels of the fork do not match their digest, and the history does not reach back to the commit that wrote them: "
    "a file is damaged, or other software wrote them."
)
UNREADABLE = "a storage chunk of the fork cannot be read: restore the fork's folder from a backup."
STRANGE = (
    "a voxel of the fork has an id that does not descend from the base's supervoxel there: the fork is damaged, "
    "or holds an edit that the table does not know."
)


@dataclass(frozen=True)
class OwnVoxels:
    """The storage chunks that a fork holds itself instead of the base, as far as they are checked."""

    fork: StoredVolume
    found: OwnChunks
    chunks: Sequence[StorageChunk]
    workers: int
    advance: Callable[[int, int], None] | None
    population: dict[bool, int] = field(default_factory=dict)
    """Number of storage chunks in all: of all mips (False) and of mip 0 (True)."""

    def box(self, chunk: StorageChunk) -> Box:
        """Box of a storage chunk, in voxels of its mip."""
        return chunk.box(self.fork.info.scales[chunk.mip])

    def place(self, chunk: StorageChunk) -> str:
        """Name of a storage chunk, for a finding."""
        corner = ",".join(map(str, self.box(chunk).start))
        return f"mip {chunk.mip} voxel {corner} (storage chunk {self.box(chunk)})"


def read_own(
    fork: StoredVolume,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    advance: Callable[[int, int], None] | None = None,
    within: Sequence[Box] | None = None,
    share: Share = ALL,
) -> OwnVoxels:
    """List the storage chunks that a fork holds itself.

    Parameters
    ----------
    within
        Boxes in voxels of mip 0; only chunks that touch one of them are listed. Default: all chunks.
    """
    assert fork.store is not None
    with readable("the tree of the fork cannot be read"):
        found = own_chunks(fork.store, fork.info)
    chunks = found.every
    if within is not None:
        chunks = [chunk for chunk, touched in zip(chunks, _touching(chunks, fork.info, within), strict=True) if touched]
    population = {False: len(chunks), True: sum(chunk.mip == 0 for chunk in chunks)}
    return OwnVoxels(fork, found, share.of(sampled(chunks, sample, seed)), workers, advance, population)


def _touching(chunks: Sequence[StorageChunk], volume: VolumeInfo, boxes: Sequence[Box]) -> list[bool]:
    """Whether each chunk overlaps any of the boxes, which are in voxels of mip 0."""
    starts = np.array([box.start for box in boxes], np.int64).reshape(-1, 3) - volume.bounds.start
    stops = np.array([box.stop for box in boxes], np.int64).reshape(-1, 3) - volume.bounds.start
    spans = [np.multiply(volume.scales[mip].chunk_size, volume.factors(mip)) for mip in range(len(volume.scales))]

    def touched(chunk: StorageChunk) -> bool:
        first = np.multiply(chunk.number, spans[chunk.mip])
        return bool(((starts < first + spans[chunk.mip]) & (first < stops)).all(axis=1).any())

    return [touched(chunk) for chunk in chunks]


# -- digests ----------------------------------------------------------------------------------------------------------


def check_digests(outcome: Outcome, own: OwnVoxels) -> None:
    """Check that every storage chunk of the fork holds what its commit wrote."""
    outcome.population = own.population[False]
    stores = {mip: own.fork.open(mip) for mip in {chunk.mip for chunk in own.chunks}}

    def judge(chunk: StorageChunk) -> str | None:
        digest = own.found.digests.get(chunk)
        if digest is None and chunk in own.found.inline:
            return None  # it is stored inside a node of the tree, which has a checksum
        try:
            voxels = read_box(stores[chunk.mip], own.box(chunk), f"fork mip {chunk.mip}")
        except CorruptionError as error:
            return f"{UNREADABLE} {error.message}"
        same = None if digest is None else agrees(digest, voxels)
        return None if same else OTHERS if same is None else _why(own, chunk)

    for number, (chunk, message) in enumerate(
        zip(own.chunks, in_order(judge, own.chunks, own.workers), strict=True), start=1
    ):
        outcome.checked += 1
        if message == OTHERS:
            outcome.warning(message, own.place(chunk))
        elif message is not None:
            outcome.error(message, own.place(chunk))
            outcome.damaged += 1
        if own.advance is not None:
            own.advance(number, len(own.chunks))


def _why(own: OwnVoxels, chunk: StorageChunk) -> str:
    """Explain why the voxels of a chunk do not match its digest."""
    assert own.fork.store is not None
    with readable("the history of the fork cannot be read"):
        anew = made_anew(own.fork.store, chunk.key(own.fork.info.scales[chunk.mip]), chunk.digest_key)
    return {True: DAMAGED, False: OTHERS, None: UNTOLD}[anew]


# -- lineage ----------------------------------------------------------------------------------------------------------


@dataclass
class _Origins:
    """The supervoxels that others descend from, looked up when needed."""

    table: Table
    _former: dict[int, UInt64Array] = field(default_factory=dict)
    """The supervoxels from which each one was made; empty for supervoxels of the ingest."""

    def descends(self, later: UInt64Array, earlier: UInt64Array) -> list[bool]:
        """Whether each supervoxel of ``later`` descends from its counterpart in ``earlier``, and from no other."""
        self._look_up(later)
        return [self._of(int(new)) == {int(old)} for new, old in zip(later, earlier, strict=True)]

    def _of(self, supervoxel: int) -> set[int]:
        origins: set[int] = set()
        waiting, seen = [supervoxel], set[int]()
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            former = self._former[one].tolist()
            waiting += former
            if not former:
                origins.add(one)
        return origins

    def _look_up(self, supervoxels: UInt64Array) -> None:
        wanted = np.unique(supervoxels)
        while len(wanted := wanted[[int(one) not in self._former for one in wanted]]):
            rows = self.table.read_rows(keys.node_keys(wanted), [FORMER_IDS.key], newest_only=True)
            none = np.zeros(0, np.uint64)
            for one, key in zip(wanted.tolist(), keys.node_keys(wanted), strict=True):
                former = FORMER_IDS.newest(rows.get(key))
                self._former[one] = none if former is None else former
            wanted = np.unique(np.concatenate([self._former[one] for one in wanted.tolist()]))


def check_lineage(outcome: Outcome, own: OwnVoxels, base: StoredVolume, table: Table) -> None:
    """Check that every supervoxel in the fork's own chunks descends from the base's supervoxel at the same voxels."""
    outcome.population = own.population[True]
    chunks = [chunk for chunk in own.chunks if chunk.mip == 0]
    if not chunks:
        return
    now, before, origins = own.fork.open(0), base.open(0), _Origins(table)

    def pairs(chunk: StorageChunk) -> tuple[UInt64Array, UInt64Array, Box] | str:
        box = own.box(chunk)
        try:
            have = read_box(now, box, "fork mip 0")
            base_has = read_box(before, box, "base mip 0")
        except CorruptionError as error:
            return f"{UNREADABLE} {error.message}"
        return have, base_has, box

    for number, (chunk, read) in enumerate(zip(chunks, in_order(pairs, chunks, own.workers), strict=True), start=1):
        outcome.checked += 1
        known = sum(finding.count for finding in outcome.findings)
        if isinstance(read, str):
            outcome.error(read, own.place(chunk))
        else:
            _resolve(outcome, origins, *read)
        outcome.damaged += known < sum(finding.count for finding in outcome.findings)
        if own.advance is not None:
            own.advance(number, len(chunks))


def _resolve(outcome: Outcome, origins: _Origins, have: UInt64Array, base_has: UInt64Array, box: Box) -> None:
    at = np.flatnonzero((have != base_has).ravel(order="F"))
    if not len(at):
        return
    new, old = have.ravel(order="F")[at], base_has.ravel(order="F")[at]
    names, index = fastremap.unique(new, return_inverse=True)
    olds, old_index = fastremap.unique(old, return_inverse=True)
    distinct, first, counts = np.unique(
        index.astype(np.int64) * len(olds) + old_index.astype(np.int64), return_index=True, return_counts=True
    )
    later, earlier = names[distinct // len(olds)], olds[distinct % len(olds)]
    background = (later == 0) | (earlier == 0)
    right = np.zeros(len(distinct), np.bool_)
    right[~background] = origins.descends(later[~background], earlier[~background])
    for one in np.flatnonzero(~right):
        voxel = np.array(np.unravel_index(at[first[one]], have.shape, order="F")) + box.start
        place = ",".join(map(str, voxel.tolist()))
        outcome.error(STRANGE, f"voxel {place} (is {int(later[one])}, base {int(earlier[one])})", int(counts[one]))
