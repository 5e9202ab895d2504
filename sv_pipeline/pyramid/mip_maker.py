"""Makes voxels of coarser mips of a fork from the mip below in one transaction, and writes them where they differ.

This module knows no ledger and commits nothing; `parts` and `rebuild` do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.box_arrays import as_array, as_boxes, joined, parts_by_chunk
from sv_pipeline.algorithms.encoded_labels import BLOCK, downsample_encoded
from sv_pipeline.algorithms.pyramid import downsample
from sv_pipeline.algorithms.pyramid_blocks import BYTES_PER_VOXEL, PIECES, MipLevel, PyramidGeometry
from sv_pipeline.algorithms.voxel_blocks import VoxelBlock
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base.layout import step_factor
from sv_pipeline.segmentation.fork.digests import DigestWriter, StorageChunk, digest_writer
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.transactions import CheckedTransaction
from sv_pipeline.storage.chunk_encoder import ChunkEncoder
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.storage.retry import retry_transport

__all__ = ["ForkPyramid", "MipMaker", "PartReport", "boxes_within", "open_pyramid"]

AT_ONCE_BYTES = 32 << 20
"""Above this size, blocks are made mip by mip and in pieces, so that reading and computing overlap."""
AHEAD = 4
"""Greatest number of pieces that are read while one is computed."""
COMPUTED = 2
"""Number of pieces that are computed, or wait for it, while the one before is encoded and written."""
CHUNKS_READ_AT_ONCE = 16
PIECE_VOXELS = 1 << 20
"""Maximum number of voxels of the finer mip from which one piece is made: 8 MiB. For arrays of 16 MiB or more, glibc
asks the system for new pages each time, and to get these took longer than to decode the voxels."""

IntArray = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class ForkPyramid:
    """A fork that is open for writing its coarser mips."""

    store: OcdbtStore
    volume: VolumeInfo

    @cached_property
    def geometry(self) -> PyramidGeometry:
        """The fork's mips, in voxels relative to the start of the volume.

        Raises
        ------
        ConfigError
            If a mip cannot be made from the one below, because other software made it with an unsupported factor.
        """
        return PyramidGeometry(
            tuple(
                MipLevel(scale.size, scale.chunk_size, self._step(mip) if mip else (1, 1, 1))
                for mip, scale in enumerate(self.volume.scales)
            )
        )

    def _step(self, mip: int) -> Triple:
        factor, below = self.volume.factors(mip), self.volume.factors(mip - 1)
        step = step_factor(self.volume, mip) if _halves(factor, below) else None
        if step is None:
            raise ConfigError(
                f"mip {mip} of the fork has a factor of {factor}, and cannot be made from mip {mip - 1} with {below}: "
                "the ratio is not a power of two.",
                remedy=f"Populate the base again with ocdbt_config.mips = {mip}; coarser mips are then computed.",
            )
        return step

    def relative(self, boxes: Sequence[Box]) -> IntArray:
        """Return boxes of mip 0 as an array, shape (n, 2, 3), relative to the start of the volume."""
        return np.subtract(as_array(boxes), self.volume.bounds.start)

    def absolute(self, mip: int, box: Box) -> Box:
        """Convert a box that is relative to the start of a mip to absolute voxels of that mip."""
        return box.shifted(self.volume.scales[mip].voxel_offset)

    @cached_property
    def encoder(self) -> ChunkEncoder:
        """Encodes chunks of this volume."""
        info = retry_transport(lambda: self.store.kv.read("info").result(), what="reading the info file of a fork")
        return ChunkEncoder(bytes(info.value))

    def in_whole_chunks(self, mip: int, box: Box) -> bool:
        """Whether a box of a mip holds all of each storage chunk that it touches, and each chunk has its own key."""
        scale = self.volume.scales[mip]
        cut = np.mod([box.start, box.stop], scale.chunk_size) != 0
        cut[1] &= np.not_equal(box.stop, scale.size)
        return not cut.any() and not scale.sharded

    def can_stay_encoded(self, mip: int, box: Box) -> bool:
        """Whether a box of a mip consists of full storage chunks in the encoding that `downsample_encoded` supports."""
        scale = self.volume.scales[mip]
        known = scale.encoding == "compressed_segmentation" and scale.block_size == (BLOCK,) * 3
        full = not np.mod([box.start, box.stop], scale.chunk_size).any()
        return known and full and self.volume.data_type == "uint64" and not scale.sharded

    def chunk_keys(self, mip: int, box: Box) -> list[str]:
        """Return the keys in the fork of the storage chunks that a box touches, whether they are stored or not."""
        scale, size = self.volume.scales[mip], self.volume.scales[mip].chunk_size
        chunks, _ = parts_by_chunk(as_array([box]), size, hull=True)
        starts = chunks * size + scale.voxel_offset
        stops = np.minimum(starts + size, scale.bounds.stop)
        rows = np.concatenate([starts, stops], axis=1).tolist()
        return [f"{scale.key}/{a}-{d}_{b}-{e}_{c}-{f}" for a, b, c, d, e, f in rows]


def _halves(factor: Triple, below: Triple) -> bool:
    ratio = np.floor_divide(factor, below)
    return bool(np.all(ratio * below == factor) and np.all(ratio & (ratio - 1) == 0))


def open_pyramid(fork: Fork, *, large: bool = False) -> ForkPyramid:
    """Open a fork for work on its mips; raises NotFoundError if there is no fork.

    ``large`` says that much of the volume is worked on: each voxel is then read once, and no voxels are kept in a cache
    that would come on top of the memory budget.
    """
    store = OcdbtStore(fork.spec(), context=uncached_context()) if large else fork.store()
    return ForkPyramid(store, fork.base_info().volume)


@dataclass
class PartReport:
    """The work that was done for one part, or summed over many."""

    commits: int = 0
    conflicts: int = 0
    """Number of times that a part was made again because another process had changed its input."""
    left: int = 0
    """Number of parts that were given up for that reason; they are still in the ledger."""
    voxels: int = 0
    """Number of voxels of mip 0 in the boxes that were worked on."""
    chunks_made: int = 0
    """Number of storage chunks of coarser mips that were computed."""
    chunks_written: int = 0
    """Number of computed storage chunks that differed and were written."""
    seconds_voxels: float = 0.0
    """Time for reading and computing voxels."""
    seconds_commit: float = 0.0

    def add(self, other: PartReport) -> None:
        """Add another report to this one."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True)
