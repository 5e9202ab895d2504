"""Makes a planned edit durable: the order of its writes, and the state that a crash after each of them leaves.

| # | step | state after a crash |
| --- | --- | --- |
| 0 | check that table and fork can take the edit (`ready`) | nothing |
| 1 | reserve ids of new nodes | ids that are never used |
| 2 | write scope and write set to the operation's rows, status WRITE_STARTED | scope, no indefinite locks |
| 3 | lock the old roots indefinitely | + indefinite locks |
| 4 | write rows of new nodes; new roots are locked from the start | + rows that nothing points to |
| 5 | write voxels, if supervoxels were split | + voxels |
| 6 | switch rows over to the new nodes; write edges of edits | + half-switched rows |
| 7 | retire the old roots, each only while its lock belongs to the operation | + a complete graph |
| 8 | status SUCCESS | complete, but locked |
| 9 | release the locks by value match, then clear the scope | nothing |

A crash after step 2 leaves scope and locks for recovery. An error before step 3 is complete is cleaned up here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange, rows_of_supervoxels
from sv_pipeline.edits.write.cells import put_edges, take_back, take_back_edges
from sv_pipeline.edits.write.locking import EditLocks
from sv_pipeline.edits.write.mutations import PlannedRows, fake_edge_cells, rows_of
from sv_pipeline.edits.write.ready import refuse_large_cells, require_ready
from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, OperationStatus
from sv_pipeline.operations.pair import ensure_identity, note_commit
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.operations.writing import OperationRow, Scope, write_set
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import CHILDREN, FAKE_EDGES, INDEFINITE_LOCK, PARENT
from sv_pipeline.table.interface import CellMatch, ConditionalMutation, RowMutation, SetCell, Table

__all__ = ["CommittedEdit", "commit"]

log = logging.getLogger(__name__)

Step = Callable[[], None]


@dataclass(frozen=True, repr=False)
class CommittedEdit(Operation):
    """An edit that was made."""

    old_roots: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Roots that it replaced, ascending."""
    edges: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """The edges that the log names, shape (n, 2): for a merge that of the user, for a split those that it removed."""
    logical_time: int = 0
    """Timestamp of all its cells, in milliseconds since the epoch."""
    supervoxels: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """Pairs (old, new) of the supervoxels that it replaced, shape (n, 2)."""
    still_one_object: bool = False
    """Whether a remaining path connects what the edit should separate: after a split, some source and some sink share a
    root; after an undo or redo that made an edge inactive, the ends of that edge do."""


def commit(
    graph: ChunkedGraph,
    held: EditLocks,
    row: OperationRow,
    plan: EditPlan,
    timestamp: int,
    user: str,
    log_cells: list[SetCell],
    inherited: Scope | None = None,
    graph_identity: str | None = None,
) -> CommittedEdit:
    """Write a plan.

    Parameters
    ----------
    held
        Locks of all old roots.
    row
        The operation's row in the log.
    timestamp
        Logical time of the edit, in milliseconds since the epoch.
    log_cells
        The request, as cells of the operation's row.
    inherited
        What an earlier attempt at the operation holds locked.
    graph_identity
        Identity of the graph that its table records; None if it has none yet.

    Raises
    ------
    OwnershipLostError
        If another process has taken over the locks or the operation itself; nothing more is written.
    SvPipelineError
        If table or fork cannot take the edit; nothing is written.
    """
    held.check()
    table = graph.table
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(require_ready, graph, row, plan.supervoxels)
        plan, rows = _start(graph, held, row, plan, timestamp, log_cells, inherited, ready.result)
    hierarchy = plan.hierarchy
    fake = fake_edge_cells(hierarchy, plan.fake_edges)
    held.keep = True  # from here on, only the end of the edit or its recovery may release the locks
    _lock_or_tidy_up(held, row)

    with _durable("new rows", held, table, rows.new, timestamp):
        new: list[Step] = [partial(table.mutate, rows.new), held.verify]
        table.side_by_side(_take, new)
    puts: list[Step] = [partial(put_edges, table, key, edges, timestamp) for key, edges in fake.items()]
    if plan.supervoxels is not None:
        held.verify()
        reach("voxels")
        try:
            committed = _commit_voxels(graph, row, plan.supervoxels, timestamp, graph_identity)
        except ConflictError:
            held.verify()  # raises OwnershipLostError if another process has taken the operation over
            raise
        reach("voxels written")
        held.verify()
        puts.append(partial(note_commit, table, row.operation_id, row.identity, committed))
    with _durable("switch", held, table, rows.switching, timestamp, fake):
        for piece in pieces("half switched", rows.switching):
            switching: list[Step] = [partial(table.mutate, piece), *puts]
            table.side_by_side(_take, switching)
    with _durable("retire", held, table, rows.retired, timestamp):
        _retire(table, row.operation_id, rows.retired)
    held.check()
    reach("succeed")
    row.succeed(hierarchy.new_roots, timestamp)
    reach("succeeded")
    held.check()
    held.release()
    reach("released")
    row.clear_scope(chunks=len(held.chunks) > 0 or inherited is not None)
    return CommittedEdit(
        operation_id=row.operation_id,
        kind=plan.kind,
        status=OperationStatus.SUCCESS,
        timestamp=datetime.fromtimestamp(timestamp / 1000, UTC),
        user=user,
        roots=hierarchy.new_roots,
        exception=None,
        row={},
        old_roots=hierarchy.old_roots,
        edges=next((e for e in (plan.added_edges, plan.removed_edges) if e is not None), np.zeros((0, 2), np.uint64)),
        logical_time=timestamp,
        supervoxels=plan.supervoxels.links if plan.supervoxels else np.zeros((0, 2), np.uint64),
        still_one_object=plan.still_one_object,
    )


