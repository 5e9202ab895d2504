"""Decides what recovery does with an unfinished operation, and proves that it may be done. Reads only.

| condition | state | recovery |
| --- | --- | --- |
| the operation has no scope | EMPTY | the log records that it failed |
| its status is SUCCESS | FINISHED | its locks are released |
| an earlier recovery found that it cannot be replayed | OVER | its locks are released |
| an earlier recovery could not prove its result | UNPROVEN | its result is checked again |
| it has locked all roots and chunks of its scope | HELD | it is rolled back and replayed |
| some are not locked, and only new rows are written | UNWRITTEN | locks and new rows are removed, it is replayed |
| some are not locked, but more is written | – | RecoveryStoppedError; nothing is changed |
| a later edit uses nodes that other software left half written | – | likewise |
| it has changed voxels, but neither names nor holds their chunks (other software) | – | likewise |
| the fork holds voxels of another operation with this number, or was restored from another day | – | likewise |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.pair import Older, find_misfit, restore_advice
from sv_pipeline.operations.unfinished import Phase, Unfinished
from sv_pipeline.operations.writing import Scope, made_rows, read_identity
from sv_pipeline.recovery.foreign_cleanup import Remains, edited_since, read_remains, replaced_at_points
from sv_pipeline.segmentation.fork.records import OperationRecord
from sv_pipeline.table.columns import FAKE_EDGES, INDEFINITE_LOCK

__all__ = ["Assessment", "State", "assess"]


class State(StrEnum):
    """State of an unfinished operation; the table in the description of this module explains each."""

    EMPTY = "empty"
    FINISHED = "finished"
    OVER = "over"
    UNPROVEN = "unproven"
    HELD = "held"
    UNWRITTEN = "unwritten"


@dataclass(frozen=True)
class Assessment:
    """The state of an unfinished operation, and what it has locked and written."""

    state: State
    n_locked: int
    """Number of roots and chunks of its scope that it has locked indefinitely."""
    n_wanted: int
    """Number of roots and chunks in its scope, all of which it locks before it writes."""
    n_new_rows: int
    """Number of rows that it has made; for an operation of other software, the number of all its cells."""
    record: OperationRecord | None
    """The fork's record of its voxels, if they are committed."""


def assess(graph: ChunkedGraph, found: Unfinished) -> Assessment:
    """Prove what may be done with an operation.

    Raises
    ------
    RecoveryStoppedError
        If the operation has begun to write but does not hold all roots and chunks of its scope; if table and fork do
        not belong together, so that the voxels under its number may be those of another operation; or if its open row
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
        if replaced := replaced_at_points(graph, found):
            raise RecoveryStoppedError(
                f"operation {found.operation_id} has replaced supervoxel {replaced[0]} in the voxels, but its log row "
                "does not name the chunks that it has changed, and it does not hold them: others may have edited "
                "there since. Nothing was changed.",
                remedy="Let the software that made it repair it, or restore table and fork from backups of one day.",
            )
        remains = read_remains(graph, found)
        if remains.footprint.edited_since:
            raise edited_since(found, remains.footprint)
    locked, foreign = _locks(graph, found, scope)
    n_new, n_switched = _written_rows(graph, found)
    n_new, wanted = n_new + remains.cells, len(scope.lock_keys)
    if locked == wanted and wanted:
        return Assessment(State.HELD, locked, wanted, n_new, record)
    if n_switched or record is not None or remains.boxes or remains.cells:
        what = "; ".join(foreign) or "the lock cells are missing"
        raise RecoveryStoppedError(
            f"operation {found.operation_id} holds {locked} of the {wanted} roots and chunks of its scope, although it "
            f"has begun to write: {what}. Nothing was changed.",
            remedy="Find out which person or tool removed or took these locks. To put back those that nobody holds, "
            f"run 'sv-pipeline stuck recover {graph.graph_id} {found.operation_id} --take-locks', which refuses where "
            "somebody has edited since (docs/sv_splitting_recovery.md).",
        )
    return Assessment(State.UNWRITTEN, locked, wanted, n_new, None)


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


def _written_rows(graph: ChunkedGraph, found: Unfinished) -> tuple[int, int]:
    """Count the rows with cells of the write set: new ones, to which nothing points by themselves, and others.

    Nobody else has the ids of the new rows, but others may have cells with the same timestamp in the other rows, if
    they edited the same objects after its locks had expired, and their clock is behind. An operation writes to those
    only once all of its new rows are written, and its recovery removes the new rows last. So while one of these is
    missing, no other row counts.

    Edges of users are left out: other operations may have written such edges to the same row, nearly at the same time.
    """
    timestamp, cells = found.write_set
    made = made_rows(cells)
    written: set[bytes] = set()
    for column, row_keys in cells.items():
        if column != FAKE_EDGES.key:
            rows = graph.table.read_rows(row_keys, [column])
            written |= {key for key, row in rows.items() if any(c.timestamp == timestamp for c in row[column])}
    return len(written & made), len(written - made) if made <= written else 0


def _record(graph: ChunkedGraph, found: Unfinished, scope: Scope) -> OperationRecord | None:
    if not scope.chunks or not graph.fork.exists():
        return None
    record = graph.fork.record(found.operation_id)
    if record is None or found.foreign:
        return record
    known = read_identity(graph.table, found.operation_id)
    # Older versions record no identity, but no two attempts have the same timestamp.
    if record.identity == known and (known is not None or record.logical_time == scope.timestamp):
        return record
    raise RecoveryStoppedError(
        f"the fork of graph {graph.graph_id!r} holds voxels under the number {found.operation_id} that another "
        "operation has changed: table and fork were restored from different days. Nothing was changed.",
        remedy=f"{restore_advice(graph, Older.NEITHER)} Then recover this operation again.",
    )
