"""A worker of PyChunkedGraph as its sheets describe it, which dies at any point of its order of writes.

It plans with our planner, which finds the same nodes; all that it writes is theirs: log rows, locks, cells, their times
and their order. Nothing of ours is left of it: no open row, no record in the fork, no new root that is locked.

| step | |
| --- | --- |
| ``created`` | roots are locked for a while, row of the log: CREATED |
| ``half locked``, ``locked`` | roots are locked indefinitely |
| ``scope``, ``chunks locked`` | of a supervoxel split: the chunks in the log, and their locks |
| ``voxels`` | voxels are written, by storage chunks |
| ``supervoxels:<share>`` | rows of new supervoxels |
| ``rows:<share>`` | rows of everything else, in no order |
| ``succeeded``, ``half released``, ``released`` | row of the log: SUCCESS; locks |
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np

from sv_pipeline.edits import session
from sv_pipeline.edits.write import commit as ours
from sv_pipeline.edits.write.mutations import fake_edge_cells, rows_of
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations import other_software
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.writing import own_key
from sv_pipeline.recovery import claiming, mend
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.columns import (
    AFFINITIES,
    AREAS,
    CHILDREN,
    CHUNK_LOCK_SCOPE,
    COMPACTED_AFFINITIES,
    COMPACTED_AREAS,
    COMPACTED_SPLIT_EDGES,
    FAKE_EDGES,
    FORMER_IDS,
    INDEFINITE_LOCK,
    NEW_IDS,
    OPERATION_ID,
    PARENT,
    SPLIT_EDGES,
)
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell, Table
from sv_pipeline.testing.harness import actors


def their_edit(graph: ChunkedGraph, task: dict[str, Any]) -> Any:
    """An edit that we plan, and that is written as a worker of PyChunkedGraph does it; ``theirs`` says how it dies."""
    session.commit = commit(task["theirs"])
    return actors._do(graph, {**task, "do": task["edit"]})


def recover_old(graph: ChunkedGraph, task: dict[str, Any]) -> Any:
    """A recovery that takes all locks of other software for old."""
    claiming.quiet_seconds = other_software.quiet_seconds = lambda _graph: 0.0
    return actors._do(graph, {**task, "do": "recover"})


def mend_all(graph: ChunkedGraph, _: dict[str, Any]) -> Any:
    """A mend that makes its changes."""
    return mend(graph, apply=True).to_dict()


actors.ACTIONS |= {"their edit": their_edit, "recover old": recover_old, "mend": mend_all}

LATER_MS = 250
"""Cross edges of neighbours are written so much later than the time of the operation."""


class TheirError(Exception):
    """What their bulk write raises."""


@dataclass
class Worker:
    """One edit of theirs."""

    task: dict[str, Any]
    table: Table
    operation: int
    at: int

    @property
    def key(self) -> bytes:
        return keys.node_key(self.operation)

    def reach(self, step: str) -> None:
        if self.task.get("die") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.task.get("fail") == step:
            raise TheirError

    def log(self, status: OperationStatus, cells: list[SetCell], when: int) -> RowMutation:
        every = [
            *cells,
            columns.OPERATION_STATUS.set(int(status)),
            columns.OPERATION_TIMESTAMP.set(datetime.fromtimestamp(self.at / 1000, UTC)),
        ]
        return RowMutation(self.key, [SetCell(cell.column, cell.value, when) for cell in every])

    def write_in_shares(self, name: str, rows: list[RowMutation]) -> None:
        """In no order; dies, or fails, once a share of it is there."""
        order = np.random.default_rng(self.task.get("seed", 0)).permutation(len(rows)).tolist()
        wanted = str(self.task.get("die") or self.task.get("fail") or "")
        if wanted.startswith(f"{name}:"):
            share = float(wanted.partition(":")[2])
            self.table.mutate([rows[i] for i in order[: round(share * len(rows))]])
            self.reach(wanted)
        self.table.mutate(rows)


def commit(task: dict[str, Any]) -> Callable[..., Any]:
    """What stands in the place of our commit."""

    def their_commit(
        graph: Any, held: Any, row: Any, plan: Any, _at: int, user: str, log_cells: list[SetCell], *_: Any
    ) -> Any:
        table, operation = graph.table, row.operation_id
        held.keep = True
        table.mutate([RowMutation(key, [DeleteCells()]) for key in (open_key(operation), own_key(operation))])
        table.mutate([RowMutation(keys.node_key(operation), [DeleteCells()])])
        worker = Worker(task, table, operation, task.get("at") or held.locked_at())
        at = worker.at
        table.mutate([worker.log(OperationStatus.CREATED, [columns.ROOTS.set(np.zeros(0, np.uint64)), *log_cells], at)])
        worker.reach("created")
        provisional = plan.provisional
        ids = ours._ids_of(graph, graph.layout.chunks(provisional))
        plan = plan.renamed(provisional, ids)
        root_keys = keys.node_keys(held.roots)
        locks.renew_all(table, root_keys, operation)
        if plan.supervoxels is not None:
            chunks = np.asarray(held.chunks, np.uint64)
            if task.get("scope", True):
                table.mutate([RowMutation(worker.key, [CHUNK_LOCK_SCOPE.set(chunks, at)])])
            worker.reach("scope")
            if task.get("chunk_locks", True):
                chunk_keys = [keys.chunk_lock_key(c) for c in chunks.tolist()]
                locks.lock_all_indefinitely(table, chunk_keys, operation, guard=())
            worker.reach("chunks locked")
        for key in root_keys:
            assert locks.lock_all_indefinitely(table, [key], operation) == [True]
            worker.reach("half locked")
        worker.reach("locked")
        locks.renew_all(table, root_keys, operation)
        try:
            if plan.supervoxels is not None:
                _write_supervoxels(graph, worker, plan.supervoxels)
            rows = rows_of_theirs(graph, worker, plan, log_cells)
            worker.write_in_shares("rows", rows)
        except TheirError:
            if not task.get("keeps_locks"):
                locks.unlock_all(table, root_keys, operation, indefinite=root_keys)
            status = OperationStatus.EXCEPTION if task.get("says") else OperationStatus.WRITE_STARTED
            said = [columns.OPERATION_EXCEPTION.set("DeadlineExceeded('504')")] if task.get("says") else []
            table.mutate([worker.log(status, [*log_cells, *plan.log_cells, *said], now())])
            raise
        success = [columns.ROOTS.set(plan.hierarchy.new_roots), *log_cells, *plan.log_cells]
        table.mutate([worker.log(OperationStatus.SUCCESS, success, now())])
        worker.reach("succeeded")
        for key in root_keys:
            locks.unlock_all(table, [], operation, indefinite=[key])
            worker.reach("half released")
        locks.unlock_all(table, root_keys, operation)
        chunk_keys = [keys.chunk_lock_key(c) for c in held.chunks.tolist()]
        locks.unlock_all(table, chunk_keys, operation, indefinite=chunk_keys)
        table.mutate([RowMutation(worker.key, [DeleteCells(CHUNK_LOCK_SCOPE.key)])])
        worker.reach("released")
        return SimpleNamespace(operation_id=operation, logical_time=at)

    return their_commit


def now() -> int:
    return time.time_ns() // 1_000_000


def rows_of_theirs(graph: Any, worker: Worker, plan: Any, log_cells: list[SetCell]) -> list[RowMutation]:
    """Everything but supervoxels: the log, nodes, neighbours, roots, edges of users; one mutation a row and kind."""
    at = worker.at
    rows = [worker.log(OperationStatus.WRITE_STARTED, [*log_cells, *plan.log_cells], now())]
    planned = rows_of(plan.hierarchy, worker.operation, at)
    new = {m.key for m in planned.new if any(c.column == CHILDREN.key for c in m.changes)}
    for mutation in planned.every:
        for change in mutation.changes:
            if change.column == INDEFINITE_LOCK.key:
                continue  # their new roots are free
            late = change.column.qualifier.startswith(b"cross_edges_") and mutation.key not in new
            when = max(now(), at + LATER_MS) if late else at
            rows.append(RowMutation(mutation.key, [SetCell(change.column, change.value, when)]))
    for key, edges in fake_edge_cells(plan.hierarchy, plan.fake_edges).items():
        for pair in edges:
            rows.append(RowMutation(key, [FAKE_EDGES.set(pair[None], at)]))
    # Both directions in one row are two cells of one time there, of which the second replaces the first.
    return rows


def _write_supervoxels(graph: Any, worker: Worker, change: Any) -> None:
    """Voxels, then rows: pieces get copies of all parents of the old one, and its nodes list them in its place."""
    volume = graph.fork.open()
    for block in change.blocks(change.ids):
        volume[block.box.slices].write(block.voxels).result()
    worker.reach("voxels")
    at, table = worker.at, worker.table
    by_old: dict[int, list[int]] = {}
    for old, new in change.links.tolist():
        by_old.setdefault(old, []).append(new)
    found = table.read_rows(keys.node_keys(np.array([*by_old], np.uint64)), [PARENT.key])
    rows: list[RowMutation] = []
    lists: dict[tuple[bytes, int], Any] = {}
    for old, fragments in by_old.items():
        parents = found[keys.node_key(old)][PARENT.key]
        for fragment in fragments:
            cells = [SetCell(PARENT.key, cell.value, cell.timestamp) for cell in parents]
            named = [FORMER_IDS.set(np.array([old], np.uint64), at), OPERATION_ID.set(worker.operation, at)]
            rows += [RowMutation(keys.node_key(fragment), cells), RowMutation(keys.node_key(fragment), named)]
        rows.append(RowMutation(keys.node_key(old), [NEW_IDS.set(np.array(fragments, np.uint64), at)]))
        for parent in {PARENT.decode(cell.value) for cell in parents}:
            key = keys.node_key(parent)
            for cell in table.read_rows([key], [CHILDREN.key])[key][CHILDREN.key]:
                listed = lists.get((key, cell.timestamp), CHILDREN.decode(cell.value))
                lists[key, cell.timestamp] = np.concatenate([listed[listed != old], np.array(fragments, np.uint64)])
    rows += [RowMutation(key, [CHILDREN.set(ids, when)]) for (key, when), ids in lists.items()]
    from sv_pipeline.algorithms.local_edges import edit_edge_rows

    for edges in edit_edge_rows(change.edges, graph.layout):
        cells = [
            *(SPLIT_EDGES.set(edges.pairs, at), AFFINITIES.set(edges.affinities, at), AREAS.set(edges.areas, at)),
            COMPACTED_SPLIT_EDGES.set(edges.pairs, at),
            *(COMPACTED_AFFINITIES.set(edges.affinities, at), COMPACTED_AREAS.set(edges.areas, at)),
        ]
        rows.append(RowMutation(keys.edit_edge_key(edges.chunk_id), cells))
    worker.write_in_shares("supervoxels", rows)
