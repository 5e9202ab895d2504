"""Owns making one mip of a fork again from the one below, all of it or in boxes, by as many workers as wanted.

What is left of it is in the fork, ``_sv_pipeline/rebuild/<mip>`` = ``{"boxes": [[start, stop], ...]}`` in voxels of
that mip; each commit takes out what it has made. So a rebuild that was killed goes on where it was, and one that is
complete has no key. What edits left behind is another matter (`pending`); but where a rebuild changes something, what
that means for still coarser mips is put on that ledger in the same commit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.box_arrays import as_array, as_boxes, clip
from sv_pipeline.errors import NotFoundError, NotReadyError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.mip_maker import ForkPyramid, MipMaker, PartReport, boxes_within
from sv_pipeline.pyramid.parts import until_it_holds
from sv_pipeline.segmentation.fork.pending import add_pending, boxes_of, settle
from sv_pipeline.segmentation.fork.transactions import ChangedError, checked_transaction
from sv_pipeline.storage import ocdbt
from sv_pipeline.storage.retry import retry_transport

__all__ = ["begin_rebuild", "rebuild_mip", "unfinished"]

REBUILDS = ocdbt.OWN_KEYS + "rebuild/"
IntArray = npt.NDArray[np.int64]


def rebuild_key(mip: int) -> str:
    """Key of what is left of the rebuild of a mip."""
    return f"{REBUILDS}{mip:02d}"


def unfinished(pyramid: ForkPyramid, mip: int) -> list[Box]:
    """What is left of the rebuild of a mip, absolute voxels of it; empty if there is none."""
    key = rebuild_key(mip)
    found = retry_transport(lambda: pyramid.store.kv.read(key).result(), what=f"reading {key} of a fork")
    return as_boxes(boxes_of(key, bytes(found.value))) if found.state == "value" else []


def begin_rebuild(pyramid: ForkPyramid, mip: int) -> list[Box]:
    """Begin, or go on with, the rebuild of a mip; returns what is to do: boxes, absolute voxels of the mip.

    Raises
    ------
    NotFoundError
        If there is no such mip.
    NotReadyError
        If the mip below is being rebuilt: this one would be made of what is not right yet.
    """
    _check_mip(pyramid, mip)
    if below := unfinished(pyramid, mip - 1):
        raise NotReadyError(
            f"mip {mip} cannot be rebuilt yet: {len(below)} boxes of mip {mip - 1}, which it is made of, are left.",
            remedy=f"Run the rebuild of mip {mip - 1} again (it goes on where it was), then this one.",
        )
    whole = pyramid.volume.scales[mip].bounds
    if left := unfinished(pyramid, mip):
        return left

    def write() -> None:
        with pyramid.store.transaction() as transaction:
            value = json.dumps({"boxes": as_array([whole]).tolist()}).encode()
            pyramid.store.kv.with_transaction(transaction).write(rebuild_key(mip), value).result()

    retry_transport(write, what=f"beginning the rebuild of mip {mip}", attempts=8)
    return [whole]


def rebuild_mip(
    pyramid: ForkPyramid,
    mip: int,
    box: Box | None = None,
    *,
    memory_budget: int = 1 << 30,
) -> PartReport:
    """Make one mip of the one below, whatever the ledger says: many commits, each of whole storage chunks.

    Boxes of storage chunks may be rebuilt by many workers at once, mip after mip.

    Parameters
    ----------
    mip
        From 1.
    box
        Voxels of ``mip``, absolute, enlarged to whole storage chunks; default: all.
    """
    _check_mip(pyramid, mip)
    level, offset = pyramid.geometry.levels[mip], pyramid.volume.scales[mip].voxel_offset
    whole = Box.of((0, 0, 0), level.size)
    wanted = whole if box is None else box.shifted(np.negative(offset)).clip(whole)
    size = np.asarray(level.chunk_size)
    wanted = Box.of(wanted.start // size * size, -(-np.asarray(wanted.stop) // size) * size).clip(whole)
    total = PartReport()
    for piece in boxes_within(wanted, level.chunk_size, memory_budget // (8 * (3 + int(np.prod(level.step))))):

        def attempt(piece: Box = piece) -> PartReport:
            return _rebuild_piece(pyramid, mip, piece, memory_budget)

        total.add(until_it_holds(attempt, f"rebuilding mip {mip} in {piece}"))
    return total


def _rebuild_piece(pyramid: ForkPyramid, mip: int, piece: Box, memory_budget: int) -> PartReport:
    report = PartReport(commits=1)
    with checked_transaction(pyramid.store) as checked:
        changed = MipMaker(pyramid, checked, memory_budget, report).make_mip(mip, as_array([piece]))
        coarser = _in_base_voxels(pyramid, mip, changed)

        def note(kv: ts.KvStore) -> None:
            if coarser:
                add_pending(kv, coarser)
            _take_out(kv, pyramid, mip, piece)

        checked.last.append(note)
    return report


def _in_base_voxels(pyramid: ForkPyramid, mip: int, changed: IntArray) -> Sequence[Box]:
    """What changed in a mip, as boxes of the base mip; none where there is no coarser mip."""
    geometry = pyramid.geometry
    if not len(changed) or mip + 1 == len(geometry.levels):
        return []
    boxes = clip(changed * np.asarray(geometry.factors[mip]), Box.of((0, 0, 0), geometry.levels[0].size))
    return as_boxes(boxes + np.asarray(pyramid.volume.bounds.start))


def _take_out(kv: ts.KvStore, pyramid: ForkPyramid, mip: int, piece: Box) -> None:
    key, done = rebuild_key(mip), pyramid.absolute(mip, piece)
    found = kv.read(key).result()
    if found.state != "value":
        return
    mine = clip(boxes_of(key, bytes(found.value)), done)
    if len(mine) and not settle(kv, key, done, mine, pyramid.volume.scales[mip].bounds):
        raise ChangedError


def _check_mip(pyramid: ForkPyramid, mip: int) -> None:
    last = len(pyramid.volume.scales) - 1
    if not 1 <= mip <= last:
        raise NotFoundError(f"there is no mip {mip} to rebuild.", remedy=f"There are mips 1 to {last}.")
