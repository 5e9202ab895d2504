"""Cells of operations that are being written now: which are in the table already, or may be. Reads.

Before its first cell, an operation stores in its open row which cells it will write and with which timestamp. The row
is removed when nothing of the operation is left to do. So the cells of all half-written operations are known exactly at
any time. The term open row is explained in `ownership`.
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
    """An operation that has begun to write and is not known to have ended."""

    operation_id: int
    timestamp: int
    """Timestamp of all its cells, in milliseconds."""
    generation: int | None
    """Generation of the fork before its voxels were committed; None if it changes no voxels.

    Until it has ended, no other operation may change the chunks of its supervoxels.
    """
    cells: Mapping[bytes, frozenset[ColumnKey]]
    """Columns of the cells that it writes, by row key."""
    supervoxels: UInt64Array
    """Supervoxels that it creates, sorted."""


@dataclass(frozen=True)
class HalfWritten:
    """The cells that readers must not see yet."""

    operations: tuple[OpenWrite, ...] = ()
    _seen: Mapping[int, int] = field(default_factory=dict)
    """Timestamps of the operations by id, for comparing two moments."""

    def same_for(self, other: HalfWritten, row_keys: Iterable[bytes]) -> bool:
        """Whether both moments hide the same cells of some rows."""
        if self._seen == other._seen:
            return True
        differing = [o for o in self.operations if other._seen.get(o.operation_id) != o.timestamp]
        differing += [o for o in other.operations if self._seen.get(o.operation_id) != o.timestamp]
        return not any(key in operation.cells for key in row_keys for operation in differing)

    def hides_any(self, row_keys: Iterable[bytes]) -> list[bytes]:
        """Return the rows of which cells may be hidden."""
        if not self.operations:
            return []
        return [key for key in row_keys if any(key in operation.cells for operation in self.operations)]

    def without(self, key: bytes, row: RowView) -> RowView:
        """Return a row without its hidden cells."""
        hidden = [(o.timestamp, o.cells[key]) for o in self.operations if key in o.cells]
        shown: RowView = {}
        for column, cells in row.items():
            times = {timestamp for timestamp, of in hidden if column in of}
            if left := [cell for cell in cells if cell.timestamp not in times]:
                shown[column] = left
        return shown


def read_half_written(table: Table) -> HalfWritten:
    """Read all operations that are being written now; this takes a few milliseconds for graphs and logs of any size."""
    rows = dict(table.scan([OPEN_ROWS], [SCOPE.key, WRITES], newest_only=True))
    writing = {
        int(key.removeprefix(OPEN_PREFIX)): row for key, row in rows.items() if WRITES in row and SCOPE.key in row
    }
    if not writing:
        return HalfWritten()
    log_keys = {operation_id: keys.node_key(operation_id) for operation_id in writing}
    log = table.read_rows(log_keys.values(), [columns.OPERATION_STATUS.key], newest_only=True)
    # An operation that has succeeded is complete, although its locks may still exist.
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
