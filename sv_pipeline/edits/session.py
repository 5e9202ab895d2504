"""Runs one edit from request to commit: operation row, locks, plan, writes, and the end of an edit that fails.

Each kind of edit is a class with the methods of `Edit`; this module holds what all kinds have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.edits.plan.edit_plan import EditPlan
from sv_pipeline.edits.plan.roots import RequestOfPoints, RequestRoots
from sv_pipeline.edits.plan.workspace import Workspace
from sv_pipeline.edits.pointing import resolved
from sv_pipeline.edits.requests import (
    MergeRequest,
    SplitRequest,
    check_options,
    check_points,
    chunks_of_points,
    log_cells,
    offset_of,
    options_of,
    region_of,
)
from sv_pipeline.edits.write.commit import CommittedEdit, commit, logical_time
from sv_pipeline.edits.write.early_ids import EarlyIds
from sv_pipeline.edits.write.locking import EditLocks, LockPatience, lock_roots
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.pair import fitting
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.standing import end_early
from sv_pipeline.operations.writing import OperationRow, Scope
from sv_pipeline.table.interface import SetCell
from sv_pipeline.waiting import doing

__all__ = ["Edit", "EditOfPoints", "Resumption", "announced", "run_edit"]

log = logging.getLogger(__name__)
Checked = TypeVar("Checked", MergeRequest, SplitRequest)
AnyError = TypeVar("AnyError", bound=BaseException)


_TELL: ContextVar[Callable[[int], None]] = ContextVar("tell", default=lambda _operation_id: None)


@contextmanager
def announced(tell: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the id of each operation that this thread begins, as soon as the operation's row is written.

    From then on the operation can be found by its id, even if this process dies.
    """
    before = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(before)


@dataclass(frozen=True, eq=False)
class Resumption:
    """An unfinished operation that is repeated: it keeps its id and its locks, and is planned again."""

    row: OperationRow
    inherited: Scope | None
    """What an earlier attempt holds locked; None if it holds nothing."""
    after: int
    """Milliseconds since the epoch. The new logical time is later than this; that of the earlier attempt is not."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Keys of the rows that the earlier attempt has locked."""
        return self.inherited.lock_keys if self.inherited is not None else ()


class Edit(Protocol):
    """One edit as a value: its request, and how an edit of this kind is prepared, planned and logged."""

    @property
    def request(self) -> RequestOfPoints:
        """The request of the user."""
        ...

    @property
    def new_per_chunk(self) -> int:
        """Number of new nodes that the edit probably makes in each chunk above its points."""
        ...

    def chunks(self, graph: ChunkedGraph) -> npt.NDArray[np.int64]:
        """Return the layer 2 chunks of the points, as far as known; coordinates of shape (n, 3)."""
        ...

    def box(self, graph: ChunkedGraph) -> Box | None:
        """Return the box of voxels whose edges the plan reads first; None if that is not known beforehand."""
        ...

    def prepare(self, graph: ChunkedGraph) -> Self:
        """Return the edit with a complete request; raise EditRefused where that is clear without locks. Reads only."""
        ...

    def plan(self, workspace: Workspace) -> EditPlan:
        """Plan the edit under its locks; raise EditRefused if it cannot be made. Reads only."""
        ...

    def log(self, graph: ChunkedGraph) -> list[SetCell]:
        """Return the request as cells of the operation's row."""
        ...


