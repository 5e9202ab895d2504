"""The entries of PyChunkedGraph's operation log, read as values. The module `writing` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_ids
from sv_pipeline.errors import CorruptionError, NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowView

__all__ = [
    "Operation",
    "OperationStatus",
    "about",
    "asked_for",
    "chain",
    "ending",
    "find_operation",
    "is_our_end",
    "kind_of",
    "known_chain",
    "operation_of",
    "read_operation",
    "read_operations",
]


class OperationStatus(IntEnum):
    """How far an operation has come."""

    SUCCESS = 0
    CREATED = 1
    EXCEPTION = 2
    WRITE_STARTED = 3
    WRITE_FAILED = 4


_STATUSES = frozenset(OperationStatus)
_OUR_END = re.compile(r"(refused|failed):\w+:")


def is_our_end(text: str | None) -> bool:
    """Return whether our software wrote this reason for the end of an operation; other software uses its own words."""
    return _OUR_END.match(text or "") is not None


@dataclass(frozen=True, repr=False)
class Operation:
    """One row of the operation log, as far as it is filled in."""

    operation_id: int
    kind: str
    """One of merge, split, undo, redo, and unknown."""
    status: OperationStatus | None
    timestamp: datetime | None
    """Logical time of the edit."""
    user: str | None
    roots: UInt64Array
    """Roots that the operation created; empty until it is finished."""
    exception: str | None
    row: RowView
    """All cells of the row."""

    def __repr__(self) -> str:
        status = "no status" if self.status is None else self.status.name
        return f"<{type(self).__name__} {self.operation_id}: {self.kind} by {self.user}, {status}>"

    @property
    def id(self) -> int:
        """Number of the operation."""
        return self.operation_id

    @property
    def is_complete(self) -> bool:
        """Whether it has succeeded; the oldest logs have no status, and name the new roots once an edit is complete."""
        return self.status is OperationStatus.SUCCESS or (self.status is None and len(self.roots) > 0)


def ending(operation: Operation) -> str:
    """Say in words how an operation has ended: "was refused (background)"."""
    if operation.is_complete:
        return "was made"
    if operation.status is not OperationStatus.EXCEPTION:
        return "has not ended" if operation.status is None else f"has not ended ({operation.status.name})"
    text = operation.exception or ""
    if not is_our_end(text):
        return "failed"
    how, reason, _ = text.split(":", 2)
    return f"{'was refused' if how == 'refused' else how} ({reason})"


def read_operations(graph: ChunkedGraph, operation_ids: npt.ArrayLike | None = None) -> list[Operation]:
    """Read operations, sorted by id; by default the whole log. Ids without a row are left out."""
    if operation_ids is None:
        rows = dict(graph.table.scan([keys.operation_range()]))
    else:
        rows = graph.table.read_rows(keys.node_keys(parse_ids(operation_ids, "operations")))
    return [operation_of(int(key), rows[key]) for key in sorted(rows)]


def find_operation(graph: ChunkedGraph, operation_id: int) -> Operation | None:
    """Read one operation; None if the log has none of this number."""
    return next(iter(read_operations(graph, [operation_id])), None)


def read_operation(graph: ChunkedGraph, operation_id: int) -> Operation:
    """Read one operation; NotFoundError if the log has none of this number."""
    found = find_operation(graph, operation_id)
    if found is None:
        raise NotFoundError(
            f"graph {graph.graph_id!r} has no operation {operation_id}.",
            remedy=f"'sv-pipeline ops {graph.graph_id}' lists them.",
        )
    return found


def about(operation: Operation) -> int | None:
    """Return the operation to which an undo or redo refers; None for other kinds."""
    found = [column.newest(operation.row) for column in (columns.UNDO_OPERATION_ID, columns.REDO_OPERATION_ID)]
    return next((number for number in found if number), None)


def chain(graph: ChunkedGraph, operation: Operation) -> Iterator[Operation]:
    """Yield an operation, the operation to which it refers, and so on to the merge or split at the beginning.

    Raises
    ------
    NotFoundError
        If one of them is missing in the log.
    CorruptionError
        If one of them refers to itself or to a later one, so that there would be no end.
    """
    yield operation
    while (other := about(operation)) is not None:
        if other >= operation.operation_id:
            raise CorruptionError(
                f"the log of operation {operation.operation_id} says that it undoes or redoes operation {other}, which "
                "is not an earlier one."
            )
        operation = read_operation(graph, other)
        yield operation


def known_chain(graph: ChunkedGraph, operation: Operation) -> list[Operation]:
    """Return the operations of :func:`chain` as far as the log contains them; the first is ``operation`` itself."""
    found: list[Operation] = []
    with suppress(NotFoundError):
        for one in chain(graph, operation):
            found.append(one)  # those before a missing one are kept
    return found


def asked_for(graph: ChunkedGraph, operation_id: int) -> Operation:
    """Return the merge or split that an operation is, undoes, or redoes."""
    *_, last = chain(graph, read_operation(graph, operation_id))
    return last


def operation_of(operation_id: int, row: RowView) -> Operation:
    """Return an operation whose row was read; raise CorruptionError if a cell of it cannot be decoded."""
    status, made = columns.OPERATION_STATUS.newest(row), columns.ROOTS.newest(row)
    if status is not None and status not in _STATUSES:
        raise CorruptionError(f"the log of operation {operation_id} has an unknown status, {status}.")
    return Operation(
        operation_id=operation_id,
        kind=kind_of(row),
        status=None if status is None else OperationStatus(status),
        timestamp=columns.OPERATION_TIMESTAMP.newest(row),
        user=columns.USER.newest(row),
        roots=np.zeros(0, np.uint64) if made is None else made,
        exception=columns.OPERATION_EXCEPTION.newest(row),
        row=row,
    )


def kind_of(row: RowView) -> str:
    """Return the kind of the operation in a row: merge, split, undo, redo, or unknown."""
    for column, kind in (
        (columns.UNDO_OPERATION_ID, "undo"),
        (columns.REDO_OPERATION_ID, "redo"),
        (columns.ADDED_EDGES, "merge"),
        (columns.REMOVED_EDGES, "split"),
        (columns.BOUNDING_BOX_OFFSET, "split"),
    ):
        if column.key in row:
            return kind
    return "unknown"
