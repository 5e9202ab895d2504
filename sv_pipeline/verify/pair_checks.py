"""Check that table and fork share one history: both know each operation that changed voxels, and as the same one."""

from __future__ import annotations

import numpy as np

from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS, OWNER
from sv_pipeline.operations.pair import HasBoth, Older, find_misfit, restore_advice, wrote
from sv_pipeline.operations.writing import IDENTITY, OWN_PREFIX, SUPERVOXELS
from sv_pipeline.segmentation.fork.records import OperationRecord
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowView
from sv_pipeline.verify.blocks import readable
from sv_pipeline.verify.report import Outcome

__all__ = ["check_pair"]

_VERDICTS = {
    Older.TABLE: "the table is older than the fork",
    Older.FORK: "the fork is older than the table",
    Older.NEITHER: "table and fork have edits that the other one lacks",
}


def check_pair(outcome: Outcome, graph: HasBoth) -> None:
    """Check that the operations of the table and the records of the fork are the same."""
    wrong = find_misfit(graph)
    if graph.fork.exists():
        with readable("the records of the fork's operations cannot be read"):
            _compare(outcome, graph)
    elif wrong is None:
        outcome.skipped = "the graph has no fork yet"
    if wrong is not None and not outcome.has_errors:
        outcome.error(f"{wrong.message} {wrong.remedy}", "table and fork")


def _compare(outcome: Outcome, graph: HasBoth) -> None:
    # The fork is read first: every operation that it holds has a row in the table by then.
    records = {record.operation_id: record for record in graph.fork.records()}
    own = {
        int(key.removeprefix(OWN_PREFIX)): row
        for key, row in graph.table.scan(
            [keys.prefix_range(OWN_PREFIX)], [IDENTITY.key, SUPERVOXELS.key], newest_only=True
        )
    }
    open_rows = graph.table.scan([OPEN_ROWS], [OWNER, IDENTITY.key], newest_only=True)
    opened = {int(key.removeprefix(OPEN_PREFIX)): row for key, row in open_rows}
    changed = {number for number, row in own.items() if SUPERVOXELS.key in row}
    numbers = np.array(sorted(records.keys() | changed), np.uint64)
    rows = graph.table.read_rows(keys.node_keys(numbers), [columns.OPERATION_STATUS.key], newest_only=True)
    status = {int(key): columns.OPERATION_STATUS.newest(row) for key, row in rows.items()}
    differing = [n for n, record in records.items() if _differs(record, own.get(n), opened.get(n))]
    # An older table gives out numbers again that the fork knows, to edits that are then refused for this very reason.
    unknown = [n for n in differing if not wrote(status.get(n))]
    other = [n for n in differing if wrote(status.get(n))]
    done = {n for n in changed - opened.keys() if status.get(n) == int(OperationStatus.SUCCESS)}
    absent = sorted(done - records.keys())
    if absent:  # operations may have been committed since the records were read
        now = {record.operation_id for record in graph.fork.records()}
        absent = [number for number in absent if number not in now]
    older = _older(unknown, absent, other)
    verdict = f"{_VERDICTS[older]}; {restore_advice(graph, older)}"
    for numbers_of, what in (
        (unknown, "the fork holds voxels of an operation that the table does not know"),
        (absent, "the table says that an operation changed voxels, but the fork has no record of it"),
        (other, "the fork holds voxels of another operation under this number"),
    ):
        if numbers_of:
            outcome.error(f"{what}: {verdict}", f"operation {numbers_of[0]}", len(numbers_of))
    outcome.checked += len(numbers)


def _older(unknown: list[int], absent: list[int], other: list[int]) -> Older:
    if other or (unknown and absent):
        return Older.NEITHER
    return Older.TABLE if unknown else Older.FORK


def _differs(record: OperationRecord, own: RowView | None, opened: RowView | None) -> bool:
    """Whether a record belongs to another operation than the one that has its number in the table."""
    if record.identity != (IDENTITY.newest(own) or IDENTITY.newest(opened)):
        return True
    # If neither has an identity, they are the same unless the table's operation ended without changing supervoxels.
    return record.identity is None and opened is None and SUPERVOXELS.key not in (own or {})
