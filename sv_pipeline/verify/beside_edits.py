"""Verification of a graph while it is being edited: tells real faults from edits that are half written.

This module knows no check.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sv_pipeline.errors import CorruptionError
from sv_pipeline.operations.half_written import read_half_written
from sv_pipeline.operations.ownership import OPEN_ROWS, OWNER
from sv_pipeline.table.columns import COUNTER
from sv_pipeline.table.interface import Table
from sv_pipeline.table.keys import OPERATION_COUNTER
from sv_pipeline.verify.report import CheckResult, Finding, VerifyReport

__all__ = ["brought_up_to_date", "verified_beside_edits"]

log = logging.getLogger(__name__)

TIMES = 4
"""Number of times that a check which finds faults is run while the graph is being edited."""


def verified_beside_edits(
    table: Table, checks: Sequence[str] | None, run: Callable[[Sequence[str] | None], VerifyReport]
) -> VerifyReport:
    """Run checks, and repeat those that found something while the graph was being edited.

    A check reads rows and voxels one after the other, so what it finds during an edit may be the edit's unfinished
    state. Checks that still find faults after `TIMES` runs get a warning which says that the graph was being edited.

    Parameters
    ----------
    checks
        Names of the checks; None = all.
    run
        Runs the checks of these names.
    """
    report: VerifyReport | None = None
    wanted = checks
    for _ in range(TIMES):
        before = _edits(table)
        found = run(wanted)
        report = found if report is None else brought_up_to_date(report, found)
        wanted = [result.name for result in report.results if not result.passed]
        after = _edits(table)
        writing = _half_written(table) if wanted else []
        if not wanted or (before == after and not writing):
            return report
        if before == after:
            return _with_note(report, f"operation {writing[0]} is half written: {HALF_WRITTEN}")
        log.info("graph %s was edited while it was verified: %s again", report.graph_id, ", ".join(wanted))
    assert report is not None
    return _with_note(report, "the graph was edited all the time: verify it again when there are fewer edits.")


HALF_WRITTEN = (
    "these findings may come from that alone. Either it is still running, or its process has died: see 'sv-pipeline "
    "stuck list', and verify again once it has ended."
)


def _edits(table: Table) -> tuple[Any, list[bytes]]:
    """Cells that change when an edit begins or ends; they are not decoded, since they may be damaged."""
    opened = [key for key, _ in table.scan([OPEN_ROWS], [OWNER], newest_only=True)]
    return table.read_rows([OPERATION_COUNTER], [COUNTER.key], newest_only=True), opened


def _half_written(table: Table) -> list[int]:
    try:
        return [operation.operation_id for operation in read_half_written(table).operations]
    except CorruptionError:
        return []  # a check reports the damage


def brought_up_to_date(report: VerifyReport, newer: VerifyReport) -> VerifyReport:
    """Return a report with the results of a newer one in place of its own, for the checks of the newer one."""
    by_name = {result.name: result for result in newer.results}
    results = tuple(by_name.get(result.name, result) for result in report.results)
    return replace(report, results=results, seconds=report.seconds + newer.seconds)


def _with_note(report: VerifyReport, text: str) -> VerifyReport:
    def noted(result: CheckResult) -> CheckResult:
        note = Finding(result.name, "warning", text, f"graph {report.graph_id}", 1)
        return replace(result, findings=(*result.findings, note))

    return replace(report, results=tuple(r if r.passed else noted(r) for r in report.results))