def run_edit(
    graph: ChunkedGraph, edit: Edit, *, patience: LockPatience | None = None, resumption: Resumption | None = None
) -> CommittedEdit:
    """Run one edit.

    Parameters
    ----------
    patience
        How long to wait for locks; the default is ``LockPatience()``.
    resumption
        The unfinished operation that is repeated, if any. If it is refused or fails, the caller has to end it.

    Raises
    ------
    EditRefused
        If the request cannot be carried out; the operation's row holds the reason.
    OwnershipLostError
        If the locks were lost before the edit was complete.
    """
    refuse_if_read_only(graph)
    if resumption is not None:
        # This comes before the points are looked up: in the fork of another graph they mean something else.
        identity = fitting(graph)
        edit = edit.prepare(graph)
        found = RequestRoots(graph, edit.request, edit.box(graph))
        return _edit_under_locks(graph, edit, resumption.row, found, patience, lambda: identity, resumption=resumption)
    check_options(edit.request)
    with ExitStack() as living:
        looking = living.enter_context(Helpers()).submit(fitting, graph)
        begun = _Beginning(graph, edit, living)
        early: BaseException | None = None
        roots: RequestRoots | None = None
        try:
            edit = edit.prepare(graph)
            roots = RequestRoots(graph, edit.request, edit.box(graph))
        except BaseException as error:  # noqa: BLE001 - raised again once there is a row that can be ended
            early = error
        row = begun.row
        if early is not None:
            begun.wait()
            early = _misfit_or(looking, early)
            if not isinstance(early, EditRefused):
                raise end_early(graph, row, early, writing=False)
        try:
            if roots is None:
                raise early or AssertionError
            return _edit_under_locks(graph, edit, row, roots, patience, looking.result, begun=begun)
        except EditRefused as error:
            begun.wait()
            refusal = _misfit_or(looking, error)
            refusal.operation_id = row.operation_id
            row.refuse(refusal)
            log.info("operation %d is refused: %s", row.operation_id, refusal)
            if refusal is not error:
                raise refusal from error
            raise


class _Beginning:
    """The first requests of a new operation, which are sent while its points are looked up."""

    def __init__(self, graph: ChunkedGraph, edit: Edit, living: ExitStack) -> None:
        self._graph, self._living, self._tell = graph, living, _TELL.get()
        pool = living.enter_context(Helpers())
        self._numbered = pool.submit(self._number, edit.chunks(graph), edit.new_per_chunk)
        self._stored = pool.submit(self._store, edit.log(graph), options_of(edit.request))
        self._per_chunk = edit.new_per_chunk
        self._near = EarlyIds()

    @property
    def row(self) -> OperationRow:
        """The rows of the operation, as soon as it has a number; they may not be written yet."""
        return self._numbered.result()[0]

    def wait(self) -> None:
        """Wait until the rows of the operation are written."""
        self._stored.result()

    def end(self) -> None:
        """Wait until nothing more is sent, whether it has succeeded or not."""
        self._stored.exception()

    def reserve_near(self, chunks: npt.NDArray[np.int64]) -> None:
        """Reserve ids in layer 2 chunks, coordinates of shape (n, 3), and above them, where there are none yet."""
        self._near = EarlyIds.reserve(self._graph, chunks, self._per_chunk, self._numbered.result()[1])

    def ids(self) -> EarlyIds:
        """Return the ids that are reserved for new nodes."""
        return self._numbered.result()[1].joined(self._near)

    def _number(self, chunks: npt.NDArray[np.int64], per_chunk: int) -> tuple[OperationRow, EarlyIds]:
        ids = EarlyIds.with_operation(self._graph, chunks, per_chunk)
        return OperationRow.numbered(self._graph.table, ids.operation_id), ids

    def _store(self, cells: list[SetCell], options: dict[str, Any]) -> None:
        self.row.store(cells, options)
        self._living.enter_context(self.row.own.beating())
        self._tell(self.row.operation_id)


def _misfit_or(looking: Future[str | None], error: AnyError) -> AnyError | EditRefused:
    """Return the refusal of a fork that does not fit its table if there is one, else the given error.

    In the fork of another table, the points of a request mean other supervoxels, so the misfit is the real cause.
    """
    misfit = looking.exception() if isinstance(error, Exception) else None
    return misfit if isinstance(misfit, EditRefused) else error


