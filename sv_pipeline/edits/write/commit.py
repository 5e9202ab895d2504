"""Making a planned edit durable: the order of its writes, and what holds if the process dies between two of them.

| # | step | a crash right after it leaves |
| --- | --- | --- |
| 0 | it is looked whether table and fork can take it (`ready`) | nothing |
| 1 | ids of new nodes | numbers given to nobody |
| 2 | scope and write set on the operation's rows, status WRITE_STARTED | scope, no locks |
| 3 | indefinite locks of the old roots | + locks |
| 4 | rows of new nodes; new roots are born locked | + rows that nothing points to |
| 5 | voxels, if supervoxels were split | + voxels |
| 6 | rows that switch over; edges of edits | + half-switched rows |
| 7 | the old roots are retired, each only while its lock is ours | + a finished graph |
| 8 | status SUCCESS | finished, locked |
| 9 | locks released by value match, then the scope cleared | nothing |

A death after 2 leaves scope and locks for recovery; an error before 3 is complete is tidied up here.
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
    """Roots that it replaced."""
    edges: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """The edges that the log names: a user's edge of a merge, what a split removed."""
    logical_time: int = 0
    """Milliseconds; of all its cells."""
    supervoxels: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    """(old, new) of the supervoxels that it replaced, shape (n, 2)."""
    still_one_object: bool = False
    """Whether what was to be parted hangs together all the same, by a way around: some source shares a root with some
    sink after a split, or the ends of an edge after an undo or redo that made it inactive."""


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
    timestamp
        Logical time of the edit, milliseconds.
    log_cells
        The request, for the operation's row.
    inherited
        What an earlier attempt at the operation holds locked.
    graph_identity
        As the table says; None if it has none yet.

    Raises
    ------
    OwnershipLostError
        If the locks, or the operation itself, went to somebody else: nothing more is written.
    SvPipelineError
        If table or fork could not take the edit; then nothing is written.
    """
    held.check()
    table = graph.table
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(require_ready, graph, row, plan.supervoxels)
        plan, rows = _start(graph, held, row, plan, timestamp, log_cells, inherited, ready.result)
    hierarchy = plan.hierarchy
    fake = fake_edge_cells(hierarchy, plan.fake_edges)
    held.keep = True  # from here on only recovery may release them, or the end of the edit
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
            held.verify()  # says so if the operation was taken over
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
    """Commit them; the generation that they are."""
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
    """Check ownership before rows are written, and after: what was written without it is taken out again at once.

    A process can be stopped between a check and its write, for long enough to be taken for dead and recovered. When it
    goes on, its cells come too late; nobody else's are of their time.
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
        log.warning("operation %d: what was written too late is taken back", held.operation_id)
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
        # Nothing is written, and only the locks went to somebody else.
        held.keep = False
        held.release()
        row.forget_plan()
        raise


def _ids_of(graph: ChunkedGraph, chunks: UInt64Array) -> UInt64Array:
    """Fresh ids for nodes in these chunks (shape (n,), equal ones next to each other), in descending order in each."""
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
    """Give the plan its ids and write the intent; again if an id has a row already (older software gave some twice)."""
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
            f"operation {operation_id} was taken over while it wrote.", remedy="Whoever did so brings it to an end."
        )


def logical_time(locked_at: int, latest: int) -> int:
    """Time of an edit: when it took its locks, but after every cell that it replaces, whatever clocks say."""
    return max(locked_at, latest + 1, 0) or time.time_ns() // 1_000_000
