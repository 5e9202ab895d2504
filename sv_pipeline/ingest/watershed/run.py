"""The steps after each pass of the watershed stage: checks, the table of objects, and counts. Runs no pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.errors import NotReadyError
from sv_pipeline.ingest.watershed.edge_counts import total_counts
from sv_pipeline.ingest.watershed.objects import make_object_table
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, done_mask

__all__ = ["WatershedReport", "finish_labels", "finish_watershed"]


@dataclass(frozen=True)
class WatershedReport:
    """Counts of a finished watershed."""

    chunks: int
    supervoxels: int
    in_edges: int
    between_edges: int
    """Number of rows in all edge files; every such edge is in two files."""
    cross_edges: int
    """Number of rows in all edge files; every such edge is in two files."""


def finish_labels(plan: WatershedPlan) -> None:
    """Check that pass A is complete and make the table of objects, unless it exists.

    Raises
    ------
    NotReadyError
        If a chunk is missing; the message names it.
    InputError
        If there is no label at all, or a table names a label that does not exist.
    """
    _check_complete(plan, WatershedPass.LABELS)
    make_object_table(plan)


def finish_watershed(plan: WatershedPlan) -> WatershedReport:
    """Check that both passes are complete, and sum up their counts.

    Raises
    ------
    NotReadyError
        If a chunk is missing; the message names it.
    """
    _check_complete(plan, WatershedPass.LABELS)
    _check_complete(plan, WatershedPass.EDGES)
    total = total_counts(plan)
    return WatershedReport(plan.grid.count(2), *(total[name] for name in ("supervoxels", "in", "between", "cross")))


def _check_complete(plan: WatershedPlan, stage: WatershedPass) -> None:
    left = ~done_mask(plan.target, stage, plan.grid)
    if left.any():
        first = tuple(int(c) for c in np.unravel_index(int(left.argmax()), plan.grid.shape(2)))
        raise NotReadyError(
            f"{int(left.sum())} chunks of the {stage} pass are not done, first {first}.",
            remedy="Run the pass again; finished chunks are skipped.",
        )
