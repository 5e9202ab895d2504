"""The steps after each pass of the watershed stage: checks, the table of objects, and counts. Runs no pass."""

from __future__ import annotations

from dataclasses import dataclass

from sv_pipeline.errors import NotReadyError
from sv_pipeline.ingest.watershed.objects import make_object_table
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, pending
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import parse_stored

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
    keys = [plan.marker(WatershedPass.EDGES, c) for c in plan.grid.coordinates(2)]
    remedy = "Remove that marker, then run the ingest again: it makes this chunk anew."
    counts = [
        parse_stored(data, dict[str, int], plan.target + key, remedy=remedy)
        for key, data in zip(keys, kv.read_many(plan.target, keys), strict=True)
        if data is not None
    ]
    total = {name: sum(c[name] for c in counts) for name in ("supervoxels", "in", "between", "cross")}
    return WatershedReport(len(counts), total["supervoxels"], total["in"], total["between"], total["cross"])


def _check_complete(plan: WatershedPlan, stage: WatershedPass) -> None:
    left = pending(plan, stage)
    if len(left):
        raise NotReadyError(
            f"{len(left)} chunks of the {stage} pass are not done, first {tuple(left[0].tolist())}.",
            remedy="Run the pass again; finished chunks are skipped.",
        )
