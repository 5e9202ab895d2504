"""Taking edits back, making them again, and looking at what was done. The log itself is of ``graph.lineage``.

| operation | undo | redo |
| --- | --- | --- |
| merge | the edges that it activated become inactive | they become active again |
| split | the edges that it removed become active | they become inactive again |

An undo of an undo is a redo, and so on: chains are followed to the operation that they are about. What later edits did
stays: only edges that are still as the operation left them change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sv_pipeline.edits.commit import CommittedEdit, EditPlan
from sv_pipeline.edits.locking import LockPatience
from sv_pipeline.edits.merging import plan_addition
from sv_pipeline.edits.operation_log import read_activated
from sv_pipeline.edits.refusal import EditRefused, Reason
from sv_pipeline.edits.region import read_region
from sv_pipeline.edits.session import Workspace, run_edit
from sv_pipeline.edits.splitting import plan_removal
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.hierarchy import Time, read_ancestor_matrix
from sv_pipeline.graph.lineage import Operation, OperationStatus, read_operations
from sv_pipeline.graph.queries import leaves, roots
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import columns
from sv_pipeline.table.columns import Ragged
from sv_pipeline.table.interface import SetCell

__all__ = ["leaves_at", "operations_table", "redo", "undo"]


@dataclass(frozen=True, eq=False)
class RevertRequest:
    """Change edges back, or again."""

    user: str
    operation_id: int
    """The merge or split that this is about."""
    kind: str
    """undo or redo."""
    activate: bool
    """Whether the edges become active."""
    edges: UInt64Array
    """Shape (n, 2)."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Ends of the edges."""
        return np.unique(self.edges)


def undo(graph: ChunkedGraph, operation_id: int, user: str, *, patience: LockPatience | None = None) -> CommittedEdit:
    """Take an operation back.

    Raises
    ------
    EditRefused
        If it is none that succeeded, or nothing of it is left to be undone.
    """
    return _revert(graph, operation_id, user, undo_it=True, patience=patience)


def redo(graph: ChunkedGraph, operation_id: int, user: str, *, patience: LockPatience | None = None) -> CommittedEdit:
    """Make an operation again that was undone.

    Raises
    ------
    EditRefused
        If it is none that succeeded, or it is in force as it is.
    """
    return _revert(graph, operation_id, user, undo_it=False, patience=patience)


def _revert(
    graph: ChunkedGraph, operation_id: int, user: str, *, undo_it: bool, patience: LockPatience | None
) -> CommittedEdit:
    request = _request(graph, operation_id, user, undo_it=undo_it)
    return run_edit(
        graph,
        request,
        _plan,
        prepare=lambda r: _of_living_supervoxels(graph, r),
        log_cells=_log_cells,
        patience=patience,
    )


def _request(graph: ChunkedGraph, operation_id: int, user: str, *, undo_it: bool) -> RevertRequest:
    """What an undo or redo comes to, after following chains of them."""
    operation = _successful(graph, operation_id)
    while operation.kind in ("undo", "redo"):
        undo_it = undo_it if operation.kind == "redo" else not undo_it
        operation = _successful(graph, _about(operation))
    if operation.kind == "merge":
        edges = read_activated(graph.table, operation.operation_id)
        if edges is None:
            edges = columns.ADDED_EDGES.newest(operation.row)
    else:
        edges = columns.REMOVED_EDGES.newest(operation.row)
    if edges is None or not len(edges):
        raise EditRefused(Reason.NOTHING_TO_UNDO, f"operation {operation.operation_id} names no edges.")
    pairs = np.unique(np.sort(edges.astype(np.uint64), axis=1), axis=0)
    kind = "undo" if undo_it else "redo"
    return RevertRequest(user, operation.operation_id, kind, (operation.kind == "split") is undo_it, pairs)


def _about(operation: Operation) -> int:
    column = columns.UNDO_OPERATION_ID if operation.kind == "undo" else columns.REDO_OPERATION_ID
    return column.newest(operation.row) or 0


