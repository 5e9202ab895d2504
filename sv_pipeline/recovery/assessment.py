"""What has to be done about an unfinished operation, and the proof that it may be done. Reads only.

| what is there | state | what follows |
| --- | --- | --- |
| no scope | EMPTY | the log says that it failed |
| SUCCESS | FINISHED | locks are given back |
| a recovery that found that it cannot be made again | OVER | locks are given back |
| a recovery that could not prove its end | UNPROVEN | it is proven again |
| all roots and chunks are locked by it | HELD | what it wrote is taken back, and it is made again |
| some are not, and nothing is written yet | UNWRITTEN | its locks are given back, and it is made again |
| some are not, but something is written | – | nothing is touched: RecoveryStoppedError |
| somebody has edited what other software left half written | – | likewise |
| the fork's voxels of this number are of another operation, or the fork is of another day | – | likewise |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.pair import Older, find_misfit, restore_advice
from sv_pipeline.operations.unfinished import Phase, Unfinished
from sv_pipeline.operations.writing import Scope, read_identity
from sv_pipeline.recovery.foreign_cleanup import Remains, edited_since, read_remains
from sv_pipeline.segmentation.fork.records import OperationRecord
from sv_pipeline.table.columns import INDEFINITE_LOCK

__all__ = ["Assessment", "State", "assess"]


class State(StrEnum):
    """See the table above."""

    EMPTY = "empty"
    FINISHED = "finished"
    OVER = "over"
    UNPROVEN = "unproven"
    HELD = "held"
    UNWRITTEN = "unwritten"


@dataclass(frozen=True)
class Assessment:
    """What was found."""

    state: State
    n_locked: int
    """Rows of roots and chunks that it holds indefinitely."""
    n_wanted: int
    """Those that it holds once it writes."""
    n_new_rows: int
    """Rows that it made and that are there; of other software's, all cells that it left."""
    record: OperationRecord | None
    """Of its voxels, if they are in."""


def assess(graph: ChunkedGraph, found: Unfinished) -> Assessment:
    """Prove what may be done about an operation.

    Raises
    ------
    RecoveryStoppedError
        If a chunk or root of its scope is not held by it, although it has begun to write; if table and fork do not
        belong together, so that what the fork holds under its number may be of another operation; or if its open row
        cannot be read.
    """
    scope = found.scope
    if found.damage:
        raise RecoveryStoppedError(
            f"what is stored of operation {found.operation_id} cannot be read: {found.damage} Nothing was changed.",
            remedy="Its locks stay. Restore table and fork of the graph from backups of one day.",
        )
    if found.progress.phase == Phase.OVER:
        return Assessment(State.OVER, 0, 0, 0, None)
    if found.progress.phase == Phase.UNPROVEN:
        return Assessment(State.UNPROVEN, 0, 0, 0, None)
    if scope is None:
        return Assessment(State.EMPTY, 0, 0, 0, None)
    if found.succeeded:
        return Assessment(State.FINISHED, 0, len(scope.lock_keys), 0, None)
    record = _record(graph, found, scope)
    if wrong := find_misfit(graph):
        raise RecoveryStoppedError(f"{wrong.message} Nothing was changed.", remedy=wrong.remedy)
    remains = Remains()
    if found.foreign and found.operation is not None and not found.write_set[1]:
        remains = read_remains(graph, found)
        if remains.footprint.edited_since:
            raise edited_since(found, remains.footprint)
    locked, foreign = _locks(graph, found, scope)
    n_new = _new_rows(graph, found) + remains.cells
    wanted = len(scope.lock_keys)
    if locked == wanted and wanted:
        return Assessment(State.HELD, locked, wanted, n_new, record)
    if n_new or record is not None or remains.boxes:
        what = "; ".join(foreign) or "the lock cells are missing"
        raise RecoveryStoppedError(
            f"operation {found.operation_id} holds {locked} of the {wanted} roots and chunks of its scope, although it "
            f"has begun to write: {what}. Nothing was changed.",
            remedy="Find out which person or tool removed or took these locks. Those that nobody holds are put back by "
            f"'sv-pipeline stuck recover {graph.graph_id} {found.operation_id} --take-locks', which refuses where "
            "somebody has edited since (docs/sv_splitting_recovery.md).",
        )
    return Assessment(State.UNWRITTEN, locked, wanted, 0, None)


def _locks(graph: ChunkedGraph, found: Unfinished, scope: Scope) -> tuple[int, list[str]]:
    rows = graph.table.read_rows(scope.lock_keys, [INDEFINITE_LOCK.key], newest_only=True)
    names = [*(f"root {root}" for root in scope.roots), *(_chunk(graph, chunk) for chunk in scope.chunks)]
    holders = [INDEFINITE_LOCK.newest(rows.get(key)) for key in scope.lock_keys]
    foreign = [
        f"{name} is held by {'nobody' if holder is None else f'operation {holder}'}"
        for name, holder in zip(names, holders, strict=True)
        if holder != found.operation_id
    ]
    return len(holders) - len(foreign), foreign[:5]


def _chunk(graph: ChunkedGraph, chunk: int) -> str:
    return f"chunk {tuple(graph.layout.coordinates([chunk])[0].tolist())}"


def _new_rows(graph: ChunkedGraph, found: Unfinished) -> int:
    """Rows of the write set's own nodes that have cells of its time."""
    timestamp, cells = found.write_set
    own = [(column, keys) for column, keys in cells.items() if column.qualifier in (b"children", b"former_ids")]
    count = 0
    for column, row_keys in own:
        rows = graph.table.read_rows(row_keys, [column])
        count += sum(any(c.timestamp == timestamp for c in row[column]) for row in rows.values())
    return count


def _record(graph: ChunkedGraph, found: Unfinished, scope: Scope) -> OperationRecord | None:
    if not scope.chunks or not graph.fork.exists():
        return None
    record = graph.fork.record(found.operation_id)
    if record is None or found.foreign:
        return record
    known = read_identity(graph.table, found.operation_id)
    # Older versions give no identity; but the time of an attempt is its own.
    if record.identity == known and (known is not None or record.logical_time == scope.timestamp):
        return record
    raise RecoveryStoppedError(
        f"the fork of graph {graph.graph_id!r} holds voxels under the number {found.operation_id} that another "
        "operation has changed: table and fork were restored from different days. Nothing was changed.",
        remedy=f"{restore_advice(graph, Older.NEITHER)} Then recover this operation again.",
    )
