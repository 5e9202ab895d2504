"""Undo and redo of operations.

| operation | undo | redo |
| --- | --- | --- |
| merge | the edges that it activated become inactive | they become active again |
| split | the edges that it removed become active | they become inactive again |
| split of supervoxels | fragments become one supervoxel again; edges as above | the split is repeated with its points |

An undo of an undo is a redo, and so on: a chain of undos and redos is followed to its merge or split. The effects of
later edits remain, because only edges that are still as the operation left them are changed.

An undo or redo is refused in two cases:

- Later edits have changed the fragments of a split of supervoxels. The refusal names these operations.
- Edges would become inactive without separating anything, because later edits have connected their ends elsewhere.
  ``allow_partial`` permits this. The redo of a split that separated nothing in the first place needs no permission.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_user
from sv_pipeline.edits.activated_edges import edges_activated_by
from sv_pipeline.edits.merging import plan_addition
from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.region import read_region
from sv_pipeline.edits.plan.removal import plan_removal
from sv_pipeline.edits.plan.supervoxel_undo import UndoOfSplit, plan_undo_of_split
from sv_pipeline.edits.plan.workspace import Workspace
from sv_pipeline.edits.requests import Points, SplitRequest
from sv_pipeline.edits.session import Edit, Resumption, run_edit
from sv_pipeline.edits.splitting import Split
from sv_pipeline.edits.write.commit import CommittedEdit
from sv_pipeline.edits.write.locking import LockPatience
from sv_pipeline.errors import NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import replaced
from sv_pipeline.graph.hierarchy import read_ancestor_matrix
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.log import Operation, OperationStatus, chain, ending, read_operation
from sv_pipeline.operations.pair import misfit_first
from sv_pipeline.operations.refusal import EditRefused, Reason, bad_request
from sv_pipeline.operations.successors import names_of_today
from sv_pipeline.operations.undo_chain import EffectiveSplit, effective_split
from sv_pipeline.operations.writing import read_activated, read_still_one_object, read_supervoxels
from sv_pipeline.table import columns
from sv_pipeline.table.interface import SetCell

__all__ = ["redo", "undo"]


@dataclass(frozen=True, eq=False)
class RevertRequest:
    """The undo or redo of an operation that changed edges only, as an :class:`~sv_pipeline.edits.session.Edit`."""

    user: str
    operation_id: int
    """The merge or split that is undone or redone."""
    kind: str
    """``undo`` or ``redo``."""
    activate: bool
    """Whether the edges become active, rather than inactive."""
    edges: UInt64Array
    """Pairs of supervoxels, shape (n, 2)."""
    allow_partial: bool = False
    """Make edges inactive even if that separates nothing."""

    @property
    def supervoxels(self) -> UInt64Array:
        """Ends of the edges, ascending."""
        return np.unique(self.edges)

    @property
    def request(self) -> Self:
        """The edit itself, which holds its whole request."""
        return self

    @property
    def new_per_chunk(self) -> int:
        """One if edges become active, which joins nodes; else two."""
        return 1 if self.activate else 2

    def chunks(self, graph: ChunkedGraph) -> npt.NDArray[np.int64]:
        """Return the layer 2 chunks of the ends of the edges; coordinates of shape (n, 3)."""
        return np.unique(graph.layout.coordinates(self.supervoxels), axis=0)

    def box(self, _graph: ChunkedGraph) -> Box | None:
        """Return None: the plan looks around supervoxels, not voxels."""
        return None

    def prepare(self, graph: ChunkedGraph) -> Self:
        """Leave out edges of supervoxels that were split since; raise EditRefused if none is left."""
        edges = _edges_of_today(graph, self.edges)
        if not len(edges):
            raise _nothing(self)
        return replace(self, edges=edges)

    def plan(self, workspace: Workspace) -> EditPlan:
        """See :func:`_plan`."""
        return _plan(workspace, self)

    def log(self, _graph: ChunkedGraph) -> list[SetCell]:
        """Return the user and the operation that is undone or redone, as cells of the operation's row."""
        return _log_cells(self.kind, self.user, self.operation_id)


