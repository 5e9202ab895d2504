"""Makes an edit at most once for each token, however often its process dies and is started again.

A token is a string that the caller chooses for a request. A row for each token, used by this software only, records
when the request came in first and which operation was made for it::

    sv_pipeline:request:<token>    1:after      the last operation id in use when the request came in first
                                   1:operation  the operation that was made for the request

If a process died between the two cells, the operation log tells: an operation with an id above ``after`` that asks for
the same edit belongs to this request. A refusal removes the row, unless the reason is a lock.
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
    """Make an edit, or return it if an earlier attempt has made it.

    Parameters
    ----------
    token
        Identifies the request; the same for each attempt.
    is_it
        Returns whether an operation asks for the same edit as the request.
    edit
        Makes the edit.

    Raises
    ------
    ConflictError
        If an earlier attempt died while it was writing; that operation must be recovered first.
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
        # The lock may belong to an earlier attempt that still runs; the row is needed to find its operation.
        if refusal.reason is not Reason.LOCKED:
            graph.table.mutate([RowMutation(key, [DeleteCells()])])
        raise
    graph.table.mutate([RowMutation(key, [OPERATION.set(operation.operation_id)])])
    return operation


def is_begun(graph: ChunkedGraph, token: str) -> bool:
    """Return whether an edit was made for a token, or an attempt has begun and was not refused."""
    return bool(graph.table.read_rows([_key(token)], [AFTER.key]))


def operation_of(graph: ChunkedGraph, token: str) -> CommittedEdit | None:
    """Return the operation that was made for a token; None if there is none."""
    key = _key(token)
    made = OPERATION.newest(graph.table.read_rows([key], [OPERATION.key]).get(key))
    return None if made is None else read_edit(graph, made)


def asks_for(operation: Operation, kind: str, request: MergeRequest | SplitRequest) -> bool:
    """Return whether an operation has the same kind, user and points as a request."""
    sides = [columns.SOURCE_COORDINATES.newest(operation.row), columns.SINK_COORDINATES.newest(operation.row)]
    wanted = [request.sources.coordinates, request.sinks.coordinates]
    return (
        operation.kind == kind
        and operation.user == request.user
        and all(a is not None and b is not None and np.array_equal(a, b) for a, b in zip(sides, wanted, strict=True))
    )


def _finished(operations: list[Operation], is_it: Callable[[Operation], bool], token: str) -> int | None:
    """Return the id of the operation that was made for a request; None if there is none."""
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
