"""The whole watershed stage in one call, and the steps that follow each pass. Owns the order of the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import NotReadyError
from sv_pipeline.ingest.watershed.edges import run_edge_batch
from sv_pipeline.ingest.watershed.labels import run_label_batch
from sv_pipeline.ingest.watershed.objects import make_object_table
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, pending, prepare_watershed
from sv_pipeline.processes import Workers
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import parse_stored

__all__ = ["Progress", "WatershedReport", "finish_labels", "finish_watershed", "make_watershed"]

logger = logging.getLogger(__name__)

Progress = Callable[[WatershedPass, int, int], None]
"""Called with the stage, chunks done and chunks in all."""

_Batch = Callable[[WatershedPlan, npt.NDArray[np.int64]], None]


@dataclass(frozen=True)
class WatershedReport:
    """What a finished watershed holds."""

    chunks: int
    supervoxels: int
    in_edges: int
    between_edges: int
    """Rows of all files; every edge is in two of them."""
    cross_edges: int
    """Rows of all files; every edge is in two of them."""


def make_watershed(config: DatasetConfig, progress: Progress | None = None, workers: int = 1) -> WatershedReport:
    """Make the watershed volume and its files, or what is left of it to make.

    Parameters
    ----------
    config
        The dataset; needs ``source``.
    progress
        Told after each batch.
    workers
        Processes; 1 = this one.
    """
    plan = prepare_watershed(config)
    _run_pass(plan, WatershedPass.LABELS, run_label_batch, progress, workers)
    finish_labels(plan)
    _run_pass(plan, WatershedPass.EDGES, run_edge_batch, progress, workers)
    return finish_watershed(plan)


def finish_labels(plan: WatershedPlan) -> None:
    """Check that pass A is complete and make the table of objects, if it is needed.

    Raises
    ------
    NotReadyError
        If a chunk is missing; it is named.
    InputError
        If there is no label at all, or a table names a label that does not exist.
    """
    _check_complete(plan, WatershedPass.LABELS)
    make_object_table(plan)


def finish_watershed(plan: WatershedPlan) -> WatershedReport:
    """Check that both passes are complete and count.

    Raises
    ------
    NotReadyError
        If a chunk is missing; it is named.
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


def _run_pass(plan: WatershedPlan, stage: WatershedPass, run: _Batch, progress: Progress | None, workers: int) -> None:
    left = pending(plan, stage)
    size = max(1, min(plan.config.ingest.chunks_per_batch, -(-len(left) // workers)))
    batches = [left[i : i + size] for i in range(0, len(left), size)]
    total = plan.grid.count(2)
    done = total - len(left)
    logger.info("%s pass: %d of %d chunks to do", stage, len(left), total)
    for n_chunks in _results(plan, run, batches, min(workers, len(batches))):
        done += n_chunks
        if progress is not None:
            progress(stage, done, total)


def _results(plan: WatershedPlan, run: _Batch, batches: list[npt.NDArray[np.int64]], workers: int) -> Iterator[int]:
    if workers <= 1:
        for batch in batches:
            run(plan, batch)
            yield len(batch)
        return
    with Workers(workers) as pool:
        futures = [pool.submit(run, plan, batch) for batch in batches]
        for future, batch in zip(futures, batches, strict=True):
            future.result()
            yield len(batch)