def _edit_under_locks(
    graph: ChunkedGraph,
    edit: Edit,
    row: OperationRow,
    roots: RequestRoots,
    patience: LockPatience | None,
    paired: Callable[[], str | None],
    *,
    resumption: Resumption | None = None,
    begun: _Beginning | None = None,
) -> CommittedEdit:
    held: EditLocks | None = None
    patience = patience or LockPatience()
    try:
        expiry = graph.meta.graph_config.ROOT_LOCK_EXPIRY
        reach("lock")
        with Helpers() as pool:
            looking = pool.submit(roots.look_further)
            held = lock_roots(
                graph.table,
                row.operation_id,
                roots.find,
                expiry,
                patience,
                own=row.own,
                inherited=None if resumption is None else resumption.keys,
            )
        with held:
            looking.result()
            if begun is not None:
                begun.wait()
            reach("locked")
            with _errors_only_under(held), Helpers() as pool:
                reserving = None if begun is None else pool.submit(begun.reserve_near, roots.chunks_inside())
                cache = roots.read_again()
                if reserving is not None:
                    reserving.result()
                identity = paired()

                def lock_chunks(chunks: UInt64Array, names: list[str]) -> None:
                    held.lock_chunks(chunks, names, patience)

                plan = edit.plan(Workspace(graph, cache, roots.current, roots.root_of, lock_chunks))
                locked_at = held.locked_at()
            reach("planned")
            latest = cache.latest() if resumption is None else max(cache.latest(), resumption.after)
            timestamp = logical_time(locked_at, latest)
            inherited = None if resumption is None else resumption.inherited
            with doing(f"writes operation {row.operation_id} of graph {graph.graph_id}"):
                user, cells = edit.request.user, edit.log(graph)
                ids = None if begun is None else begun.ids()
                return commit(graph, held, row, plan, timestamp, user, cells, inherited, identity, ids)
    except EditRefused:
        raise
    except BaseException as error:
        if held is not None and not held.keep and not isinstance(error, SvPipelineError):
            with suppress(SvPipelineError):  # an interrupt may have come just before the block that releases them
                held.release()
        if begun is not None:
            begun.end()
        if resumption is not None:
            log.exception("operation %d could not be made again", row.operation_id)
            raise
        ended = end_early(graph, row, error, writing=held is not None and held.keep)
        if ended is not error:
            raise ended from error
        raise


@contextmanager
def _errors_only_under(held: EditLocks) -> Iterator[None]:
    """Raise OwnershipLostError in place of any error if the locks are lost: what was read without them may be mixed."""
    try:
        yield
    except Exception:
        held.check()
        raise


def refuse_if_read_only(graph: ChunkedGraph) -> None:
    """Refuse to edit a graph that is read-only."""
    if graph.table.read_only or graph.meta.custom_data.get("READ_ONLY"):
        raise EditRefused(
            Reason.READ_ONLY,
            f"graph {graph.graph_id!r} is read-only.",
            remedy="Set backend_client.CONFIG.READ_ONLY to false, or edit another graph.",
        )


@dataclass(frozen=True, eq=False)
class EditOfPoints(Generic[Checked]):
    """An edit whose request has source and sink points: the common part of merges and splits."""

    request: Checked
    volume: Any = None
    """The graph's segmentation at mip 0, a TensorStore; needed where points have to be looked up."""

    @property
    def new_per_chunk(self) -> int:
        """Two for a split, which makes two objects of one; one for a merge."""
        return 1 if isinstance(self.request, MergeRequest) else 2

    def chunks(self, graph: ChunkedGraph) -> npt.NDArray[np.int64]:
        """Return the layer 2 chunks of the points that lie in the graph; coordinates of shape (n, 3)."""
        return chunks_of_points(graph, self.request)

    def box(self, graph: ChunkedGraph) -> Box | None:
        """Return the box of voxels around the points."""
        return region_of(graph, self.request)

    def prepare(self, graph: ChunkedGraph) -> Self:
        """Look up the supervoxels of the points, and check the request as far as that needs no root."""
        request = resolved(graph, self.request, self.volume)
        check_points(graph, request)
        offset_of(graph, request)
        return replace(self, request=request)

    def log(self, graph: ChunkedGraph) -> list[SetCell]:
        """Return the points and the user as cells of the operation's row."""
        return log_cells(graph, self.request)
