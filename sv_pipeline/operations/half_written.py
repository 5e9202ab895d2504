"""What operations that are being written have put into the table so far, or may have. Reads.

An operation says in its open row, before its first cell, which cells it will write and at what time; the row goes when
nothing of it is left to do. So the cells of all half-written operations are known exactly, at any moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS
from sv_pipeline.operations.writing import SCOPE, WRITES, scope_in, write_set_in
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Cell, ColumnKey, RowView, Table

__all__ = ["HalfWritten", "OpenWrite", "read_half_written"]

_KEPT_WRITE_SETS = 32


@dataclass(frozen=True, eq=False)
class OpenWrite:
    """One operation that has begun to write and is not known to have ended."""

    operation_id: int
    timestamp: int
    """Of all its cells, milliseconds."""
    generation: int | None
    """Of the fork before its voxels; None if it changes none. It alone may change the chunks of its supervoxels."""
    cells: Mapping[bytes, frozenset[ColumnKey]]
    """Columns by row of all that it writes."""
    supervoxels: UInt64Array
    """Those that it makes, ascending."""


@dataclass(frozen=True)
class HalfWritten:
    """The cells that nobody is to see yet."""

    operations: tuple[OpenWrite, ...] = ()
    _seen: Mapping[int, int] = field(default_factory=dict)
    """Time by operation: what tells two moments apart."""

    def same_for(self, other: HalfWritten, row_keys: Iterable[bytes]) -> bool:
        """Whether both moments hide the same cells of some rows, and the same supervoxels."""
        if self._seen == other._seen:
            return True
        differing = [o for o in self.operations if other._seen.get(o.operation_id) != o.timestamp]
        differing += [o for o in other.operations if self._seen.get(o.operation_id) != o.timestamp]
        return not any(key in operation.cells for key in row_keys for operation in differing)

    def hides_any(self, row_keys: Iterable[bytes]) -> list[bytes]:
        """Rows of which something is hidden, maybe."""
        if not self.operations:
            return []
        return [key for key in row_keys if any(key in operation.cells for operation in self.operations)]

    def without(self, key: bytes, row: RowView) -> RowView:
        """A row less what is hidden of it."""
        hidden = [(o.timestamp, o.cells[key]) for o in self.operations if key in o.cells]
        shown: RowView = {}
        for column, cells in row.items():
            times = {timestamp for timestamp, of in hidden if column in of}
            if left := [cell for cell in cells if cell.timestamp not in times]:
                shown[column] = left
        return shown


def read_half_written(table: Table) -> HalfWritten:
    """All operations that are being written now; a few milliseconds, however large the graph and its log are."""
    rows = dict(table.scan([OPEN_ROWS], [SCOPE.key, WRITES], newest_only=True))
    writing = {
        int(key.removeprefix(OPEN_PREFIX)): row for key, row in rows.items() if WRITES in row and SCOPE.key in row
    }
    if not writing:
        return HalfWritten()
    log_keys = {operation_id: keys.node_key(operation_id) for operation_id in writing}
    log = table.read_rows(log_keys.values(), [columns.OPERATION_STATUS.key], newest_only=True)
    # What has succeeded is complete, although its locks are still there.
    found = tuple(
        _operation(operation_id, row[WRITES][0], row[SCOPE.key][0])
        for operation_id, row in sorted(writing.items())
        if columns.OPERATION_STATUS.newest(log.get(log_keys[operation_id])) != OperationStatus.SUCCESS
    )
    return HalfWritten(found, {operation.operation_id: operation.timestamp for operation in found})


@lru_cache(maxsize=_KEPT_WRITE_SETS)
def _operation(operation_id: int, writes: Cell, scope: Cell) -> OpenWrite:
    timestamp, by_column = write_set_in({WRITES: [writes]}, operation_id)
    of_scope = scope_in({SCOPE.key: [scope]}, operation_id)
    by_row: dict[bytes, set[ColumnKey]] = {}
    for column, row_keys in by_column.items():
        for key in row_keys:
            by_row.setdefault(key, set()).add(column)
    return OpenWrite(
        operation_id,
        timestamp,
        None if of_scope is None else of_scope.generation,
        {key: frozenset(of) for key, of in by_row.items()},
        np.sort(keys.node_ids(by_column.get(columns.FORMER_IDS.key, []))),
    )
