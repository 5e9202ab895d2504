"""Downsampling of what edits changed: one call brings the mips up to date that the ledger of a fork lists as behind.

Several calls at once share the work. Each block is locked in the graph's table while it is worked on
(`pyramid.block_locks`; the locks are on cells of the volume, so that jobs with different memory budgets agree). Blocks
that another job holds are left to that job, and tried again at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.box_arrays import volumes
from sv_pipeline.algorithms.pyramid_blocks import BYTES_PER_VOXEL, PyramidBlock, split_to_budget
from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import ConfigError, ConflictError
from sv_pipeline.grid import Box
from sv_pipeline.progress import Progress
from sv_pipeline.pyramid.block_locks import BlockLocks, lock_blocks, new_owner
from sv_pipeline.pyramid.mip_maker import AT_ONCE_BYTES, ForkPyramid, PartReport, open_pyramid
from sv_pipeline.pyramid.parts import downsample_part, drop_empty_entries, plan_entries
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.segmentation.fork.pending import ASKED_FOR, PendingEntry, read_entries
from sv_pipeline.table.interface import Table

__all__ = ["LOCK_EXPIRY", "MEMORY_BUDGET", "OVERHEAD_BYTES", "DownsampleReport", "downsample", "rebuild"]

MEMORY_BUDGET = 1 << 30
"""Default memory for voxels, in bytes; the process itself needs more on top, and so do `OVERHEAD_BYTES`."""
OVERHEAD_BYTES = 96 << 20
"""Memory on top of any budget: chunks while they are decoded and encoded, nodes of the tree, and at least two pieces,
as measured by ``benchmarks/pyramid.py``. What the process has read before stays in TensorStore's cache of 64 MiB."""
SMALLEST_BUDGET = 1 << 20
BACKOFF = Backoff(0.1, 4.0)
LOCK_EXPIRY = timedelta(minutes=1)
"""Time after which the blocks of a job that was killed can be locked again."""

_logger = logging.getLogger(__name__)