def _successful(graph: ChunkedGraph, operation_id: int) -> Operation:
    found = read_operations(graph, [operation_id])
    if not found:
        raise EditRefused(Reason.NOTHING_TO_UNDO, f"there is no operation {operation_id}.")
    if found[0].status is not OperationStatus.SUCCESS:
        status = found[0].status.name if found[0].status is not None else "without status"
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"operation {operation_id} is {status}; only what succeeded can be undone or redone.",
        )
    return found[0]


def _of_living_supervoxels(graph: ChunkedGraph, request: RevertRequest) -> RevertRequest:
    """Without edges of supervoxels that were split since."""
    if not request.user.strip():
        raise EditRefused(Reason.BAD_REQUEST, "the request names no user.", remedy="Every edit has an author.")
    ids = request.supervoxels
    gone = ids[replaced(graph, ids)]
    edges = request.edges[~np.isin(request.edges, gone).any(axis=1)]
    if not len(edges):
        raise _nothing(request)
    return RevertRequest(request.user, request.operation_id, request.kind, request.activate, edges)


def _plan(workspace: Workspace, request: RevertRequest) -> EditPlan:
    graph, edges = workspace.graph, request.edges
    matrix = read_ancestor_matrix(graph, edges.reshape(-1)).reshape(len(edges), 2, -1)
    above = graph.layout.cross_layers(edges[:, 0], edges[:, 1]) + 1
    rows = np.arange(len(edges))
    active = matrix[rows, 0, above] == matrix[rows, 1, above]
    todo = active != request.activate
    if not todo.any():
        raise _nothing(request)
    none = np.zeros((0, 2), np.uint64)
    if request.activate:
        workspace.cache.fetch(np.unique(matrix[todo][:, :, 2:]))
        return plan_addition(workspace, request.kind, edges[todo], matrix[todo][:, :, 2], edges[todo], none)
    corners = graph.layout.coordinates(np.unique(edges[todo])) * np.asarray(graph.grid.chunk_size)
    corners = corners + np.asarray(graph.grid.bounds.start)
    box = Box.of(corners.min(axis=0), corners.max(axis=0) + np.asarray(graph.grid.chunk_size))
    region = read_region(graph, workspace.cache, workspace.roots, box)
    return plan_removal(workspace, request.kind, region, edges[todo])


def _nothing(request: RevertRequest) -> EditRefused:
    state = "active" if request.activate else "inactive"
    return EditRefused(
        Reason.NOTHING_TO_UNDO,
        f"there is nothing to {request.kind}: all edges of operation {request.operation_id} that still exist are "
        f"{state} already.",
    )


def _log_cells(request: RevertRequest) -> list[SetCell]:
    column = columns.UNDO_OPERATION_ID if request.kind == "undo" else columns.REDO_OPERATION_ID
    return [columns.USER.set(request.user), column.set(request.operation_id)]


# -- looking back -----------------------------------------------------------------------------------------------------


def operations_table(graph: ChunkedGraph) -> pd.DataFrame:
    """The operation log: id, kind, status, time, user, number of roots and the roots, reason of a refusal."""
    rows: list[dict[str, Any]] = []
    for operation in read_operations(graph):
        text = operation.exception or ""
        refused = text.startswith("refused:")
        rows.append(
            {
                "operation_id": operation.operation_id,
                "kind": operation.kind,
                "status": "" if operation.status is None else operation.status.name,
                "refused": text.split(":", 2)[1] if refused else "",
                "time": operation.timestamp,
                "user": operation.user or "",
                "n_roots": len(operation.roots),
                "roots": operation.roots.tolist(),
                "exception": text,
            }
        )
    names = ["operation_id", "kind", "status", "refused", "time", "user", "n_roots", "roots", "exception"]
    return pd.DataFrame(rows, columns=names).set_index("operation_id")


def leaves_at(graph: ChunkedGraph, supervoxels: Any, at: Time) -> Ragged:
    """The supervoxels of the object that each supervoxel was part of at a moment.

    Those that were split later are listed as their fragments: PyChunkedGraph's layout keeps no older lists.
    """
    return leaves(graph, roots(graph, supervoxels, at=at))
