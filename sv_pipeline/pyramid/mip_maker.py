"""Makes voxels of coarser mips of a fork from the mip below in one transaction, and writes them where they differ.

This module knows no ledger and commits nothing; `parts` and `rebuild` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property, partial

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
from sv_pipeline.storage.context import uncached_context
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.storage.precomputed import VolumeInfo

__all__ = ["ForkPyramid", "MipMaker", "PartReport", "boxes_within", "open_pyramid"]

AT_ONCE_BYTES = 32 << 20
"""Above this size, blocks are made mip by mip and in pieces, so that reading and computing overlap."""
AHEAD = 4
"""Greatest number of pieces that are read while one is computed."""
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

    def in_whole_chunks(self, box: Box) -> bool:
        """Whether a box of mip 0 consists of whole storage chunks, as far as `downsample_encoded` supports them."""
        scale, size = self.volume.scales[0], np.asarray(self.volume.scales[0].chunk_size)
        known = scale.encoding == "compressed_segmentation" and scale.block_size == (BLOCK,) * 3
        whole = not (np.mod(box.start, size).any() or np.mod(box.stop, size).any())
        return known and whole and self.volume.data_type == "uint64" and not scale.sharded

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


@dataclass
class MipMaker:
    """Makes coarser mips in one transaction."""

    pyramid: ForkPyramid
    checked: CheckedTransaction
    memory_budget: int
    report: PartReport
    _made: list[tuple[Box, Labels]] = field(default_factory=list)
    """Boxes and labels of the mip made last, if everything is made at once."""

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
        target = self._array(mip)
        written: list[IntArray] = [as_array([])]
        cut_off: list[IntArray] = [as_array([])]
        made: list[tuple[Box, Labels]] = []
        with digest_writer(self.pyramid.volume) as digests:
            for piece, labels, stored in self._computed(mip, pieces, ahead):
                changed = self._changed(mip, piece, labels, stored)
                written.append(changed)
                writes = []
                for box in as_boxes(joined(changed)):
                    inside = labels[box.shifted(np.negative(piece.start)).slices]
                    place = target[self.pyramid.absolute(mip, box).slices]
                    # Nothing changes the labels any more, so the transaction needs no copy of them.
                    writes.append(place.write(inside, can_reference_source_data_indefinitely=True))
                cut_off.append(self._add_digests(digests, mip, piece, labels, changed))
                for write in writes:
                    write.result()
                if at_once:
                    made.append((piece, labels))
            self._read_digests(digests, mip, np.concatenate(cut_off))
            digests.write(self.pyramid.store.kv.with_transaction(self.checked.transaction))
        self._made = made
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

    def _changed(self, mip: int, piece: Box, labels: Labels, stored: Labels) -> IntArray:
        """Boxes of the parts of storage chunks in which labels differ from the stored ones."""
        _, parts = parts_by_chunk(as_array([piece]), self.pyramid.geometry.levels[mip].chunk_size, hull=True)
        self.report.chunks_made += len(parts)
        different = labels != stored
        if not different.any():
            return parts[:0]
        inside = as_boxes(parts - np.asarray(piece.start))
        chosen = parts[np.array([different[box.slices].any() for box in inside], bool)]
        self.report.chunks_written += len(chosen)
        return np.asarray(chosen)

    def _computed(self, mip: int, pieces: list[Box], ahead: int) -> Iterator[tuple[Box, Labels, Labels]]:
        """Yield each piece with its new and its stored labels; the next piece is computed in a thread meanwhile."""
        with ThreadPoolExecutor(1) as computer:
            started = [self._start(mip, piece) for piece in pieces[:ahead]]
            computed = [computer.submit(compute) for compute, _ in started[:1]]
            for number, piece in enumerate(pieces):
                if number + ahead < len(pieces):
                    started.append(self._start(mip, pieces[number + ahead]))
                labels, (_, stored) = computed.pop().result(), started.pop(0)
                computed = [computer.submit(compute) for compute, _ in started[:1]]
                yield piece, labels, stored.result()

    def _start(self, mip: int, piece: Box) -> tuple[Callable[[], Labels], ts.Future[Labels]]:
        """Start to read what a piece needs; return a function that computes its labels, and the stored ones."""
        below = self.pyramid.geometry.footprint(mip, piece)
        stored = self._read(mip, piece)
        for box, labels in self._made:
            if below.clip(box) == below:
                return partial(self._pooled, mip, piece, labels[below.shifted(np.negative(box.start)).slices]), stored
        if mip == 1 and self.pyramid.in_whole_chunks(below):
            return partial(self._pooled_encoded, piece, below, self._read_encoded(below)), stored
        return partial(self._pooled, mip, piece, self._read(mip - 1, below)), stored

    def _pooled(self, mip: int, piece: Box, fine: Labels | ts.Future[Labels]) -> Labels:
        labels = fine if isinstance(fine, np.ndarray) else fine.result()
        return downsample(labels, self.pyramid.geometry.levels[mip].step)[Box.of((0, 0, 0), piece.shape).slices]

    def _pooled_encoded(self, piece: Box, below: Box, encoded: list[ts.Future[ts.KvStore.ReadResult]]) -> Labels:
        base, mip = self.pyramid.geometry.levels[:2]
        x, y, z = np.floor_divide(below.shape, base.chunk_size).tolist()
        chunks = [bytes(read.result().value) for read in encoded]
        labels = downsample_encoded(chunks, (x, y, z), base.chunk_size, mip.step)
        return self._pooled(1, piece, self._read(0, below)) if labels is None else labels

    def _read_encoded(self, box: Box) -> list[ts.Future[ts.KvStore.ReadResult]]:
        """Start to read the stored bytes of the chunks in a box of mip 0, z fastest."""
        keys = self.pyramid.chunk_keys(0, box)
        self.checked.keys_before.update(keys)
        return [self.checked.before.kv.read(key) for key in keys]

    def _read(self, mip: int, box: Box) -> ts.Future[Labels]:
        keys = self.pyramid.chunk_keys(mip, box)
        place = self.pyramid.absolute(mip, box).slices
        if mip == 0:
            self.checked.keys_before.update(keys)
            return self.checked.before.array(0)[place].read(order="F")
        self.checked.keys.update(keys)
        return self._array(mip)[place].read(order="F")

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