def undo(
    graph: ChunkedGraph,
    operation_id: int,
    user: str,
    *,
    allow_partial: bool = False,
    patience: LockPatience | None = None,
    resumption: Resumption | None = None,
) -> CommittedEdit:
    """Undo an operation.

    Parameters
    ----------
    operation_id
        Id of the operation; an operation that is itself an undo or a redo is followed to its merge or split.
    allow_partial
        Make edges of a merge inactive even if that separates nothing, because later edits have connected their ends
        elsewhere.
    patience
        How long to wait for objects that other operations are editing.
    resumption
        The unfinished undo that is repeated; recovery passes it.

    Raises
    ------
    EditRefused
        If the operation does not exist or did not succeed, nothing of it is left to be undone, or its undo would
        separate nothing.
    """
    return _revert(graph, operation_id, user, _Run(patience, resumption, allow_partial), undo_it=True)


def redo(
    graph: ChunkedGraph,
    operation_id: int,
    user: str,
    *,
    allow_partial: bool = False,
    patience: LockPatience | None = None,
    resumption: Resumption | None = None,
) -> CommittedEdit:
    """Redo an operation that was undone.

    Parameters
    ----------
    operation_id
        Id of the operation; an operation that is itself an undo or a redo is followed to its merge or split.
    allow_partial
        Repeat a split even if that separates nothing; see the description of this module.
    patience
        How long to wait for objects that other operations are editing.
    resumption
        The unfinished redo that is repeated; recovery passes it.

    Raises
    ------
    EditRefused
        If the operation does not exist or did not succeed, is in force already, or its redo would separate nothing.
    """
    return _revert(graph, operation_id, user, _Run(patience, resumption, allow_partial), undo_it=False)


@dataclass(frozen=True, eq=False)
class _Run:
    """Options with which an undo or redo is run."""

    patience: LockPatience | None
    resumption: Resumption | None
    allow_partial: bool

    def edit(self, graph: ChunkedGraph, edit: Edit) -> CommittedEdit:
        """Run an edit with these options."""
        return run_edit(graph, edit, patience=self.patience, resumption=self.resumption)


def _revert(graph: ChunkedGraph, operation_id: int, user: str, run: _Run, *, undo_it: bool) -> CommittedEdit:
    with bad_request():
        operation_id = parse_operation(operation_id)
        if run.resumption is None:
            parse_user(user)
    with misfit_first(graph):
        operation, undo_it = _followed(graph, operation_id, undo_it=undo_it)
        record = read_supervoxels(graph.table, operation.operation_id)
        if not len(record):
            request = _request(graph, operation, user, undo_it=undo_it, allow_partial=run.allow_partial)
        else:
            found = effective_split(graph, operation, record)
    if len(record):
        revert = _undo_split if undo_it else _redo_split
        return revert(graph, found, user, run)
    return run.edit(graph, request)


def _followed(graph: ChunkedGraph, operation_id: int, *, undo_it: bool) -> tuple[Operation, bool]:
    """Return the merge or split at the end of a chain of undos and redos, and whether it is to be undone or redone."""
    try:
        for operation in chain(graph, read_operation(graph, operation_id)):
            _check_success(operation)
            # A redo with points is a split of its own, whether it split supervoxels or only removed edges.
            again = operation.kind == "redo" and columns.SOURCE_COORDINATES.newest(operation.row) is not None
            if again or operation.kind not in ("undo", "redo"):
                break
            undo_it = undo_it if operation.kind == "redo" else not undo_it
    except NotFoundError as error:
        raise EditRefused(Reason.NOTHING_TO_UNDO, error.message, remedy=error.remedy) from error
    return operation, undo_it