class _Result:
    """What was computed for one piece of a mip."""

    piece: Box
    labels: Labels
    stored: list[ts.Future[Any]]
    """What is stored: the bytes of each storage chunk if the new ones are being encoded, else all labels."""
    encoding: ts.WriteFutures | None
    """The encoding, once it has begun; None if the piece has parts of storage chunks."""


@dataclass
class MipMaker:
    """Makes coarser mips in one transaction."""

    pyramid: ForkPyramid
    checked: CheckedTransaction
    memory_budget: int
    report: PartReport
    _made: list[tuple[Box, Labels]] = field(default_factory=list)
    """Boxes and labels of the mip made last, if everything is made at once."""
    _made_mip: int | None = None
    _chunks: dict[str, bytes] = field(default_factory=dict)
    """Encoded storage chunks of the mip made last, by key, whether they were written or not; empty for background. Keys
    cannot be read in the transaction that writes them (see `CheckedTransaction`)."""

    def make(self, boxes: IntArray) -> None:
        """Make all coarser mips of boxes of mip 0, shape (n, 2, 3)."""
        geometry = self.pyramid.geometry
        at_once = geometry.bytes_whole(boxes) <= min(self.memory_budget, AT_ONCE_BYTES)
        for mip, work in enumerate(geometry.affected(boxes), start=1):
            self.make_mip(mip, work, at_once=at_once)

    def make_mip(self, mip: int, work: IntArray, *, at_once: bool = False) -> IntArray:
        """Make boxes of one mip, and return the boxes of those parts of storage chunks that differed."""
        level = self.pyramid.geometry.levels[mip]
        pieces = as_boxes(work)
        ahead = len(pieces)
        if not at_once:
            ratio, room = int(np.prod(level.step)), int(PIECES * self.memory_budget) // BYTES_PER_VOXEL
            limit = min(room // (2 * ratio + 4), PIECE_VOXELS // ratio)
            pieces = [piece for box in pieces for piece in boxes_within(box, level.chunk_size, limit)]
            # In memory are the finer voxels of the pieces that are read ahead and of one more, and their results.
            largest = max((piece.volume for piece in pieces), default=1)
            ahead = max(1, min(AHEAD, room // (largest * (ratio + 2)) - 1))
        written: list[IntArray] = [as_array([])]
        cut_off: list[IntArray] = [as_array([])]
        made: list[tuple[Box, Labels]] = []
        chunks: dict[str, bytes] = {}
        with digest_writer(self.pyramid.volume) as digests:
            for result in self._computed(mip, pieces, ahead, encode=not at_once):
                changed, writes = self._write(mip, result, chunks)
                written.append(changed)
                cut_off.append(self._add_digests(digests, mip, result.piece, result.labels, changed))
                for write in writes:
                    write.result()
                if at_once:
                    made.append((result.piece, result.labels))
            self._read_digests(digests, mip, np.concatenate(cut_off))
            digests.write(self._kv)
        self._made, self._made_mip, self._chunks = made, mip, chunks
        return np.concatenate(written)

    def _add_digests(self, digests: DigestWriter, mip: int, piece: Box, labels: Labels, changed: IntArray) -> IntArray:
        """Add the digests of the storage chunks that were changed; return the parts that are not whole chunks."""
        level = self.pyramid.geometry.levels[mip]
        size = np.asarray(level.chunk_size)
        starts = changed[:, 0] // size * size
        whole = (changed == np.stack([starts, np.minimum(starts + size, level.size)], axis=1)).all(axis=(1, 2))
        for box in as_boxes(changed[whole]):
            inside = labels[box.shifted(np.negative(piece.start)).slices]
            digests.add(VoxelBlock(self.pyramid.absolute(mip, box), inside), mip)
        return np.asarray(changed[~whole])

    def _read_digests(self, digests: DigestWriter, mip: int, parts: IntArray) -> None:
        """Add the digests of the storage chunks of which only parts were changed, from their voxels as they are now."""
        scale = self.pyramid.volume.scales[mip]
        starts = np.unique(parts[:, 0] // np.asarray(scale.chunk_size), axis=0)
        boxes = [StorageChunk(mip, (x, y, z)).box(scale) for x, y, z in starts.tolist()]
        for first in range(0, len(boxes), CHUNKS_READ_AT_ONCE):
            some = boxes[first : first + CHUNKS_READ_AT_ONCE]
            reads = [self._array(mip)[box.slices].read(order="F") for box in some]
            for box, read in zip(some, reads, strict=True):
                digests.add(VoxelBlock(box, read.result()), mip)

    def _write(self, mip: int, result: _Result, chunks: dict[str, bytes]) -> tuple[IntArray, list[ts.Future[Any]]]:
        """Write the storage chunks of a piece, or parts of them, that differ; return their boxes, and the writes.

        Encoded chunks are added to ``chunks``.
        """
        _, parts = parts_by_chunk(as_array([result.piece]), self.pyramid.geometry.levels[mip].chunk_size, hull=True)
        self.report.chunks_made += len(parts)
        if result.encoding is None:
            changed, writes = self._write_voxels(mip, result, parts)
        else:
            changed, writes = self._write_encoded(mip, result, parts, chunks)
        self.report.chunks_written += len(changed)
        return changed, writes

    def _write_voxels(self, mip: int, result: _Result, parts: IntArray) -> tuple[IntArray, list[ts.Future[Any]]]:
        stored = result.stored[0].result()
        different = result.labels != stored
        if not different.any():
            return parts[:0], []
        inside = as_boxes(parts - np.asarray(result.piece.start))
        changed = parts[np.array([different[box.slices].any() for box in inside], bool)]
        target, writes = self._array(mip), []
        for box in as_boxes(joined(changed)):
            labels = result.labels[box.shifted(np.negative(result.piece.start)).slices]
            place = target[self.pyramid.absolute(mip, box).slices]
            # Nothing changes the labels any more, so the transaction needs no copy of them.
            writes.append(place.write(labels, can_reference_source_data_indefinitely=True).commit)
        return changed, writes

    def _write_encoded(
        self, mip: int, result: _Result, parts: IntArray, chunks: dict[str, bytes]
    ) -> tuple[IntArray, list[ts.Future[Any]]]:
        assert result.encoding is not None
        keys = self.pyramid.chunk_keys(mip, result.piece)
        result.encoding.result()
        changed, writes = [], []
        for number, (key, new) in enumerate(zip(keys, self.pyramid.encoder.take(keys), strict=True)):
            found = result.stored[number].result()
            stored = bytes(found.value) if found.state == "value" else None
            if stored == new or (stored is not None and self._same_voxels(mip, result, Box.of(*parts[number]))):
                chunks[key] = stored or b""
                continue
            chunks[key] = new or b""
            changed.append(number)
            writes.append(self._kv.write(key, new))
        return parts[changed], writes

    def _same_voxels(self, mip: int, result: _Result, box: Box) -> bool:
        """Whether a stored chunk has the new voxels; other software may have encoded them differently.

        The bytes were read in the transaction, so it fails if they change; a transaction would keep the voxels, too.
        """
        stored = self.checked.before.array(mip)[self.pyramid.absolute(mip, box).slices].read(order="F").result()
        return bool((result.labels[box.shifted(np.negative(result.piece.start)).slices] == stored).all())

    def _computed(self, mip: int, pieces: list[Box], ahead: int, *, encode: bool) -> Iterator[_Result]:
        """Yield the result of each piece; the next pieces are computed in a thread meanwhile, and encoded in others.

        ``encode`` says whether pieces of whole storage chunks are encoded at once.
        """
        with ThreadPoolExecutor(1) as computer:
            started = deque(self._start(mip, piece, encode=encode) for piece in pieces[:ahead])
            computed = deque(computer.submit(started.popleft()) for _ in pieces[: min(ahead, COMPUTED)])
            for number in range(len(pieces)):
                result = computed.popleft().result()
                if number + ahead < len(pieces):
                    started.append(self._start(mip, pieces[number + ahead], encode=encode))
                if started:
                    computed.append(computer.submit(started.popleft()))
                yield result

    def _start(self, mip: int, piece: Box, *, encode: bool) -> Callable[[], _Result]:
        """Start to read what a piece needs, and what is stored; return a function that computes it."""
        compute = self._start_to_compute(mip, piece)
        encode = encode and self.pyramid.in_whole_chunks(mip, piece)
        stored = self._read_chunks(mip, piece) if encode else [self._read(mip, piece)]

        def result() -> _Result:
            labels = compute()
            begun = self.pyramid.encoder.begin(mip, self.pyramid.absolute(mip, piece), labels) if encode else None
            return _Result(piece, labels, stored, begun)

        return result

    def _start_to_compute(self, mip: int, piece: Box) -> Callable[[], Labels]:
        below = self.pyramid.geometry.footprint(mip, piece)
        for box, labels in self._made:
            if below.clip(box) == below:
                return partial(self._pooled, mip, piece, labels[below.shifted(np.negative(box.start)).slices])
        if self.pyramid.can_stay_encoded(mip - 1, below):
            if self._made_mip != mip - 1:
                return partial(self._pooled_encoded, mip, piece, below, self._read_chunks(mip - 1, below))
            chunks = [self._chunks.get(key) for key in self.pyramid.chunk_keys(mip - 1, below)]
            if None not in chunks:
                return partial(self._pooled_encoded, mip, piece, below, chunks)
        return partial(self._pooled, mip, piece, self._read(mip - 1, below))

    def _pooled(self, mip: int, piece: Box, fine: Labels | ts.Future[Labels]) -> Labels:
        labels = fine if isinstance(fine, np.ndarray) else fine.result()
        return downsample(labels, self.pyramid.geometry.levels[mip].step)[Box.of((0, 0, 0), piece.shape).slices]

    def _pooled_encoded(self, mip: int, piece: Box, below: Box, encoded: list[Any]) -> Labels:
        finer, level = self.pyramid.geometry.levels[mip - 1 : mip + 1]
        x, y, z = np.floor_divide(below.shape, finer.chunk_size).tolist()
        chunks = [each if isinstance(each, bytes) else bytes(each.result().value) for each in encoded]
        labels = downsample_encoded(chunks, (x, y, z), finer.chunk_size, level.step)
        return self._pooled(mip, piece, self._read(mip - 1, below)) if labels is None else labels

    def _read_chunks(self, mip: int, box: Box) -> list[ts.Future[Any]]:
        """Start to read the stored bytes of the chunks that a box touches, z fastest."""
        keys = self.pyramid.chunk_keys(mip, box)
        if mip == 0:
            self.checked.keys_before.update(keys)
            return [self.checked.before.kv.read(key) for key in keys]
        self.checked.keys.update(keys)
        return [self._kv.read(key) for key in keys]

    def _read(self, mip: int, box: Box) -> ts.Future[Labels]:
        keys = self.pyramid.chunk_keys(mip, box)
        place = self.pyramid.absolute(mip, box).slices
        if mip == 0:
            self.checked.keys_before.update(keys)
            return self.checked.before.array(0)[place].read(order="F")
        self.checked.keys.update(keys)
        return self._array(mip)[place].read(order="F")

    @cached_property
    def _kv(self) -> ts.KvStore:
        return self.pyramid.store.kv.with_transaction(self.checked.transaction)

    def _array(self, mip: int) -> ts.TensorStore:
        return self.pyramid.store.array(mip).with_transaction(self.checked.transaction)


def boxes_within(box: Box, chunk: Triple, limit: int) -> list[Box]:
    """Divide a box into pieces of whole storage chunks of at most ``limit`` voxels, unless one chunk alone has more."""
    waiting, result = [box], []
    while waiting:
        piece = waiting.pop()
        first, last = np.floor_divide(piece.start, chunk), -(-np.asarray(piece.stop) // np.asarray(chunk))
        axis = int(np.argmax(np.where(last - first > 1, piece.shape, 0)))
        if piece.volume <= limit or (last - first)[axis] < 2:
            result.append(piece)
            continue
        stop, start = list(piece.stop), list(piece.start)
        stop[axis] = start[axis] = int((first[axis] + last[axis]) // 2 * chunk[axis])
        waiting += [Box.of(start, piece.stop), Box.of(piece.start, stop)]
    return result
