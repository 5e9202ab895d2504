"""Makes a planned edit durable: the order of its writes, and the state that a crash after each of them leaves.

Changes of one step are sent together and become durable in any order, so a crash within a step leaves any subset of
them. Each row of the table holds for all subsets.

| # | step | state after a crash within the step, or after it |
| --- | --- | --- |
| 0 | check that table and fork can take the edit (`ready`) | nothing |
| 1 | reserve ids of new nodes, if those reserved with the operation's own id do not suffice | ids that are never used |
| 2 | scope and write set, status WRITE_STARTED, what an undo needs | without the scope nothing, else the scope |
| 3 | indefinite locks of old roots and chunks; rows of new nodes, of which the roots are locked from the start |
|   | | + some locks, and rows that nothing points to, which recovery removes whether or not all locks are held |
| 4 | voxels, if supervoxels were split | + all locks, and voxels |
| 5 | switch rows over to the new nodes; edges of edits; retire each old root while its lock is the operation's |
|   | | + half-switched rows |
| 6 | status SUCCESS | a complete graph, locked |
| 7 | release the locks by value match; delete the chunks from the log | some locks |
| 8 | remove the open row with the scope | nothing |

A crash after step 2 leaves scope and locks for recovery. An error before step 3 is complete is cleaned up here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.supervoxel_change import SupervoxelChange, rows_of_supervoxels
from sv_pipeline.edits.write.cells import first_attempt, put_edges, take_back, take_back_edges
from sv_pipeline.edits.write.early_ids import EarlyIds
from sv_pipeline.edits.write.locking import EditLocks
from sv_pipeline.edits.write.mutations import PlannedRows, fake_edge_cells, rows_of
from sv_pipeline.edits.write.ready import refuse_large_cells, require_ready
from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import reach, together
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.parent_hints import hints_of
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, OperationStatus
from sv_pipeline.operations.pair import ensure_identity, note_of_commit
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.operations.writing import OperationRow, Scope, write_set
from sv_pipeline.segmentation.fork.commit import EditCommit
from sv_pipeline.storage.ocdbt import OcdbtStore
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import CHILDREN, FAKE_EDGES, INDEFINITE_LOCK, PARENT
from sv_pipeline.table.interface import CellMatch, ConditionalMutation, RowMutation, SetCell, Table

__all__ = ["CommittedEdit", "commit"]

log = logging.getLogger(__name__)


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
    early: EarlyIds | None = None,
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
    early
        Ids that are reserved already.

    Raises
    ------
    OwnershipLostError
        If another process has taken over the locks or the operation itself; nothing more is written.
    SvPipelineError
        If table or fork cannot take the edit; nothing is written.
    """
    held.check()
    table = graph.table
    with Helpers() as pool:
        ready = pool.submit(require_ready, graph, row, plan.supervoxels)
        plan, rows = _start(graph, held, row, plan, timestamp, log_cells, inherited, ready.result, early)
    hierarchy = plan.hierarchy
    fake = fake_edge_cells(hierarchy, plan.fake_edges)
    held.keep = True  # from here on, only the end of the edit or its recovery may release the locks
    _lock_and_write_new_rows(held, row, rows.new, timestamp)
    noted: list[RowMutation] = []
    if plan.supervoxels is not None:
        held.check()
        reach("voxels")
        try:
            committed = _commit_voxels(graph, row, plan.supervoxels, timestamp, graph_identity, ready.result())
        except ConflictError:
            held.verify()  # raises OwnershipLostError if another process has taken the operation over
            raise
        reach("voxels written")
        held.verify()
        noted.append(note_of_commit(row.operation_id, row.identity, committed))
    with _durable("switch", held, table, [*rows.switching, *rows.retired], timestamp, fake):
        _switch(table, row.operation_id, [*rows.switching, *noted], rows.retired, fake, timestamp)
    hints_of(table).note(hierarchy.new.children.values, np.repeat(hierarchy.new.ids, hierarchy.new.children.lengths))
    reach("succeed")
    row.succeed(hierarchy.new_roots, timestamp)
    reach("succeeded")
    held.check()
    chunks = [row.without_chunks()] if len(held.chunks) > 0 or inherited is not None else []
    held.release(chunks, complete=True)
    reach("released")
    row.clear_scope()
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
    graph: ChunkedGraph,
    row: OperationRow,
    change: SupervoxelChange,
    timestamp: int,
    graph_identity: str | None,
    store: OcdbtStore | None,
) -> int:
    """Commit the voxels of new supervoxels; return the generation of the fork that holds them.

    ``store`` is the fork, if it is open already.
    """
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
    return graph.fork.commit(edit, store=store).generation


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


