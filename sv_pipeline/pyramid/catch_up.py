"""One run that brings coarser mips up to date, with its result as a value: the lag before and after, and the work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sv_pipeline.grid import Box
from sv_pipeline.progress import Progress
from sv_pipeline.pyramid.downsample import MEMORY_BUDGET, DownsampleReport, downsample
from sv_pipeline.pyramid.foreign import note_foreign_edits
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.pending import Lag, PendingEntry, lag_of

__all__ = ["CatchUp", "catch_up"]


@dataclass(frozen=True)
class CatchUp:
    """The lag before and after a run, and the work that it did."""

    graph_id: str
    before: Lag
    after: Lag
    report: DownsampleReport
    generation_before: int
    generation_after: int
    shown: Box | None
    """The box to show in a picture, in voxels of mip 0: the largest one of the newest operation; None without any."""
    shown_operation: int | None
    """The operation to which ``shown`` belongs."""
    unedited_generation: int | None
    """Generation of the fork before that operation; None if the fork has no record of it."""

    def numbers(self) -> dict[str, int | float]:
        """Return numbers to plot: the lag now (which the sensor also reports), the lag found, and the work done."""
        work, seconds = self.report.work, self.report.seconds
        return {
            "operations_behind": self.after.entries,
            "boxes_behind": self.after.boxes,
            "seconds_behind": round(self.after.oldest_seconds or 0.0, 1),
            "operations_found": self.before.entries,
            "boxes_found": self.before.boxes,
            "oldest_waited_seconds": round(self.before.oldest_seconds or 0.0, 1),
            "seconds": round(seconds, 3),
            "commits": work.commits,
            "conflicts": work.conflicts,
            "storage_chunks_written": work.chunks_written,
            "storage_chunks_made": work.chunks_made,
            "base_voxels": work.voxels,
            "base_mvox_per_second": round(work.voxels / 1e6 / seconds, 2) if seconds else 0.0,
        }


def catch_up(
    dataset: Dataset,
    operations: Collection[int] | None = None,
    *,
    memory_budget: int = MEMORY_BUDGET,
    progress: Progress | None = None,
) -> CatchUp:
    """Call `downsample`, and return its report with the lag before and after it and the box to show in a picture.

    Edits of other software are entered in the ledger first.
    """
    fork = dataset.fork
    if operations is None:
        note_foreign_edits(dataset)
    generation_before, entries = fork.generation(), fork.pending()
    report = downsample(fork, operations, table=dataset.existing_table, memory_budget=memory_budget, progress=progress)
    shown = _newest([entry for entry in entries if operations is None or entry.operation_id in operations])
    record = fork.record(shown.operation_id) if shown else None
    return CatchUp(
        graph_id=fork.graph_id,
        before=lag_of(entries),
        after=lag_of(fork.pending()),
        report=report,
        generation_before=generation_before,
        generation_after=fork.generation(),
        shown=max(shown.boxes, key=lambda box: box.volume) if shown else None,
        shown_operation=shown.operation_id if shown else None,
        unedited_generation=record.generation_before if record else None,
    )


def _newest(entries: list[PendingEntry]) -> PendingEntry | None:
    return max((e for e in entries if e.boxes), key=lambda e: e.operation_id, default=None)