def _request(
    graph: ChunkedGraph, operation: Operation, user: str, *, undo_it: bool, allow_partial: bool
) -> RevertRequest:
    if operation.kind == "merge":
        edges = read_activated(graph.table, operation.operation_id)
        if edges is None:
            edges = edges_activated_by(graph, operation)
    else:
        edges = columns.REMOVED_EDGES.newest(operation.row)
    if edges is None or not len(edges):
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"operation {operation.operation_id} names no edges.",
            remedy="It has changed none, so there is nothing to undo or redo.",
        )
    pairs = np.unique(np.sort(edges.astype(np.uint64), axis=1), axis=0)
    kind = "undo" if undo_it else "redo"
    activate = (operation.kind != "merge") is undo_it
    allow_partial = allow_partial or (operation.kind != "merge" and _parted_nothing(graph, operation))
    return RevertRequest(user, operation.operation_id, kind, activate, pairs, allow_partial)


def _parted_nothing(graph: ChunkedGraph, operation: Operation) -> bool:
    """Return whether a split has separated nothing: by its own record or, without one, by its number of new roots."""
    noted = read_still_one_object(graph.table, [operation.operation_id])
    return bool(noted) or len(operation.roots) == 1


# -- splits of supervoxels --------------------------------------------------------------------------------------------


def _undo_split(graph: ChunkedGraph, found: EffectiveSplit, user: str, run: _Run) -> CommittedEdit:
    target = found.operation.operation_id
    _refuse_overlapped(found)
    if found.undone_by is not None:
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"operation {target} was undone already, by operation {found.undone_by}.",
            remedy=f"Redo operation {target} to put it in force again.",
        )
    removed = columns.REMOVED_EDGES.newest(found.operation.row)
    edges = np.zeros((0, 2), np.uint64) if removed is None else removed.astype(np.uint64)
    return run.edit(graph, _FragmentsJoined(UndoOfSplit(user, target, found.record, edges)))


@dataclass(frozen=True, eq=False)
class _FragmentsJoined:
    """The undo of a split of supervoxels, as an :class:`~sv_pipeline.edits.session.Edit`."""

    request: UndoOfSplit
    new_per_chunk = 1

    def chunks(self, graph: ChunkedGraph) -> npt.NDArray[np.int64]:
        return np.unique(graph.layout.coordinates(self.request.record[:, 1]), axis=0)

    def box(self, _graph: ChunkedGraph) -> Box | None:
        return None

    def prepare(self, graph: ChunkedGraph) -> Self:
        if replaced(graph, self.request.record[:, 1]).any():
            target = self.request.operation_id
            raise EditRefused(Reason.OVERLAPPED, f"operation {target} is just being changed.", repeat="Try again.")
        return replace(self, request=replace(self.request, edges=_edges_of_today(graph, self.request.edges)))

    def plan(self, workspace: Workspace) -> EditPlan:
        return plan_undo_of_split(workspace, self.request)

    def log(self, _graph: ChunkedGraph) -> list[SetCell]:
        return _log_cells("undo", self.request.user, self.request.operation_id)


def _redo_split(graph: ChunkedGraph, found: EffectiveSplit, user: str, run: _Run) -> CommittedEdit:
    target = found.operation.operation_id
    _refuse_overlapped(found)
    if found.undone_by is None:
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"operation {target} is in force: there is nothing to redo.",
            remedy="Undo it first if the split should be repeated.",
        )
    volume = graph.fork.open()
    allow_partial = run.allow_partial or _parted_nothing(graph, found.operation)
    request = _same_points(found.operation, user, allow_partial=allow_partial)
    return run.edit(graph, _SplitAgain(request, volume, target))


@dataclass(frozen=True, eq=False)
class _SplitAgain(Split):
    """The redo of a split of supervoxels, as an :class:`~sv_pipeline.edits.session.Edit`."""

    target: int = 0
    """Id of the operation that is redone."""

    def plan(self, workspace: Workspace) -> EditPlan:
        return replace(super().plan(workspace), kind="redo")

    def log(self, _graph: ChunkedGraph) -> list[SetCell]:
        return [*_log_cells("redo", self.request.user, self.target), *_point_cells(self.request)]


