"""Verification of a registered graph: of the whole graph, or of what recent operations changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sv_pipeline.arguments import parse_callback, parse_count, parse_flag
from sv_pipeline.errors import CorruptionError
from sv_pipeline.grid import Box
from sv_pipeline.operations.log import OperationStatus, read_operations
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS
from sv_pipeline.registry import Dataset
from sv_pipeline.table import counters
from sv_pipeline.verify.beside_edits import verified_beside_edits
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.part import Division
from sv_pipeline.verify.pool import verify_in_parts
from sv_pipeline.verify.postcheck import prove_ended
from sv_pipeline.verify.report import CheckResult, Outcome
from sv_pipeline.verify.run import VerifyReport, chosen_checks, make_plan, verify

__all__ = ["CHECKS_OF_CHANGES", "verify_changes", "verify_dataset"]

CHECKS_OF_CHANGES = ("pair", "digests", "lineage")
MOST_PROVEN = 200
"""Maximum number of operations around which rows and voxels are checked."""
MOST_FINDINGS = 5
"""Number of findings after which no more operations are checked: a check that fails is slow, since it is repeated."""


def verify_dataset(
    dataset: Dataset,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    again: bool = False,
) -> VerifyReport:
    """Run checks (default: all) on a registered graph.

    A graph that does not fit the memory budget is verified part by part. Results of the parts are kept in the home
    folder until the verification has ended, so that a repetition goes on where a killed one stopped.

    Parameters
    ----------
    checks, sample, progress, seed
        See `sv_pipeline.verify.run.verify`.
    workers
        Number of processes that verify parts; of a graph that is one part, number of threads that read voxels.
    again
        Whether the results of a verification that did not end are removed instead of used.
    """
    table = dataset.graph.table
    names, workers = chosen_checks(checks), parse_count(workers, "number of workers", least=1)
    sample = None if sample is None else parse_count(sample, "number of chunks to look at", least=1)
    seed, progress = parse_count(seed, "seed"), parse_callback(progress, "progress")
    again = parse_flag(again, "again")

    plan = make_plan(Subject(table, dataset.fork, sample, seed), names)

    def run(wanted: Sequence[str] | None) -> VerifyReport:
        if not plan.is_one_part:
            some = names if wanted is checks else chosen_checks(wanted)
            return verify_in_parts(
                dataset,
                some,
                sample=sample,
                seed=seed,
                workers=workers,
                progress=progress if wanted is checks else None,
                again=again and wanted is checks,
                division=Division(dataset.graph.layout, dataset.graph.grid, plan.layers, plan.cuts),
            )
        return verify(
            table,
            dataset.fork,
            checks=wanted,
            sample=sample,
            workers=workers,
            progress=progress if wanted is checks else None,
            seed=seed,
        )

    return verified_beside_edits(table, checks, run)


def verify_changes(dataset: Dataset, after: int, *, workers: int = 1) -> VerifyReport:
    """Verify what the operations after a given one changed: rows and voxels around them, and their chunks in the fork.

    If there are more than `MOST_PROVEN` such operations, rows and voxels are checked around the latest ones only.

    Parameters
    ----------
    after
        Number of the last operation that is not verified.
    workers
        Number of threads that read and check voxels.
    """
    started, after = time.monotonic(), parse_count(after, "number of the last operation that is known")
    try:
        records = dataset.fork.records(after=after) if dataset.fork.exists() else []
        boxes: list[Box] | None = [box for record in records for box in record.boxes]
    except CorruptionError:
        boxes = None  # a record is damaged, which the check `pair` reports: check all of the fork's own chunks
    table = dataset.graph.table

    def run(wanted: Sequence[str] | None) -> VerifyReport:
        return verify(table, dataset.fork, checks=wanted, workers=workers, within=boxes)

    report = verified_beside_edits(table, CHECKS_OF_CHANGES, run)
    return replace(report, results=(*report.results, _around(dataset, after)), seconds=time.monotonic() - started)


def _around(dataset: Dataset, after: int) -> CheckResult:
    """Check that the graph is sound around every operation that succeeded."""
    started, outcome = time.monotonic(), Outcome("operations")
    graph = dataset.graph
    last = counters.last_operation_id(graph.table)
    wanted = np.arange(max(after + 1, last + 1 - MOST_PROVEN), last + 1, dtype=np.uint64)
    opened = {int(key.removeprefix(OPEN_PREFIX)) for key, _ in graph.table.scan([OPEN_ROWS])}
    for operation in read_operations(graph, wanted):
        if operation.status is not OperationStatus.SUCCESS or operation.operation_id in opened:
            continue
        if len(outcome.findings) >= MOST_FINDINGS:
            break
        outcome.checked += 1
        try:
            prove_ended(graph, operation.operation_id)
        except CorruptionError as error:
            outcome.error(str(error), f"operation {operation.operation_id}")
    return CheckResult(
        "operations",
        "rows and voxels around operations are sound",
        not outcome.has_errors,
        outcome.checked,
        "operations",
        tuple(outcome.findings),
        time.monotonic() - started,
    )