def _lock_and_write_new_rows(held: EditLocks, row: OperationRow, new: list[RowMutation], timestamp: int) -> None:
    """Lock indefinitely, and write the rows of new nodes meanwhile; if the locks are lost, these are removed again."""
    reach("lock indefinitely")
    try:
        held.make_indefinite(new)
        reach("new rows written")
        held.check()
    except OwnershipLostError:
        take_back(held.table, new, timestamp, held.operation_id)
        if not row.own.is_mine:
            held.keep = row.own.successor is not None
            raise
        # Nothing else is written yet, and another process has taken only the locks, not the operation.
        held.keep = False
        held.release()
        row.forget_plan()
        raise


def _ids_of(graph: ChunkedGraph, chunks: UInt64Array, early: EarlyIds | None = None) -> UInt64Array:
    """Reserve ids for nodes in these chunks, in descending order within each chunk.

    ``chunks`` holds the chunk id of each node, shape (n,), with equal ids next to each other.
    """
    distinct, counts = np.unique(chunks, return_counts=True)
    given = {
        chunk: [] if early is None else early.take(chunk, count)
        for chunk, count in zip(distinct.tolist(), counts.tolist(), strict=True)
    }
    lacking = zip(distinct.tolist(), counts.tolist(), strict=True)
    wanted = [(chunk, count - len(given[chunk])) for chunk, count in lacking if count > len(given[chunk])]
    firsts = counters.reserve_many(graph.table, graph.layout, wanted) if wanted else []
    for (chunk, count), first in zip(wanted, firsts, strict=True):
        given[chunk] += counters.node_ids(graph.layout, chunk, first, count).tolist()
    ids = np.zeros(len(chunks), np.uint64)
    for chunk, some in given.items():
        # Provisional ids count down, so that the order of nodes in a chunk is kept.
        ids[chunks == chunk] = np.sort(np.array(some, np.uint64))[::-1]
    return ids


def _start(
    graph: ChunkedGraph,
    held: EditLocks,
    row: OperationRow,
    plan: EditPlan,
    timestamp: int,
    log_cells: list[SetCell],
    inherited: Scope | None,
    looked: Callable[[], object],
    early: EarlyIds | None,
) -> tuple[EditPlan, PlannedRows]:
    """Give the plan its final ids, and write the intent to the operation's rows.

    If an id has a row already, because older software has used some ids twice, this is repeated with another id.
    """
    provisional = plan.provisional
    final = np.zeros(len(provisional), np.uint64)
    wanting = np.arange(len(provisional))
    while True:
        final[wanting] = _ids_of(graph, graph.layout.chunks(provisional[wanting]), early)
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
        with Helpers() as pool:
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


def _switch(
    table: Table,
    operation_id: int,
    switching: list[RowMutation],
    retired: list[RowMutation],
    fake: dict[bytes, UInt64Array],
    timestamp: int,
) -> None:
    """Switch rows over and write fake edges; retire the old roots, each only while its lock is the operation's."""
    mine = CellMatch(INDEFINITE_LOCK.key, INDEFINITE_LOCK.encode(operation_id))
    puts = [first_attempt(key, edges, timestamp) for key, edges in fake.items()]
    retiring = [ConditionalMutation(root.key, [mine], if_matched=root.changes) for root in retired]
    changes: list[RowMutation | ConditionalMutation] = [*switching, *puts, *retiring]
    answers = together("half switched", changes, table.at_once)[len(switching) :]
    for (key, edges), other in zip(fake.items(), answers[: len(puts)], strict=True):
        if other:
            put_edges(table, key, edges, timestamp)
    if not all(answers[len(puts) :]):
        raise OwnershipLostError(
            f"operation {operation_id} was taken over while it wrote.",
            remedy="The process that has taken it over will finish it.",
        )


def logical_time(locked_at: int, latest: int) -> int:
    """Return the timestamp of an edit, in milliseconds since the epoch.

    This is the time when it took its locks, or, if clocks disagree, a later time after every cell that it replaces.
    """
    return max(locked_at, latest + 1, 0) or time.time_ns() // 1_000_000
