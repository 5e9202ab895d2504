"""Proof that an operation has ended: it holds no lock, is not open, and the graph around it is sound. Changes nothing.

The graph around it is what `neighbourhood` reads around the layer 2 chunks of its scope, of its write set, and of the
supervoxels and edges that the log names. Other processes may edit there at the same time, so a check that fails is
repeated, and its findings count only if no other operation is being written.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sv_pipeline.backoff import Backoff
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import latest_roots
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation, OperationStatus, find_operation
from sv_pipeline.operations.ownership import open_key
from sv_pipeline.operations.unfinished import Phase, RecoveryProgress, Unfinished, find_unfinished
from sv_pipeline.operations.writing import read_supervoxels
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK
from sv_pipeline.verify.neighbourhood import verify_around
from sv_pipeline.verify.report import VerifyReport

__all__ = ["chunks_around", "prove_ended"]

LOOKS = 4
"""Number of times that the checks must fail before their findings count."""
SECONDS_BETWEEN_LOOKS = 0.5


def prove_ended(graph: ChunkedGraph, operation_id: int, found: Unfinished | None = None) -> dict[str, Any]:
    """Check that an operation has ended and that the graph around it is sound.

    Parameters
    ----------
    found
        The operation as a recovery found it, with its scope and write set; None if it was not recovered.

    Returns
    -------
    dict[str, Any]
        Descriptions of what was checked, with numbers.

    Raises
    ------
    CorruptionError
        If the operation still holds a lock or is open, or the graph around it is not sound.
    """
    operation = find_operation(graph, operation_id)
    if operation is None:
        return {"status": "not in the log"}  # it ended before it wrote its row
    checked: dict[str, Any] = {"status": "" if operation.status is None else operation.status.name}
    checked["rows without its lock"] = _nothing_left(graph, operation, found)
    if operation.status is OperationStatus.SUCCESS and len(operation.roots):
        checked["its roots that are current"] = len(
            np.intersect1d(operation.roots, latest_roots(graph, operation.roots))
        )
    if found is not None and found.scope is None and operation.status is not OperationStatus.SUCCESS:
        return checked  # it had not begun to write
    chunks = chunks_around(graph, operation, found)
    if not len(chunks):
        return checked
    for look in range(LOOKS):
        time.sleep(Backoff(SECONDS_BETWEEN_LOOKS).after(look))
        report = verify_around(graph.table, graph.fork, chunks)
        if report.ok:
            return {**checked, "chunks around it": len(chunks), **_numbers(report)}
    unfinished = (one for one in find_unfinished(graph) if one.scope or one.damage)
    others = [one.operation_id for one in unfinished if one.operation_id != operation_id]
    if others:
        named = ", ".join(map(str, others[:5]))
        return {**checked, "not proven": f"operations {named} are being written, or wait for their own recovery"}
    findings = "; ".join(f"{finding.message} [{finding.place}]" for finding in report.findings[:5])
    raise CorruptionError(
        f"operation {operation_id} has ended, but the graph around it is not sound: {findings}",
        remedy=f"Run 'sv-pipeline verify {graph.graph_id}', and see docs/sv_splitting_recovery.md.",
    )


def _nothing_left(graph: ChunkedGraph, operation: Operation, found: Unfinished | None) -> int:
    """Check that the operation is not open and holds no row, and return the number of rows that were checked."""
    operation_id = operation.operation_id
    key = open_key(operation_id)
    for look in range(LOOKS):  # another recovery may have opened it, and be about to find that it has ended
        time.sleep(Backoff(SECONDS_BETWEEN_LOOKS).after(look))
        opened = graph.table.read_rows([key]).get(key)
        if opened is None or RecoveryProgress.of(opened).phase == Phase.UNPROVEN:
            break
    else:
        raise CorruptionError(f"operation {operation_id} is still open.", remedy="Recover it again.")
    if columns.CHUNK_LOCK_SCOPE.key in operation.row:
        raise CorruptionError(f"the log of operation {operation_id} still has a scope.", remedy="Recover it again.")
    row_keys = {*keys.node_keys(operation.roots)}
    if found is not None and found.scope is not None:
        row_keys |= {*found.scope.lock_keys, *keys.node_keys(np.array(found.scope.new_roots, np.uint64))}
    rows = graph.table.read_rows(sorted(row_keys), [LOCK.key, INDEFINITE_LOCK.key], newest_only=True)
    for locked, row in rows.items():
        if operation_id in (LOCK.newest(row), INDEFINITE_LOCK.newest(row)):
            raise CorruptionError(f"operation {operation_id} still holds row {locked!r}.", remedy="Recover it again.")
    return len(row_keys)


def chunks_around(graph: ChunkedGraph, operation: Operation, found: Unfinished | None = None) -> np.ndarray[Any, Any]:
    """Coordinates of the layer 2 chunks that an operation names, shape (n, 3); those whose voxels it wrote come first.

    Parameters
    ----------
    found
        The operation as a recovery found it: its scope and write set are deleted from the table when it ends.
    """
    layout, log = graph.layout, operation.row
    ids: list[UInt64Array] = []
    if found is not None and found.scope is not None:
        ids.append(np.array(found.scope.chunks, np.uint64))
    ids.append(read_supervoxels(graph.table, operation.operation_id)[:, :2].ravel())
    for column in (columns.ADDED_EDGES, columns.REMOVED_EDGES, columns.SOURCE_IDS, columns.SINK_IDS):
        value = column.newest(log)
        ids.append(np.zeros(0, np.uint64) if value is None else np.asarray(value, np.uint64).ravel())
    if found is not None:
        written = {key for row_keys in found.write_set[1].values() for key in row_keys}
        ids.append(keys.node_ids(sorted(key for key in written if len(key) == keys.DIGITS and key.isdigit())))
    every = np.concatenate(ids)
    every = every[np.isin(layout.layers(every), (1, 2))]
    coordinates = layout.coordinates(every)
    coordinates = coordinates[(coordinates < graph.grid.shape(2)).all(axis=-1)]
    _, first = np.unique(coordinates, axis=0, return_index=True)
    return coordinates[np.sort(first)]


def _numbers(report: VerifyReport) -> dict[str, Any]:
    return {f"{result.name}: {result.unit} checked": result.skipped or result.checked for result in report.results}