@dataclass
class DownsampleReport:
    """The work that one call did, and what it had to leave."""

    graph_id: str
    operations: tuple[int, ...] = ()
    """Operations whose entries the ledger had at the start."""
    blocks: int = 0
    locked: int = 0
    """Number of blocks that another job still held when this one stopped waiting; they stay in the ledger until that
    job has finished them."""
    work: PartReport = field(default_factory=PartReport)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that was listed at the start is done."""
        return not self.locked and not self.work.left


def downsample(
    fork: Fork,
    operations: Collection[int] | None = None,
    *,
    table: Table | None = None,
    memory_budget: int = MEMORY_BUDGET,
    lock_expiry: timedelta = LOCK_EXPIRY,
    patience: float | None = None,
    progress: Progress | None = None,
) -> DownsampleReport:
    """Make the coarser mips that the ledger lists as behind, and remove them from it.

    The function may be called at any time, several times at once, and again after it was killed. Entries that are
    listed after it has begun are left to the next call.

    Parameters
    ----------
    fork
        The fork whose ledger is worked on.
    operations
        Operations whose entries are worked on; default: all.
    table
        The graph's table, in which blocks are locked. Without a table nothing is locked: the result is still correct,
        but jobs may do the same work twice.
    memory_budget
        Memory for voxels, in bytes. It decides how large blocks are, and how a block that does not fit is made.
    lock_expiry
        Time after which the locks of a job that does not renew them expire.
    patience
        Seconds to wait, at the end, for blocks that other jobs hold; default: until their locks would have expired.
    progress
        Receives the number of finished blocks.

    Raises
    ------
    NotFoundError
        If the graph has no fork.
    ConfigError
        If a mip cannot be made from the one below, or the budget is too small.
    CorruptionError
        If an entry of the ledger cannot be read.
    UnavailableError
        If the storage or the table does not answer; finished work is kept.
    """
    if memory_budget < SMALLEST_BUDGET:
        raise ConfigError(
            f"a memory budget of {memory_budget} bytes is too small.", remedy=f"Give at least {SMALLEST_BUDGET}."
        )
    started = time.perf_counter()
    pyramid = open_pyramid(fork)
    entries = [e for e in read_entries(pyramid.store.kv) if operations is None or e.operation_id in operations]
    report = DownsampleReport(fork.graph_id, tuple(entry.operation_id for entry in entries))
    if entries:
        report.work.add(drop_empty_entries(pyramid, entries))
        blocks = plan_entries(pyramid, entries, memory_budget)
        report.blocks = len(blocks)
        if any(volumes(block.affected).sum() * BYTES_PER_VOXEL > AT_ONCE_BYTES for block in blocks):
            pyramid = open_pyramid(fork, large=True)
        run = _DownsampleRun(pyramid, table, entries, memory_budget, lock_expiry)
        wait = lock_expiry.total_seconds() * 1.5 if patience is None else patience
        report.locked = run.work_off(blocks, wait, report.work, progress or Progress())
    report.seconds = time.perf_counter() - started
    _logger.info("coarser mips of %s: %s", fork.graph_id, report)
    return report


def rebuild(
    fork: Fork,
    boxes: Sequence[Box] | None = None,
    *,
    table: Table | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> DownsampleReport:
    """Make all coarser mips again, or those of some boxes of mip 0, whether they are behind or not.

    The boxes are first entered in the ledger, so that the next `downsample` completes a rebuild that was killed.
    """
    fork.ask_for(boxes)
    return downsample(fork, [ASKED_FOR], table=table, memory_budget=memory_budget, progress=progress)


@dataclass(frozen=True)
class _DownsampleRun:
    """One call of `downsample`."""

    pyramid: ForkPyramid
    table: Table | None
    entries: list[PendingEntry]
    memory_budget: int
    lock_expiry: timedelta
    owner: int = field(default_factory=new_owner)

    def work_off(self, blocks: list[PyramidBlock], patience: float, total: PartReport, progress: Progress) -> int:
        """Work on blocks as they can be locked, and return the number of blocks that another job still holds."""
        progress.begin("coarser mips", len(blocks))
        waiting, waited_since, tries = blocks, None, 0
        while True:
            held_by_others = [block for block in waiting if not self._do(block, total, progress)]
            if not held_by_others:
                progress.end()
                return 0
            now = time.monotonic()
            if waited_since is None or len(held_by_others) < len(waiting):
                waited_since, tries = now, 0  # other jobs make progress
            if now - waited_since > patience:
                return len(held_by_others)
            waiting, tries = held_by_others, tries + 1
            time.sleep(BACKOFF.jittered(tries))

    def _do(self, block: PyramidBlock, total: PartReport, progress: Progress) -> bool:
        """Lock a block and make its parts; returns False if another job holds the block."""
        found = self._lock(block)
        if found is None:
            return False
        with found as locks:
            check = locks.check if isinstance(locks, BlockLocks) else _always
            keys = self._keys_in(block.box)
            for part in split_to_budget(self.pyramid.geometry, block, self.memory_budget):
                try:
                    report = downsample_part(self.pyramid, part, keys, self.memory_budget, check)
                except ConflictError as error:  # another job has the locks now, and does the rest of the block
                    _logger.warning("%s", error)
                    return False
                total.add(report)
        progress.advance(1)
        return True

    @cached_property
    def _boxes(self) -> npt.NDArray[np.int64]:
        return self.pyramid.relative([box for entry in self.entries for box in entry.boxes])

    @cached_property
    def _owners(self) -> npt.NDArray[np.int64]:
        """Index of the entry to which each box belongs."""
        return np.repeat(np.arange(len(self.entries)), [len(entry.boxes) for entry in self.entries])

    def _keys_in(self, box: Box) -> list[str]:
        """Keys of the entries that list a box which overlaps ``box``."""
        meets = ((self._boxes[:, 0] < box.stop) & (self._boxes[:, 1] > box.start)).all(axis=1)
        return [self.entries[index].key for index in np.unique(self._owners[meets])]

    def _lock(self, block: PyramidBlock) -> AbstractContextManager[BlockLocks | None] | None:
        if self.table is None:
            return nullcontext()
        return lock_blocks(self.table, block.cells, self.owner, self.lock_expiry)


def _always() -> None:
    """Check nothing: without a table there are no locks that could be lost."""
