"""The state of an operation after an error has ended its edit: what is written, and what will happen to it.

The state becomes part of the error:

| what is known | what the error says |
| --- | --- |
| nothing was written, and the log says that the operation failed | It has ended without effect. |
| nothing was written, and the table does not answer | It wrote nothing; recovery will log that it failed. |
| it was writing | It is unfinished; recovery will complete it; do not repeat the request. |
| everything is written, but locks are left | It is complete; do not repeat the request. |
| a recovery has taken it over | How that has ended, or that it is running; do not repeat the request. |
"""

from __future__ import annotations

import logging

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.log import OperationStatus, find_operation
from sv_pipeline.operations.ownership import OWNER, open_key
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.operations.writing import OperationRow
from sv_pipeline.storage.wall import our_error

__all__ = ["end_early", "read_standing", "unfinished"]

log = logging.getLogger(__name__)


def end_early(graph: ChunkedGraph, row: OperationRow, error: BaseException, *, writing: bool) -> BaseException:
    """End an operation that has failed, and add its state to the error.

    An operation that has written nothing gets its final status in the log; others are left for recovery. An error of a
    storage becomes an `SvPipelineError`. For these the state becomes the remedy; other errors get it as a note (PEP
    678).

    Parameters
    ----------
    graph
        Graph of the operation.
    row
        Rows of the operation.
    error
        The error that ended the edit.
    writing
        Whether the operation has begun to write, so that its locks must stay.

    Returns
    -------
    BaseException
        The error to raise.
    """
    if (ours := our_error(error)) is not None and ours is not error:
        error = ours
    try:
        advice = _advice(graph, row, error, writing=writing)
    except SvPipelineError:
        log.info("operation %d: its state cannot be read from the table", row.operation_id, exc_info=True)
        advice = unfinished(graph, row.operation_id) if writing else _not_begun(row.operation_id)
    log.info("%s", advice)
    if isinstance(error, SvPipelineError):
        error.operation_id = row.operation_id
        repair = error.repair if writing and not isinstance(error, OwnershipLostError) else None
        error.advise(f"{repair} {advice}" if repair else advice)
    else:
        error.add_note(advice)
    return error


def _advice(graph: ChunkedGraph, row: OperationRow, error: BaseException, *, writing: bool) -> str:
    operation_id = row.operation_id
    if isinstance(error, OwnershipLostError) and not row.own.is_mine:
        return read_standing(graph, operation_id)
    if writing:
        found = find_operation(graph, operation_id)
        complete = found is not None and found.status is OperationStatus.SUCCESS
        return read_standing(graph, operation_id) if complete else unfinished(graph, operation_id)
    row.fail(error)
    remedy = f" {error.remedy}" if isinstance(error, SvPipelineError) and error.remedy else ""
    return f"Operation {operation_id} has ended without effect.{remedy}"


def unfinished(graph: ChunkedGraph, operation_id: int) -> str:
    """Return the advice about an operation that died or stopped while it was writing."""
    return (
        f"Operation {operation_id} is unfinished and keeps its objects locked. Recovery will complete it once the "
        f"cause is repaired (the sensor does so by itself; or run 'sv-pipeline stuck recover {graph.graph_id} "
        f"{operation_id}'). Do not repeat the request."
    )


def read_standing(graph: ChunkedGraph, operation_id: int) -> str:
    """Return the state of an operation that another process has taken over, or that its own process has left."""
    see = f"Do not repeat the request before you have looked: sv-pipeline ops {graph.graph_id}."
    key = open_key(operation_id)
    opened = key in graph.table.read_rows([key], [OWNER], newest_only=True)
    found = find_operation(graph, operation_id)
    status = None if found is None else found.status
    if status is OperationStatus.SUCCESS:
        return f"Operation {operation_id} is complete: the edit is made. Do not repeat the request."
    if found is not None and status is OperationStatus.EXCEPTION:
        why = f" ({found.exception})" if found.exception else ""
        return f"Operation {operation_id} has ended without effect{why}."
    if opened:
        return f"Operation {operation_id} is unfinished, and recovery will bring it to its end. {see}"
    return f"Operation {operation_id} is no longer in the list of unfinished operations. {see}"


def _not_begun(operation_id: int) -> str:
    return f"Operation {operation_id} wrote nothing; recovery will record in the log that it failed."
