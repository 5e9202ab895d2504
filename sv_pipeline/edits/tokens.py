"""An edit that is made at most once for each token, however often its process dies and is started again.

A row of our own says which operations the request cannot be, and later which one it is::

    sv_pipeline:request:<token>    1:after      the operation id given out last, when the request came in first
                                   1:operation  the operation that was made

A refusal removes the row, unless something was locked. In between the operation log is asked: an operation with a
higher id that asks for the same is the one of this request.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sv_pipeline.arguments import parse_token
from sv_pipeline.edits import CommittedEdit, EditRefused, MergeRequest, Reason, SplitRequest
from sv_pipeline.edits.made import read_edit
from sv_pipeline.edits.session import refuse_if_read_only
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import Operation, OperationStatus, read_operations
from sv_pipeline.operations.refusal import bad_request
from sv_pipeline.table import codecs, columns, counters
from sv_pipeline.table.columns import Column
from sv_pipeline.table.interface import CellMatch, ColumnKey, DeleteCells, RowMutation

__all__ = ["asks_for", "edit_once", "is_begun", "operation_of"]

AFTER: Column[int] = Column(ColumnKey("1", b"after"), codecs.JsonCodec())
OPERATION: Column[int] = Column(ColumnKey("1", b"operation"), codecs.JsonCodec())


def edit_once(
    graph: ChunkedGraph, token: str, is_it: Callable[[Operation], bool], edit: Callable[[], CommittedEdit]
) -> CommittedEdit:
    """Make an edit, or find out that it was made.

    Parameters
    ----------
    token
        Of the request: the same each time that it is tried.
    is_it
        Whether an operation asks for what the request asks for.
    edit
        Makes it.

    Raises
    ------
    ConflictError
        If an earlier try died while it wrote: that operation must be recovered first.
    EditRefused
        If ``edit`` is refused.
    """
    key = _key(token)
    if made := operation_of(graph, token):
        return made
    refuse_if_read_only(graph)
    last = counters.last_operation_id(graph.table)
    graph.table.check_and_mutate(key, [CellMatch(AFTER.key)], if_unmatched=[AFTER.set(last)])
    first = AFTER.newest(graph.table.read_rows([key], [AFTER.key]).get(key))
    earlier = np.arange((last if first is None else first) + 1, last + 1, dtype=np.uint64)
    made_before = _finished(read_operations(graph, earlier), is_it, token) if len(earlier) else None
    try:
        operation = edit() if made_before is None else read_edit(graph, made_before)
    except EditRefused as refusal:
        # What is locked may be so by an earlier try that lives on: then that is the one to be found.
        if refusal.reason is not Reason.LOCKED:
            graph.table.mutate([RowMutation(key, [DeleteCells()])])
        raise
    graph.table.mutate([RowMutation(key, [OPERATION.set(operation.operation_id)])])
    return operation


def is_begun(graph: ChunkedGraph, token: str) -> bool:
    """Whether an edit was made for a token, or an attempt to make one has begun and was not refused."""
    return bool(graph.table.read_rows([_key(token)], [AFTER.key]))


def operation_of(graph: ChunkedGraph, token: str) -> CommittedEdit | None:
    """The operation that was made for a token; None if none was."""
    key = _key(token)
    made = OPERATION.newest(graph.table.read_rows([key], [OPERATION.key]).get(key))
    return None if made is None else read_edit(graph, made)


def asks_for(operation: Operation, kind: str, request: MergeRequest | SplitRequest) -> bool:
    """Whether an operation asks for what a request asks for."""
    sides = [columns.SOURCE_COORDINATES.newest(operation.row), columns.SINK_COORDINATES.newest(operation.row)]
    wanted = [request.sources.coordinates, request.sinks.coordinates]
    return (
        operation.kind == kind
        and operation.user == request.user
        and all(a is not None and b is not None and np.array_equal(a, b) for a, b in zip(sides, wanted, strict=True))
    )


def _finished(operations: list[Operation], is_it: Callable[[Operation], bool], token: str) -> int | None:
    """The id of the one that is the request's; None if it was never made."""
    for operation in operations:
        if is_it(operation):
            if operation.status is OperationStatus.SUCCESS:
                return operation.operation_id
            if operation.status is OperationStatus.WRITE_STARTED:
                raise ConflictError(
                    f"operation {operation.operation_id} of request {token!r} has begun to write and has not ended.",
                    remedy="If the process that made it is dead, recover the operation.",
                    repeat="Then run this again.",
                )
    return None


def _key(token: str) -> bytes:
    with bad_request():
        return b"sv_pipeline:request:" + parse_token(token).encode()