def _refuse_overlapped(found: EffectiveSplit) -> None:
    if found.overlapped_by:
        names = ", ".join(map(str, found.overlapped_by))
        raise EditRefused(
            Reason.OVERLAPPED,
            f"operation {found.operation.operation_id} cannot be undone or redone by itself: its supervoxels were "
            f"changed since by {'operation' if len(found.overlapped_by) == 1 else 'operations'} {names}.",
            remedy="Undo what came later first.",
        )


def _same_points(operation: Operation, user: str, *, allow_partial: bool) -> SplitRequest:
    """Return the request of an operation that split supervoxels; its points have to be looked up again."""
    row = operation.row
    source, sink = columns.SOURCE_COORDINATES.newest(row), columns.SINK_COORDINATES.newest(row)
    offset = columns.BOUNDING_BOX_OFFSET.newest(row)
    if source is None or sink is None or offset is None:
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"the log does not hold the points of operation {operation.operation_id}, so it cannot be redone.",
            remedy="Make a new split with points of your own.",
        )
    x, y, z = offset.ravel().tolist()
    sides = Points.of(coordinates=source), Points.of(coordinates=sink)
    return SplitRequest(user, *sides, offset=(x, y, z), disallow_isolating_cut=False, allow_partial=allow_partial)


def _point_cells(request: SplitRequest) -> list[SetCell]:
    cells = [columns.BOUNDING_BOX_OFFSET.set(np.asarray(request.offset, np.int64))]
    for points, column in (
        (request.sources, columns.SOURCE_COORDINATES),
        (request.sinks, columns.SINK_COORDINATES),
    ):
        if points.coordinates is not None:
            cells.append(column.set(points.pointed))
    return cells


# -- edges ------------------------------------------------------------------------------------------------------------


def _check_success(operation: Operation) -> None:
    if operation.status is not OperationStatus.SUCCESS:
        raise EditRefused(
            Reason.NOTHING_TO_UNDO,
            f"operation {operation.operation_id} {ending(operation)}, so it cannot be undone or redone.",
            remedy="Name one with the outcome SUCCESS: 'sv-pipeline ops GRAPH' lists them.",
        )


def _edges_of_today(graph: ChunkedGraph, edges: UInt64Array) -> UInt64Array:
    """Return edges with the current ids of their ends, smaller id first, without edges of supervoxels that are gone."""
    names = np.sort(names_of_today(graph, edges), axis=1)
    return np.unique(names[names[:, 0] > 0], axis=0)


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
    removal = plan_removal(workspace, region, edges[todo])
    joined = removal.ends[:, 0] == removal.ends[:, 1]
    cut = removal.feasible() if joined.any() else removal
    if joined.all() and not (request.allow_partial and len(cut.edges)):
        remedy = (
            "First undo the edit that has connected them there, or split the object. To make these edges inactive "
            "regardless, allow a partial undo (--partial, allow_partial)."
        )
        raise removal.still_connected(removal.edges[:1, 0], removal.edges[:1, 1], remedy)
    return EditPlan(request.kind, cut.plan, removed_edges=cut.edges, still_one_object=bool(joined.any()))


def _nothing(request: RevertRequest) -> EditRefused:
    state = "active" if request.activate else "inactive"
    return EditRefused(
        Reason.NOTHING_TO_UNDO,
        f"there is nothing to {request.kind}: all edges of operation {request.operation_id} that still exist are "
        f"{state} already.",
        remedy="'sv-pipeline ops GRAPH' lists the later operations.",
    )


def _log_cells(kind: str, user: str, operation_id: int) -> list[SetCell]:
    column = columns.UNDO_OPERATION_ID if kind == "undo" else columns.REDO_OPERATION_ID
    return [columns.USER.set(user), column.set(operation_id)]
