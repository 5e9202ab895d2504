"""The change log of roots and users, and the steps of a rollback, as tables for people. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from sv_pipeline.arguments import parse_ids, parse_user
from sv_pipeline.edits.rollback import RollbackStep
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.lineage import lineage
from sv_pipeline.graph.queries import check_exist
from sv_pipeline.moments import Moment, epoch_milliseconds, parse_moment
from sv_pipeline.operations.log import Operation, OperationStatus, about, read_operations
from sv_pipeline.table import columns, keys

__all__ = ["change_log", "rollback_table"]

_COLUMNS = ["operation_id", "kind", "about", "time", "user", "source", "sink", "before", "after"]


def change_log(
    graph: ChunkedGraph, *, roots: Any = None, user: str | None = None, since: Moment | None = None
) -> pd.DataFrame:
    """Return the edits that were made, oldest first, one row each, indexed by ``operation_id``.

    The columns are ``kind``; ``about``, the operation that an undo or redo refers to, otherwise 0; ``time``, UTC;
    ``user``; ``source`` and ``sink``, the points of the request in voxels of mip 0; ``before`` and ``after``, root ids.

    Parameters
    ----------
    roots
        Current or former roots; only edits of which they are the result are listed.
    user
        Only edits of this user are listed.
    since
        Only edits at or after this time, or with this operation number or a higher one, are listed.

    Raises
    ------
    NotFoundError
        If a root is not in the graph.
    InputError
        If an id is not a root.
    """
    named = None if user is None else parse_user(user)
    moment = None if since is None else parse_moment(since)
    ids = _of_user(graph, named, moment) if roots is None else _of_roots(graph, parse_ids(roots, "roots"))
    found = read_operations(graph, ids) if len(ids) else []
    found = [o for o in found if (named is None or o.user == named) and _is_since(o, moment)]
    found.sort(key=lambda o: (o.timestamp or datetime.min.replace(tzinfo=UTC), o.operation_id))
    made = np.unique(np.concatenate([np.zeros(0, np.uint64), *(o.roots for o in found)]))
    rows = graph.table.read_rows(keys.node_keys(made), [columns.FORMER_PARENTS.key], newest_only=True)
    before = {int(key): columns.FORMER_PARENTS.newest(row) for key, row in rows.items()}
    table = pd.DataFrame([_row(operation, before) for operation in found], columns=_COLUMNS)
    return table.set_index("operation_id")


def _of_roots(graph: ChunkedGraph, roots: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, Any]:
    """Numbers of the operations of which some roots are the result."""
    check_exist(graph, roots)
    if wrong := roots[graph.layout.layers(roots) != graph.n_layers].tolist():
        raise InputError(
            f"{wrong[0]} is not a root.",
            remedy="'sv-pipeline roots' and OpenGraph.roots give the root of a supervoxel.",
        )
    found = lineage(graph, roots, future=False).operations
    return np.unique(found[found > 0])


def _of_user(graph: ChunkedGraph, user: str | None, moment: Any) -> np.ndarray[Any, Any]:
    """Numbers of the operations that succeeded; the whole log is scanned, but only a few of its columns."""
    first = moment if isinstance(moment, int) else 1
    wanted = [columns.USER.key, columns.OPERATION_STATUS.key]
    rows = graph.table.scan([keys.operation_range(first)], wanted, newest_only=True)
    found = [
        int(key)
        for key, row in rows
        if columns.OPERATION_STATUS.newest(row) == OperationStatus.SUCCESS
        and (user is None or columns.USER.newest(row) == user)
    ]
    return np.array(found, np.uint64)


def _is_since(operation: Operation, moment: Any) -> bool:
    if moment is None or isinstance(moment, int):
        return moment is None or operation.operation_id >= moment
    return operation.timestamp is not None and epoch_milliseconds(operation.timestamp) >= epoch_milliseconds(moment)


def _row(operation: Operation, before: dict[int, Any]) -> dict[str, Any]:
    sides = [column.newest(operation.row) for column in (columns.SOURCE_COORDINATES, columns.SINK_COORDINATES)]
    former = {old for root in operation.roots.tolist() if (ids := before.get(root)) is not None for old in ids.tolist()}
    return {
        "operation_id": operation.operation_id,
        "kind": operation.kind,
        "about": about(operation) or 0,
        "time": operation.timestamp,
        "user": operation.user or "",
        "source": [] if sides[0] is None else sides[0].tolist(),
        "sink": [] if sides[1] is None else sides[1].tolist(),
        "before": sorted(former),
        "after": sorted(operation.roots.tolist()),
    }


def rollback_table(steps: Iterable[RollbackStep]) -> pd.DataFrame:
    """Return the steps of a rollback as a table, newest first, indexed by ``operation_id``.

    The columns are ``kind``; ``time``, UTC; ``verdict``; ``why``; ``stands_on_it``, the operations that depend on it;
    ``undone_by``, an operation or 0; ``source`` and ``sink``, voxels of mip 0.
    """
    rows = [
        {
            "operation_id": step.operation_id,
            "kind": step.kind,
            "time": datetime.fromtimestamp(step.time / 1000, UTC),
            "verdict": str(step.verdict),
            "why": step.why,
            "stands_on_it": list(step.stands_on_it),
            "undone_by": step.undone_by or 0,
            "source": [list(point) for point in step.source],
            "sink": [list(point) for point in step.sink],
        }
        for step in steps
    ]
    names = ["operation_id", "kind", "time", "verdict", "why", "stands_on_it", "undone_by", "source", "sink"]
    return pd.DataFrame(rows, columns=names).set_index("operation_id")
