"""Rebuilds one mip of a fork from the one below, completely or in boxes, with any number of workers.

The fork's key ``_sv_pipeline/rebuild/<mip>`` = ``{"boxes": [[start, stop], ...]}``, in voxels of that mip, lists what
is left to do; each commit removes what it has made. A rebuild that was killed therefore continues where it stopped, and
a complete one has no key. The ledger of edits (`pending`) is separate; but if a rebuild changes voxels, the same commit
enters them in that ledger for the still coarser mips.
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
    """Return the key that lists what is left of the rebuild of a mip."""
    return f"{REBUILDS}{mip:02d}"


def unfinished(pyramid: ForkPyramid, mip: int) -> list[Box]:
    """Return the boxes left of the rebuild of a mip, in absolute voxels of it; empty if no rebuild is unfinished."""
    key = rebuild_key(mip)
    found = retry_transport(lambda: pyramid.store.kv.read(key).result(), what=f"reading {key} of a fork")
    return as_boxes(boxes_of(key, bytes(found.value))) if found.state == "value" else []


def begin_rebuild(pyramid: ForkPyramid, mip: int) -> list[Box]:
    """Begin or continue the rebuild of a mip, and return the boxes to rebuild, in absolute voxels of the mip.

    Raises
    ------
    NotFoundError
        If there is no such mip.
    NotReadyError
        If the mip below is still being rebuilt, since this mip is made from it.
    """
    _check_mip(pyramid, mip)
    if below := unfinished(pyramid, mip - 1):
        raise NotReadyError(
            f"mip {mip} cannot be rebuilt yet: {len(below)} boxes of mip {mip - 1}, which it is made from, are left.",
            remedy=f"Run the rebuild of mip {mip - 1} again (it continues where it stopped), then this one.",
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
    """Make one mip from the one below, regardless of the ledger, in many commits of whole storage chunks.

    Many workers may rebuild boxes of storage chunks at once, one mip after the other.

    Parameters
    ----------
    mip
        The mip to rebuild, at least 1.
    box
        Box in absolute voxels of ``mip``, which is enlarged to whole storage chunks; default: the whole mip.
    memory_budget
        Memory for voxels, in bytes.
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
    """Convert changed boxes of a mip to boxes of mip 0; returns none if there is no coarser mip."""
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
        why = "mip 0 is made from no other" if mip == 0 else f"mip {last} is the last one of the graph"
        raise NotFoundError(
            f"there is no mip {mip} to rebuild: {why}.",
            remedy=None if last == 0 else f"There are mips 1 to {last}.",
        )
