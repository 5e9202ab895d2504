"""An operation log as edits leave it, written row by row: operations that begin, appear, finish and are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import (
    CellFilter,
    ColumnKey,
    ConditionalMutation,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

__all__ = ["DyingTable", "Log", "ProcessDiedError"]

FIRST_ROOT = 6 << 56


@dataclass
class Log:
    """A log, and the truth about it."""

    table: Table
    clock: int = 1_700_000_000_000
    """Milliseconds; each finished operation has a later logical time than those before it."""
    roots: dict[int, int] = field(default_factory=lambda: {FIRST_ROOT + i: 0 for i in range(6)})
    """Roots in use, and the operation that made each; 0 for the ingest."""
    begun: set[int] = field(default_factory=set)
    """Operations whose number is given out, and that have not ended."""
    shown: set[int] = field(default_factory=set)
    """Those of them that have a row."""
    finished: dict[int, set[int]] = field(default_factory=dict)
    """The operations that each finished one builds on."""

    def begin(self) -> int:
        """Give out a number; no row yet."""
        number = counters.new_operation_id(self.table)
        self.begun.add(number)
        return number

    def show(self, operation: int, *, at: int | None = None) -> None:
        """The row of an operation that has begun."""
        self._write(operation, OperationStatus.CREATED, [columns.ROOTS.set(np.zeros(0, np.uint64))], at)
        self.shown.add(operation)

    def refuse(self, operation: int, text: str = "refused:locked: it is locked") -> None:
        """An operation ends without effect."""
        self._write(operation, OperationStatus.EXCEPTION, [columns.OPERATION_EXCEPTION.set(text)])
        self._end(operation)

    def fail_as_others_do(self, operation: int) -> None:
        """An exception of other software: the operation may still be repaired."""
        self._write(operation, OperationStatus.EXCEPTION, [columns.OPERATION_EXCEPTION.set("KeyError(7)")])

    def finish(self, operation: int, replaced: Iterable[int], n_new: int) -> None:
        """An operation replaces roots in use by new ones, and succeeds."""
        self.clock += 5
        old = sorted(replaced)
        new = [FIRST_ROOT + 1000 * operation + i for i in range(n_new)]
        rows = [
            RowMutation(
                keys.node_key(root),
                [
                    columns.FORMER_PARENTS.set(np.array(old, np.uint64), self.clock),
                    columns.OPERATION_ID.set(operation, self.clock),
                ],
            )
            for root in new
        ]
        rows += [
            RowMutation(
                keys.node_key(root),
                [
                    columns.NEW_PARENTS.set(np.array(new, np.uint64), self.clock),
                    columns.OPERATION_ID.set(operation, self.clock),
                ],
            )
            for root in old
        ]
        self.table.mutate(rows)
        self._write(operation, OperationStatus.SUCCESS, [columns.ROOTS.set(np.array(new, np.uint64))])
        self.finished[operation] = {self.roots[root] for root in old} - {0}
        for root in old:
            del self.roots[root]
        self.roots |= dict.fromkeys(new, operation)
        self._end(operation)

    def _write(self, operation: int, status: OperationStatus, cells: Sequence[SetCell], at: int | None = None) -> None:
        logical = datetime.fromtimestamp(self.clock / 1000, UTC)
        cells = [
            *cells,
            columns.OPERATION_STATUS.set(int(status)),
            columns.OPERATION_TIMESTAMP.set(logical),
            columns.USER.set("ada"),
        ]
        self.table.mutate([RowMutation(keys.node_key(operation), [SetCell(c.column, c.value, at) for c in cells])])

    def _end(self, operation: int) -> None:
        self.begun.discard(operation)
        self.shown.discard(operation)


class ProcessDiedError(BaseException):
    """What stands for the death of a process: no handler catches it."""


class DyingTable(Table):
    """A real table, seen by a process that dies, or is stopped for a while, before one of its writes."""

    def __init__(self, inner: Table, writes: int | None, *, meanwhile: Callable[[], Any] | None = None) -> None:
        super().__init__(inner.name)
        self.inner, self.left, self.meanwhile = inner, writes, meanwhile

    def _before_a_write(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left >= 0:
            return
        if self.meanwhile is None:
            raise ProcessDiedError
        meanwhile, self.meanwhile, self.left = self.meanwhile, None, None
        meanwhile()

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        return self.inner._read_rows(keys, wanted)

    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        return self.inner._scan(ranges, wanted)

    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Row by row: the rows of one call may be written in part."""
        for mutation in mutations:
            self._before_a_write()
            self.inner.mutate([mutation])

    def increment(self, key: bytes, column: ColumnKey, by: int) -> int:
        self._before_a_write()
        return self.inner.increment(key, column, by)

    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        return [self.increment(*one) for one in increments]

    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        answers = []
        for one in conditional:
            self._before_a_write()
            answers += self.inner.check_and_mutate_many([one])
        return answers

    def exists(self) -> bool:
        return self.inner.exists()

    def create(self) -> None:
        self.inner.create()

    def drop(self) -> None:
        self.inner.drop()

    def close(self) -> None:
        self.inner.close()
