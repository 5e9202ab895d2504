"""Checks that compare whole volumes: base and watershed, fork and base, each mip and the one below it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.pyramid import downsample, holds_labels_of_blocks
from sv_pipeline.errors import ConfigError, CorruptionError
from sv_pipeline.grid import Box
from sv_pipeline.segmentation.base import markers, parts
from sv_pipeline.segmentation.base.base import Base
from sv_pipeline.segmentation.base.layout import misfit, step_factor, unclear_grid
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.making import check_record
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.verify.blocks import ALL, Share, aligned_boxes, block_voxels, in_order, read_box, readable, sampled
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.volumes import StoredVolume

__all__ = ["PENDING_KEYS", "check_base", "check_fork", "check_pyramid", "pending_boxes"]

Advance = Callable[[int, int], None]
Labels = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]
Triple = tuple[int, int, int]

PENDING_KEYS = ocdbt.OWN_KEYS + "pending/"
"""Prefix in a fork, with one key per operation whose coarser mips are behind: ``{"boxes": [[start, stop], ...]}``."""
SAMPLE_BLOCKS = 16
SAMPLE_VOXELS = 1 << 21


@dataclass(frozen=True)
class _Block:
    mip: int
    box: Box


class _Blocks(Sequence[_Block]):
    """Blocks of several mips, one after the other."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Sequence[Box]]] = []

    def add(self, mip: int, boxes: Sequence[Box]) -> None:
        self._parts.append((mip, boxes))

    def __len__(self) -> int:
        return sum(len(boxes) for _, boxes in self._parts)

    @overload
    def __getitem__(self, index: int) -> _Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Block]: ...
    def __getitem__(self, index: int | slice) -> _Block | list[_Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        for mip, boxes in self._parts:
            if index < len(boxes):
                return _Block(mip, boxes[index])
            index -= len(boxes)
        raise IndexError(index)

    @property
    def mips(self) -> set[int]:
        return {mip for mip, _ in self._parts}


@dataclass(frozen=True)
class _Difference:
    """Voxels of a block that are not what they should be."""

    count: int = 0
    place: str = ""
    given: int = 0
    """Number of further voxels that differ, but are right because the watershed has the same values."""

    @classmethod
    def of(cls, wrong: BoolArray, block: _Block, stored: Labels, wanted: Labels) -> _Difference:
        """Make a difference from a mask of the block that is true where voxels are wrong."""
        count = int(np.count_nonzero(wrong))
        if not count:
            return cls()
        # The first by x, then y, then z, which is what a person would look for; not the first in memory.
        at = tuple(int(c) for c in np.argwhere(wrong)[0])
        voxel = ",".join(str(int(c)) for c in np.add(at, block.box.start))
        have, want = int(stored[at]), int(wanted[at])
        return cls(count, f"mip {block.mip} voxel {voxel} (is {have}, should be {want}; block {block.box})")


def _report(outcome: Outcome, message: str, differences: list[_Difference]) -> None:
    for difference in differences:
        if difference.count:
            outcome.error(message, difference.place, difference.count)


# -- base ---------------------------------------------------------------------------------------------------------


def check_base(
    outcome: Outcome,
    base: StoredVolume,
    source: StoredVolume,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    advance: Advance | None = None,
    share: Share = ALL,
) -> None:
    """Check that the base holds the watershed's voxels, that every populate task is done, and that no part is left."""
    if base.edited_in_place:
        outcome.skipped = "other software edits the base in place: it need not be equal to the watershed"
        return
    if not base.made_elsewhere and share.is_first:
        with readable("the record of the populate cannot be read"):
            _check_markers(outcome, Base(base.watershed_url))
    for mip in range(base.source_mips):
        copy, original = base.info.scales[mip], source.info.scales[mip]
        if copy.bounds != original.bounds:
            outcome.error(
                f"the base has {copy.bounds} where the watershed has {original.bounds}; "
                "the watershed changed: wipe the base and populate it again.",
                f"mip {mip}",
            )
            return
    blocks = _Blocks()
    for mip in range(base.source_mips):
        scale = base.info.scales[mip]
        blocks.add(mip, aligned_boxes(scale.bounds, scale.chunk_size, block_voxels()))
    message = "the base differs from the watershed; wipe the base and populate it again."
    outcome.population = len(blocks)
    chosen = share.of(sampled(blocks, sample, seed))
    _compare(outcome, base, source, chosen, blocks.mips, message, workers, advance)


def _compare(
    outcome: Outcome,
    volume: StoredVolume,
    wanted: StoredVolume,
    blocks: Sequence[_Block],
    mips: set[int],
    message: str,
    workers: int,
    advance: Advance | None,
) -> None:
    left, right = ({mip: v.open(mip) for mip in mips} for v in (volume, wanted))

    def compare(block: _Block) -> _Difference:
        have = read_box(left[block.mip], block.box, f"{volume.name} mip {block.mip}")
        want = read_box(right[block.mip], block.box, f"{wanted.name} mip {block.mip}")
        return _Difference.of(have != want, block, have, want)

    for number, difference in enumerate(in_order(compare, blocks, workers), start=1):
        _report(outcome, message, [difference])
        outcome.checked += 1
        outcome.damaged += difference.count > 0
        if advance is not None:
            advance(number, len(blocks))


def _check_markers(outcome: Outcome, base: Base) -> None:
    meta = base.division()
    if meta is None:
        outcome.error("the base was never populated: run the populate tasks.", base.folder)
        return
    tasks = {(int(x), int(y), int(z)) for x, y, z in meta.grid.coordinates(meta.layer)}
    done = base.done_tasks()
    if missing := sorted(tasks - done):
        outcome.error(
            f"a populate task of layer {meta.layer} has no done-marker: run it.",
            f"task {markers.task_name(missing[0])}",
            len(missing),
        )
    if foreign := sorted(done - tasks):
        outcome.error(
            "there is a done-marker of a populate task outside the grid: the folder belongs to another volume, or the "
            "marker must be deleted.",
            f"task {markers.task_name(foreign[0])}",
            len(foreign),
        )
    if not base.is_complete():
        if not missing:
            outcome.error("all populate tasks are done, but not merged: finish the populate.", base.watershed_url)
        return
    _check_parts(outcome, base, sorted(tasks & done))


def _check_parts(outcome: Outcome, base: Base, tasks: list[Triple]) -> None:
    found = zip(tasks, markers.read_markers(base.watershed_url, tasks), strict=True)
    merged = {f"{markers.task_name(t)}/{marker['attempt']}" for t, marker in found if marker and "attempt" in marker}
    folder = kv.join_url(base.folder, "parts")
    leaked = []
    for key in kv.list_keys(folder):
        task, _, rest = key.partition("/")
        attempt, _, file = rest.partition("/")
        if f"{task}/{attempt}" not in merged or not parts.is_kept(file):
            leaked.append(key)
    if leaked:
        outcome.warning(
            "there is a file of a populate part that the base does not use; finishing the populate removes such files.",
            f"{folder}{leaked[0]}",
            len(leaked),
        )


# -- fork ---------------------------------------------------------------------------------------------------------


def check_fork(
    outcome: Outcome, of: Fork, fork: StoredVolume, base: StoredVolume, *, seed: int = 0, workers: int = 1
) -> None:
    """Check that the fork can be read at every mip, is listed by the base, and equals the base until it is edited."""
    check_record(of.base.info(), of.graph_id)
    for mip, scale in enumerate(fork.info.scales):
        domain = fork.open(mip).domain
        if tuple(domain.inclusive_min) != scale.bounds.start or tuple(domain.exclusive_max) != scale.bounds.stop:
            outcome.error("the fork's bounds are not those of the base: recreate the fork.", f"mip {mip}")
            return
        outcome.checked += 1
    if of.has_commits():
        return
    blocks = _Blocks()
    for mip, scale in enumerate(fork.info.scales):
        blocks.add(mip, aligned_boxes(scale.bounds, scale.chunk_size, SAMPLE_VOXELS))
    message = "the fork has no edits, but differs from the base: recreate it."
    _compare(outcome, fork, base, sampled(blocks, SAMPLE_BLOCKS, seed), blocks.mips, message, workers, None)


# -- pyramid ------------------------------------------------------------------------------------------------------


def check_pyramid(
    outcome: Outcome,
    volume: StoredVolume,
    source: StoredVolume,
    *,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    advance: Advance | None = None,
    share: Share = ALL,
) -> None:
    """Check that every mip is the downsampled mip below it, except in boxes that are listed as pending.

    A mip that was copied from the watershed may have been made by other software. There, a voxel also passes if both
    mips still hold the watershed's values and, at mip 1, its label is among those of the voxels that it covers.
    Warnings say how many voxels passed for that reason, and which mips could not be compared.
    """
    pending = pending_boxes(volume)
    blocks = _Blocks()
    for mip in range(1, len(volume.info.scales)):
        if mip < volume.source_mips and share.is_first:
            _judge_given(outcome, volume, mip)
        try:
            step = step_factor(volume.info, mip)
        except ConfigError:
            if mip >= volume.source_mips:
                raise
            continue  # other software made it with a factor that we never use; `_judge_given` has reported it
        scale = volume.info.scales[mip]
        limit = block_voxels() // int(np.prod(step))
        blocks.add(mip, aligned_boxes(scale.bounds, scale.chunk_size, limit))
    if not len(blocks):
        outcome.skipped = "the volume has one mip only"
        return
    outcome.population = len(blocks)
    chosen = share.of(sampled(blocks, sample, seed))
    mips = range(len(volume.info.scales))
    stores = {mip: volume.open(mip) for mip in mips}
    originals = {mip: source.open(mip) for mip in range(volume.source_mips)} if volume.source_mips > 1 else {}

    def compare(block: _Block) -> _Difference:
        return _stale(volume, stores, originals, block, pending)

    for number, difference in enumerate(in_order(compare, chosen, workers), start=1):
        _report(
            outcome,
            "a coarser mip differs from the downsampled mip below it: run the downsample job on this box.",
            [difference],
        )
        if difference.given:
            outcome.warning(
                "some voxels of a mip were not compared with the mip below: they are copies from the watershed, which "
                "other software has downsampled in another way.",
                f"mip {chosen[number - 1].mip}",
                difference.given,
            )
        outcome.checked += 1
        outcome.damaged += difference.count > 0
        if advance is not None:
            advance(number, len(chosen))


def _judge_given(outcome: Outcome, volume: StoredVolume, mip: int) -> None:
    """Check that a mip copied from the watershed lies on our grid, so that it can follow edits."""
    place = f"mip {mip} ({volume.info.scales[mip].key})"
    remedy = "wipe the base and populate it again, which makes this mip anew."
    if reason := misfit(volume.info, mip):
        # A watershed's own voxels are never edited, so for them this is no error.
        note = outcome.warning if volume.store is None else outcome.error
        note(
            f"a mip copied from the watershed cannot follow edits, and was not compared as a whole: {reason}; {remedy}",
            place,
        )
    elif volume.store is not None and (reason := unclear_grid(volume.info, mip)):
        outcome.warning(f"a mip copied from the watershed may show ids that edits retire: {reason}; {remedy}", place)


def _stale(
    volume: StoredVolume,
    stores: dict[int, ts.TensorStore],
    originals: dict[int, ts.TensorStore],
    block: _Block,
    pending: list[Box],
) -> _Difference:
    mip, step = block.mip, step_factor(volume.info, block.mip)
    below = _footprint(volume, mip, mip - 1, block.box)
    fine = read_box(stores[mip - 1], below, f"{volume.name} mip {mip - 1}")
    stored = read_box(stores[mip], block.box, f"{volume.name} mip {mip}")
    wanted = downsample(fine, step)
    if wanted.shape != stored.shape:
        # Only a mip of other software can be smaller or larger than ours; voxels outside of either cannot be compared.
        shape = tuple(min(a, b) for a, b in zip(wanted.shape, stored.shape, strict=True))
        inside = Box.of((0, 0, 0), shape).slices
        stored, wanted = stored[inside], wanted[inside]
    wrong = stored != wanted
    if not wrong.any():
        return _Difference()
    for box in pending:
        at = _shadow(volume, mip, box).clip(block.box).shifted(np.negative(block.box.start))
        wrong[at.slices] = False
    if wrong.any() and mip in originals:
        inside = Box.of((0, 0, 0), stored.shape).slices
        as_given = stored == read_box(originals[mip], block.box, f"watershed mip {mip}")[inside]
        changed = fine != read_box(originals[mip - 1], below, f"watershed mip {mip - 1}")
        excused = wrong & as_given & ~_any_in_blocks(changed, step)[inside]
        if mip == 1:
            excused &= holds_labels_of_blocks(stored, fine[_covered(fine, stored, step)], step)
        wrong &= ~excused
        return replace(_Difference.of(wrong, block, stored, wanted), given=int(np.count_nonzero(excused)))
    return _Difference.of(wrong, block, stored, wanted)


def _covered(fine: Labels, coarse: Labels, step: Triple) -> tuple[slice, ...]:
    """The part of a finer block that is covered by a coarser one, which may be cut off."""
    return tuple(slice(0, min(have, n * f)) for have, n, f in zip(fine.shape, coarse.shape, step, strict=True))


def _footprint(volume: StoredVolume, mip: int, target: int, box: Box) -> Box:
    """Box of the voxels of a finer mip from which a box of a coarser mip is made."""
    scale, finer = volume.info.scales[mip], volume.info.scales[target]
    ratio = np.floor_divide(volume.info.factors(mip), volume.info.factors(target))
    start = np.subtract(box.start, scale.voxel_offset) * ratio + finer.voxel_offset
    stop = np.subtract(box.stop, scale.voxel_offset) * ratio + finer.voxel_offset
    return Box.of(start, stop).clip(finer.bounds)


def _shadow(volume: StoredVolume, mip: int, box: Box) -> Box:
    """Box of the voxels of a coarser mip that cover any voxel of a box of mip 0."""
    scale, finest = volume.info.scales[mip], volume.info.scales[0]
    factor = np.asarray(volume.info.factors(mip))
    start = np.subtract(box.start, finest.voxel_offset) // factor
    stop = -(-np.subtract(box.stop, finest.voxel_offset) // factor)
    return Box.of(start, stop).shifted(scale.voxel_offset)


def _any_in_blocks(flags: BoolArray, step: Triple) -> BoolArray:
    padded = np.pad(flags, [(0, -size % f) for size, f in zip(flags.shape, step, strict=True)])
    x, y, z = (size // f for size, f in zip(padded.shape, step, strict=True))
    return np.asarray(padded.reshape(x, step[0], y, step[1], z, step[2]).any(axis=(1, 3, 5)))


def pending_boxes(volume: StoredVolume) -> list[Box]:
    """Boxes, in voxels of mip 0, whose coarser mips still wait for the downsample job."""
    if volume.store is None:
        return []
    folder = volume.store.kv / PENDING_KEYS
    boxes = []
    with readable(f"the keys {PENDING_KEYS} of the {volume.name} cannot be read"):
        names = retry_transport(lambda: folder.list().result(), what="listing pending boxes")
        values = [folder.read(name).result().value for name in names]
    for key, value in zip(names, values, strict=True):
        try:
            content = json.loads(value)
            boxes += [Box.of(start, stop) for start, stop in content["boxes"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(
                f"the key {PENDING_KEYS}{key.decode()} of the {volume.name} does not list boxes: {error!r}.",
                remedy="Write the boxes of its operation again.",
            ) from error
    return boxes