def _commit_voxels(
    graph: ChunkedGraph, row: OperationRow, change: SupervoxelChange, timestamp: int, graph_identity: str | None
) -> int:
    """Commit the voxels of new supervoxels; return the generation of the fork that holds them."""
    blocks = change.blocks(change.ids)
    edit = EditCommit(
        row.operation_id,
        blocks,
        change.generation,
        timestamp,
        row.owner,
        blocks.boxes,
        identity=row.identity,
        graph=graph_identity or ensure_identity(graph.table),
    )
    return graph.fork.commit(edit).generation


def _take(step: Step) -> None:
    step()


@contextmanager
def _durable(
    step: str,
    held: EditLocks,
    table: Table,
    rows: list[RowMutation],
    timestamp: int,
    fake: dict[bytes, UInt64Array] | None = None,
) -> Iterator[None]:
    """Check ownership before and after rows are written; rows that were written without it are removed at once.

    A process can be suspended between a check and its write for so long that it is taken for dead and its operation
    recovered. When it continues, it writes cells too late. They can be removed safely, because no other operation
    writes cells with this timestamp.
    """
    held.check()
    reach(step)
    try:
        yield
        reach(f"{step} written")
        held.check()
    except OwnershipLostError:
        take_back(table, rows, timestamp, held.operation_id)
        for key, edges in (fake or {}).items():
            take_back_edges(table, key, edges, timestamp)
        log.warning("operation %d lost its locks while it was writing; its late cells are removed", held.operation_id)
        raise


def _lock_or_tidy_up(held: EditLocks, row: OperationRow) -> None:
    reach("lock indefinitely")
    try:
        held.make_indefinite()
        reach("locked indefinitely")
        held.check()
    except OwnershipLostError:
        if not row.own.is_mine:
            held.keep = row.own.successor is not None
            raise
        # Nothing is written yet, and another process has taken only the locks, not the operation.
        held.keep = False
        held.release()
        row.forget_plan()
        raise


def _ids_of(graph: ChunkedGraph, chunks: UInt64Array) -> UInt64Array:
    """Reserve ids for nodes in these chunks, in descending order within each chunk.

    ``chunks`` holds the chunk id of each node, shape (n,), with equal ids next to each other.
    """
    distinct, counts = np.unique(chunks, return_counts=True)

    wanted = list(zip(distinct.tolist(), counts.tolist(), strict=True))
    firsts = counters.reserve_many(graph.table, graph.layout, wanted)
    given = [
        counters.node_ids(graph.layout, chunk, first, count)
        for (chunk, count), first in zip(wanted, firsts, strict=True)
    ]
    ids = np.zeros(len(chunks), np.uint64)
    for chunk, some in zip(distinct, given, strict=True):
        # Provisional ids count down, so that the order of nodes in a chunk is kept.
        ids[chunks == chunk] = some[::-1]
    return ids


def _start(
    graph: ChunkedGraph,
    held: EditLocks,
    row: OperationRow,
    plan: EditPlan,
    timestamp: int,
    log_cells: list[SetCell],
    inherited: Scope | None,
    looked: Step,
) -> tuple[EditPlan, PlannedRows]:
    """Give the plan its final ids, and write the intent to the operation's rows.

    If an id has a row already, because older software has used some ids twice, this is repeated with another id.
    """
    provisional = plan.provisional
    final = np.zeros(len(provisional), np.uint64)
    wanting = np.arange(len(provisional))
    while True:
        final[wanting] = _ids_of(graph, graph.layout.chunks(provisional[wanting]))
        named = plan.renamed(provisional, final)
        rows = rows_of(named.hierarchy, row.operation_id, timestamp)
        if named.supervoxels is not None:
            rows = rows.with_supervoxels(
                *rows_of_supervoxels(named.supervoxels, graph.layout, row.operation_id, timestamp)
            )
        fake = fake_edge_cells(named.hierarchy, plan.fake_edges)
        planned = [*rows.every]
        planned += [RowMutation(key, [FAKE_EDGES.set(edges, timestamp)]) for key, edges in fake.items()]
        refuse_large_cells(planned)
        looked()
        scope = Scope(
            timestamp,
            tuple(named.hierarchy.old_roots.tolist()),
            tuple(named.hierarchy.new_roots.tolist()),
            tuple(held.chunks.tolist()),
            named.supervoxels.generation if named.supervoxels else None,
        ).joined(inherited)
        held.check()
        row_keys = keys.node_keys(final)
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(graph.table.read_rows, row_keys, [CHILDREN.key, PARENT.key], newest_only=True)
            row.start_writing(
                scope,
                write_set(planned, timestamp),
                [*log_cells, *named.log_cells],
                named.activated,
                named.supervoxels.record if named.supervoxels else None,
                still_one_object=named.still_one_object,
            )
        wanting = np.flatnonzero([key in taken.result() for key in row_keys])
        if not len(wanting):
            held.new_roots = named.hierarchy.new_roots
            return named, rows


def _retire(table: Table, operation_id: int, rows: Iterable[RowMutation]) -> None:
    mine = CellMatch(INDEFINITE_LOCK.key, INDEFINITE_LOCK.encode(operation_id))

    if not all(table.check_and_mutate_many([ConditionalMutation(r.key, [mine], if_matched=r.changes) for r in rows])):
        raise OwnershipLostError(
            f"operation {operation_id} was taken over while it wrote.",
            remedy="The process that has taken it over will finish it.",
        )


def logical_time(locked_at: int, latest: int) -> int:
    """Return the timestamp of an edit, in milliseconds since the epoch.

    This is the time when it took its locks, or, if clocks disagree, a later time after every cell that it replaces.
    """
    return max(locked_at, latest + 1, 0) or time.time_ns() // 1_000_000
