"""Makes the coarser mips of a fork from its mip 0 where the fork's ledger says that they are behind.

One *part* (see `algorithms.pyramid_blocks`) is one atomic commit, or none. The commit holds the changed storage chunks
of all coarser mips of the part, and removes the part from the ledger. The input of a part is read in the same
transaction (`checked_transaction`): if another process changes any of it before the commit, nothing is committed, and
the part is made again from the new input. The ledger is read last, so that jobs may work on parts of one entry at the
same time. The result is therefore correct without locks; `pyramid.block_locks` only keeps two jobs from doing the same
work.

Parts may be made in any order and more than once, and a job may be killed: a voxel whose mips are behind stays in the
ledger until the commit that brings them up to date.
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
    """Divide the work for entries of the ledger into blocks that share no storage chunk."""
    boxes = [box for entry in entries for box in entry.boxes]
    return plan_blocks(pyramid.geometry, pyramid.relative(boxes), memory_budget)


def downsample_part(
    pyramid: ForkPyramid,
    part: Box,
    keys: Sequence[str],
    memory_budget: int,
    check: Callable[[], None] = lambda: None,
) -> PartReport:
    """Bring the coarser mips up to date for what entries of the ledger list in a part, in one commit.

    Parameters
    ----------
    part
        Box in voxels of mip 0, relative to the start of the volume.
    keys
        Keys of the entries to work on. Entries that are gone or list nothing in this part are ignored.
    memory_budget
        Memory in bytes. It decides whether the part is made at once, or mip by mip in pieces; the latter needs memory
        for the storage chunks that change, and a quarter of the budget.
    check
        Called just before the commit; if it raises an error, nothing is committed.

    Returns
    -------
    PartReport
        The work done; ``left`` is 1 if every attempt failed because other processes had changed the part.

    Raises
    ------
    UnavailableError
        If the storage does not answer.
    """

    def attempt() -> PartReport:
        # Read outside the transaction, so that jobs which settle other parts of a large entry cause no conflict.
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
    """Remove the entries that have no voxel inside the volume."""
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
    """Repeat an attempt until it succeeds, at most `ATTEMPTS` times.

    The report has ``left`` = 1 if other processes interfered with every attempt.
    """
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
