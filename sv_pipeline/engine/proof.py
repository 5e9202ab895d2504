"""Verify a registered graph: wires the dataset into the checks, and tells faults from edits that are being made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sv_pipeline.edits.half_written import read_half_written
from sv_pipeline.edits.ownership import OPEN_ROWS, OWNER
from sv_pipeline.errors import CorruptionError
from sv_pipeline.registry import Dataset
from sv_pipeline.table.columns import COUNTER
from sv_pipeline.table.interface import Table
from sv_pipeline.table.keys import OPERATION_COUNTER
from sv_pipeline.verify.report import CheckResult, Finding, VerifyReport
from sv_pipeline.verify.run import verify

__all__ = ["verify_dataset"]

log = logging.getLogger(__name__)

TIMES = 4
"""So often a check that finds faults is run while the graph is being edited."""


def verify_dataset(
    dataset: Dataset,
    *,
    checks: Sequence[str] | None = None,
    sample: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Run checks (default: all) on a graph and its voxels; see :func:`sv_pipeline.verify.run.verify`.

    Checks look at rows and voxels one after the other. What they find while the graph is being edited may be half of an
    edit; so those that found something are run again, and what is left says that there were edits.
    """
    table, wanted = dataset.graph.table, checks
    report: VerifyReport | None = None
    for time in range(1, TIMES + 1):
        before = _edits(table)
        found = verify(
            dataset.graph,
            watershed_url=dataset.watershed_url,
            graph_id=dataset.graph_id,
            checks=wanted,
            sample=sample,
            workers=workers,
            progress=progress if time == 1 else None,
        )
        report = found if report is None else _brought_up_to_date(report, found)
        wanted = [result.name for result in report.results if not result.passed]
        after = _edits(table)
        writing = _half_written(table) if wanted else []
        if not wanted or (before == after and not writing):
            return report
        if before == after:
            return _with_note(report, f"operation {writing[0]} is half written: {HALF_WRITTEN}")
        log.info("graph %s was edited while it was verified: %s again", dataset.graph_id, ", ".join(wanted))
    assert report is not None
    return _with_note(report, "the graph was edited all the time: verify it again when there are fewer edits.")


HALF_WRITTEN = (
    "what is found here may be of that alone. It is being made, or its process has died: see 'sv-pipeline stuck list', "
    "and verify again once it has ended."
)


def _edits(table: Table) -> tuple[Any, list[bytes]]:
    """What differs once an edit has begun or ended; not decoded, since cells may be damaged."""
    opened = [key for key, _ in table.scan([OPEN_ROWS], [OWNER], newest_only=True)]
    return table.read_rows([OPERATION_COUNTER], [COUNTER.key], newest_only=True), opened


def _half_written(table: Table) -> list[int]:
    try:
        return [operation.operation_id for operation in read_half_written(table).operations]
    except CorruptionError:
        return []  # a check names it


def _brought_up_to_date(report: VerifyReport, newer: VerifyReport) -> VerifyReport:
    by_name = {result.name: result for result in newer.results}
    results = tuple(by_name.get(result.name, result) for result in report.results)
    return replace(report, results=results, seconds=report.seconds + newer.seconds)


def _with_note(report: VerifyReport, text: str) -> VerifyReport:
    def noted(result: CheckResult) -> CheckResult:
        note = Finding(result.name, "warning", text, f"graph {report.graph_id}", 1)
        return replace(result, findings=(*result.findings, note))

    return replace(report, results=tuple(r if r.passed else noted(r) for r in report.results))
