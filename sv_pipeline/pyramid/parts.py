"""Owns making the coarser mips of a fork from its base mip, where its ledger says that they are behind.

One *part* (see `algorithms.pyramid_blocks`) is one atomic commit, or none: the storage chunks of all its coarser mips
whose content changes, and the removal of the part from the ledger. What a part is made of is read in the same
transaction (`checked_commit`): if anybody changes any of it before the commit, nothing is committed, and the part is
made again of what is there then. What it takes out of the ledger is looked at last, so that jobs may work on parts of
one entry at once. So no lock is needed for the result to be right; `pyramid.block_locks` only keeps two
jobs from doing the same work.

The order of parts does not matter, nor does a part that is made twice, or a job that is killed: a voxel whose mips are
behind is in the ledger until the very commit that brings them up to date.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.algorithms.box_arrays import as_array, clip, volumes
from sv_pipeline.algorithms.pyramid_blocks import PyramidBlock, plan_blocks
from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import UnavailableError
from sv_pipeline.grid import Box
from sv_pipeline.pyramid.mip_maker import ForkPyramid, MipMaker, PartReport
from sv_pipeline.segmentation.fork.pending import PendingEntry, read_entries, settle
from sv_pipeline.segmentation.fork.transactions import ChangedError, checked_transaction
from sv_pipeline.storage.retry import TRANSPORT_CODES, status_code
from sv_pipeline.waiting import doing

__all__ = ["downsample_part", "drop_empty_entries", "plan_entries", "until_it_holds"]

ATTEMPTS = 8
BACKOFF = Backoff(0.04, 10.0)

IntArray = npt.NDArray[np.int64]

_logger = logging.getLogger(__name__)


def plan_entries(pyramid: ForkPyramid, entries: Sequence[PendingEntry], memory_budget: int) -> list[PyramidBlock]:
    """What has to be done for entries of the ledger, divided into blocks that share no storage chunk."""
    boxes = [box for entry in entries for box in entry.boxes]
    return plan_blocks(pyramid.geometry, pyramid.relative(boxes), memory_budget)


def downsample_part(
    pyramid: ForkPyramid,
    part: Box,
    keys: Sequence[str],
    memory_budget: int,
    check: Callable[[], None] = lambda: None,
) -> PartReport:
    """Bring the coarser mips of what entries of the ledger list in a part up to date: one commit.

    Parameters
    ----------
    part
        Voxels of the base mip, from the start of the volume.
    keys
        Of the entries to settle; those that are gone, or have nothing here, do no harm.
    memory_budget
        Bytes. Decides whether the part is made at once or mip by mip, in pieces; the latter needs the storage chunks
        that change, and a quarter of the budget.
    check
        Called just before the commit; an error that it raises prevents it.

    Returns
    -------
    PartReport
        With ``left`` = 1 if others have changed the part all the time.

    Raises
    ------
    UnavailableError
        If storage does not answer.
    """

    def attempt() -> PartReport:
        # Outside the transaction, so that others who settle their own parts of a large entry meanwhile do no harm.
        entries = read_entries(pyramid.store.kv, keys)
        mine = {entry.key: clip(pyramid.relative(entry.boxes), part) for entry in entries}
        mine = {key: boxes for key, boxes in mine.items() if len(boxes)}
        if not mine:
            return PartReport()

        def settle_mine(kv: ts.KvStore) -> None:
            bounds = pyramid.volume.bounds
            for key, boxes in mine.items():
                if not settle(kv, key, part.shifted(bounds.start), boxes + np.asarray(bounds.start), bounds):
                    raise ChangedError

        return _commit(pyramid, mine, memory_budget, settle_mine, check)

    return until_it_holds(attempt, f"downsampling {part}")


def drop_empty_entries(pyramid: ForkPyramid, entries: Sequence[PendingEntry]) -> PartReport:
    """Remove those of the entries that have no voxel inside the volume."""
    bounds = pyramid.volume.bounds
    empty = [entry.key for entry in entries if not len(clip(as_array(entry.boxes), bounds))]
    if not empty:
        return PartReport()

    def attempt() -> PartReport:
        with checked_transaction(pyramid.store) as checked:
            checked.keys.update(empty)
            for key in empty:
                settle(pyramid.store.kv.with_transaction(checked.transaction), key, bounds, as_array([]), bounds)
        return PartReport(commits=1)

    return until_it_holds(attempt, "removing empty entries")


def _commit(
    pyramid: ForkPyramid,
    mine: dict[str, IntArray],
    memory_budget: int,
    settle_mine: Callable[[ts.KvStore], None],
    check: Callable[[], None],
) -> PartReport:
    boxes = np.concatenate(list(mine.values()))
    report = PartReport(commits=1, voxels=int(volumes(boxes).sum()))
    started = time.perf_counter()
    with checked_transaction(pyramid.store) as checked:
        MipMaker(pyramid, checked, memory_budget, report).make(boxes)
        check()
        checked.last.append(settle_mine)
        made = time.perf_counter()
    report.seconds_voxels, report.seconds_commit = made - started, time.perf_counter() - made
    return report


def until_it_holds(attempt: Callable[[], PartReport], what: str) -> PartReport:
    """Attempt until nobody interferes, for a while; a report with ``left`` = 1 says that somebody always did."""
    conflicts = 0
    for number in range(1, ATTEMPTS + 1):
        try:
            with doing(f"works on coarser mips ({what})"):
                report = attempt()
        except Exception as error:
            code = "ABORTED" if isinstance(error, ChangedError) else status_code(error)
            if code not in TRANSPORT_CODES:
                raise
            conflicts += code == "ABORTED"
            if number == ATTEMPTS:
                if code == "ABORTED":
                    break
                raise UnavailableError(
                    f"{what}: no success after {ATTEMPTS} attempts, last error: {error}",
                    remedy="Nothing is lost: what is left to do stays listed.",
                    repeat="Try again when storage can be reached.",
                ) from error
            delay = BACKOFF.jittered(number)
            _logger.debug("%s: %s; attempt %d in %.2f s", what, error, number + 1, delay)
            time.sleep(delay)
        else:
            report.conflicts = conflicts
            return report
    _logger.info("%s: changed by others %d times in a row; left for later", what, conflicts)
    return PartReport(conflicts=conflicts, left=1)
