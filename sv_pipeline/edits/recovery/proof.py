"""Proof that an operation was brought to its end: no lock, no scope, and the objects that it made are whole. Reads."""

from __future__ import annotations

import numpy as np

from sv_pipeline.edits.operation_log import read_supervoxels
from sv_pipeline.edits.ownership import open_key
from sv_pipeline.edits.recovery.unfinished import Phase, Progress, Unfinished
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import Operation, OperationStatus, latest_roots, read_operations
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.segmentation.operations import read_operation
from sv_pipeline.segmentation.reader import open_fork
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK

__all__ = ["prove_ended"]


def prove_ended(graph: ChunkedGraph, operation_id: int, found: Unfinished | None = None) -> dict[str, int | str]:
    """Check one operation after its recovery.

    Parameters
    ----------
    found
        The operation as the recovery found it: what it held and wrote.

    Returns
    -------
    dict[str, int | str]
        What was checked.

    Raises
    ------
    CorruptionError
        If something is left, or does not fit.
    """
    operations = read_operations(graph, [operation_id])
    if not operations:
        return {"status": "not in the log"}  # it ended before it had a row there
    operation, scope = operations[0], None if found is None else found.scope
    key = open_key(operation_id)
    opened = graph.table.read_rows([key]).get(key)
    if opened is not None and Progress.of(opened).phase != Phase.UNPROVEN:
        raise CorruptionError(f"operation {operation_id} is still open.", remedy="Recover it again.")
    if columns.CHUNK_LOCK_SCOPE.key in operation.row:
        raise CorruptionError(f"the log of operation {operation_id} still names a scope.", remedy="Recover it again.")
    row_keys = [*(scope.lock_keys if scope else ()), *keys.node_keys(operation.roots)]
    rows = graph.table.read_rows(row_keys, [LOCK.key, INDEFINITE_LOCK.key], newest_only=True)
    for key, row in rows.items():
        if operation_id in (LOCK.newest(row), INDEFINITE_LOCK.newest(row)):
            raise CorruptionError(f"operation {operation_id} still holds row {key!r}.", remedy="Recover it again.")
    checked: dict[str, int | str] = {
        "status": "" if operation.status is None else operation.status.name,
        "rows_without_lock": len(row_keys),
    }
    if operation.status is OperationStatus.SUCCESS:
        checked |= _objects(graph, operation) | _voxels(graph, operation)
    return checked


def _objects(graph: ChunkedGraph, operation: Operation) -> dict[str, int | str]:
    """Supervoxels below the roots that it made lead back to them."""
    current = np.intersect1d(operation.roots, latest_roots(graph, operation.roots))
    count = 0
    for root in current.tolist():
        below = leaves(graph, np.array([root], np.uint64)).values
        if not len(below) or (roots(graph, below) != root).any():
            raise CorruptionError(
                f"supervoxels below root {root} of operation {operation.operation_id} have another root.",
                remedy="Run 'sv-pipeline verify'.",
            )
        count += len(below)
    return {"roots": len(current), "supervoxels": count}


def _voxels(graph: ChunkedGraph, operation: Operation) -> dict[str, int | str]:
    """Supervoxels that it made have voxels, unless they were replaced since."""
    made = read_supervoxels(graph.table, operation.operation_id)[:, 1]
    if not len(made):
        return {}
    record = read_operation(graph.watershed_url, graph.graph_id, operation.operation_id)
    if record is None:
        raise CorruptionError(f"the voxels of operation {operation.operation_id} are missing.", remedy="Run 'verify'.")
    fork = open_fork(graph.watershed_url, graph.graph_id)
    reads = [fork[box.slices].read() for box in record.boxes]
    there = np.unique(np.concatenate([np.unique(read.result()) for read in reads]))
    rows = graph.table.read_rows(keys.node_keys(made), [columns.NEW_IDS.key])
    alive = made[[keys.node_key(sv) not in rows for sv in made.tolist()]]
    if not np.isin(alive, there).all():
        raise CorruptionError(
            f"supervoxels of operation {operation.operation_id} have no voxels.", remedy="Run 'sv-pipeline verify'."
        )
    return {"new_supervoxels_in_voxels": len(alive), "boxes": len(record.boxes)}
