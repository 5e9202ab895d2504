"""Bigtable backend: a table in Google Bigtable or its emulator, with the layout of kvdbclient. Knows no graph.

Several read requests overlap: the next ones are sent while the rows of one are being decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc  # type: ignore[import-untyped]

from sv_pipeline.errors import NotFoundError
from sv_pipeline.patience import patience
from sv_pipeline.table.bigtable import protocol
from sv_pipeline.table.bigtable import rows as messages
from sv_pipeline.table.bigtable.rpc import RETRYABLE, Connection, Patience, error_of, read_stream
from sv_pipeline.table.interface import (
    AGING_FAMILY,
    FAMILIES,
    MAX_AGE_MS,
    NEWEST_FAMILY,
    CellFilter,
    ColumnKey,
    ConditionalMutation,
    RowKeyRange,
    RowMutation,
    RowView,
    Table,
)
from sv_pipeline.table.keys import join_ranges

__all__ = ["BigtableTable"]

IN_FLIGHT = 4
GARBAGE_RULES: dict[str, dict[str, Any]] = {
    **{family: {} for family in FAMILIES},
    NEWEST_FAMILY: {"max_num_versions": 1},
    AGING_FAMILY: {"max_age": {"seconds": MAX_AGE_MS // 1000}},
}
"""What Bigtable may collect of each family; a test compares it with kvdbclient's rules."""
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(eq=False)
class BigtableTable(Table):
    """A table of a Bigtable instance.

    Parameters
    ----------
    name, project, instance
        Location of the table. ``BIGTABLE_EMULATOR_HOST`` is the address of an emulator, if one is used.
    patience
        Seconds after which a request without an answer fails; default: `sv_pipeline.patience`.
    """

    project: str
    instance: str
    patience: float = field(default_factory=patience)
    _connection: Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._connection = Connection(self.path, self.patience, self._count)

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(BigtableTable, patience=self.patience, read_only=self.read_only)
        return make, (self.name, self.project, self.instance)

    @property
    def path(self) -> str:
        """Full name of the table."""
        return f"{self._parent}/tables/{self.name}"

    @property
    def _parent(self) -> str:
        return f"projects/{self.project}/instances/{self.instance}"

    # -- life cycle -----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Return whether the table exists. It reads the table, which requires no administrator's role."""
        try:
            self.read_rows([b"meta"], newest_only=True)
        except NotFoundError:
            return False
        return True

    def create(self) -> None:
        """Create the table with its families in one request; ConflictError if it exists."""
        self._refuse_if_read_only()
        request = protocol.CreateTableRequest(parent=self._parent, table_id=self.name)
        for family, rule in GARBAGE_RULES.items():
            request.table.column_families[family].gc_rule.CopyFrom(protocol.GcRule(**rule))
        self._connection.unary("CreateTable", request, "creation")

    def drop(self) -> None:
        """Remove the table and everything in it; does nothing if it does not exist."""
        self._refuse_if_read_only()
        try:
            self._connection.unary("DeleteTable", protocol.DeleteTableRequest(name=self.path), "removal")
        except NotFoundError:
            return

    def close(self) -> None:
        """Close the channels; the next request opens others."""
        self._connection.close()

    # -- reads ----------------------------------------------------------------------------------------------------

    def _read_rows(self, keys: Sequence[bytes], wanted: CellFilter) -> dict[bytes, RowView]:
        return dict(self._read(messages.read_requests(self.path, keys, (), messages.read_filter(wanted))))

    def _scan(self, ranges: Sequence[RowKeyRange], wanted: CellFilter) -> Iterator[tuple[bytes, RowView]]:
        return self._read(messages.read_requests(self.path, (), join_ranges(ranges), messages.read_filter(wanted)))

    def any_row(self, ranges: Sequence[RowKeyRange], columns: Sequence[ColumnKey] | None = None) -> bool:
        """Ask for one row; a scan that is broken off would go on for a while in the backend. See the interface."""
        if columns is None or any(column.family == AGING_FAMILY for column in columns):
            return super().any_row(ranges, columns)  # the first row may hold garbage only
        wanted = messages.read_filter(CellFilter(columns, None, newest_only=True))
        for request in messages.read_requests(self.path, (), join_ranges(ranges), wanted):
            request.rows_limit = 1
            if next(self._read(iter([request])), None) is not None:
                return True
        return False

    def _read(self, requests: Iterator[Any]) -> Iterator[tuple[bytes, RowView]]:
        started: deque[tuple[Any, Any]] = deque()
        try:
            while True:
                while len(started) < IN_FLIGHT and (request := next(requests, None)) is not None:
                    started.append((request, self._connection.stream("ReadRows", request)))
                if not started:
                    return
                yield from self._finish_read(*started.popleft())
        finally:
            for _, call in started:
                call.cancel()

    def _finish_read(self, request: Any, call: Any) -> Iterator[tuple[bytes, RowView]]:
        """Yield the rows of a call; a broken call is repeated for the rows that are still missing."""
        patience = Patience(self.patience)
        while True:
            last = None
            try:
                for key, row in messages.rows_of(read_stream(call, f"read of {self.path}")):
                    last = key
                    if row:
                        yield key, row
            except grpc.RpcError as error:
                if last is not None:
                    patience.progress()
                    request = messages.remaining(request, last)
                    if request is None:
                        return
                self._connection.retry_or_raise(error, patience, "read")
                call = self._connection.stream("ReadRows", request)
            else:
                return

    # -- writes ---------------------------------------------------------------------------------------------------

    def mutate(self, mutations: Iterable[RowMutation]) -> None:
        """Apply mutations; if a request fails partly, only the failed rows are sent again."""
        self._refuse_if_read_only()
        self._mutate(mutations)

    def _mutate(self, mutations: Iterable[RowMutation]) -> None:
        started: deque[tuple[list[Any], Any]] = deque()
        try:
            for entries in messages.entry_batches(mutations):
                started.append((entries, self._start_mutate(entries)))
                if len(started) >= IN_FLIGHT:
                    self._finish_mutate(*started.popleft())
            while started:
                self._finish_mutate(*started.popleft())
        finally:
            for _, call in started:
                call.cancel()

    def _start_mutate(self, entries: list[Any]) -> Any:
        return self._connection.stream("MutateRows", protocol.MutateRowsRequest(table_name=self.path, entries=entries))

    def _finish_mutate(self, entries: list[Any], call: Any) -> None:
        patience = Patience(self.patience)
        while True:
            missing = dict(enumerate(entries))
            failed: dict[int, tuple[grpc.StatusCode, str]] = {}
            broken: grpc.RpcError | None = None
            try:
                for response in read_stream(call, f"write to {self.path}"):
                    for result in response.entries:
                        entry = missing.pop(result.index)
                        if result.status.code:
                            missing[result.index] = entry
                            code = _STATUS.get(result.status.code, grpc.StatusCode.UNKNOWN)
                            failed[result.index] = code, result.status.message
            except grpc.RpcError as error:
                broken = error
            if not missing:
                return
            if len(missing) < len(entries):
                patience.progress()
            index, entry = next(iter(missing.items()))
            what = f"write of row {entry.row_key!r} (and {len(missing) - 1} more)"
            for index, (code, message) in failed.items():
                if code not in RETRYABLE:
                    raise error_of(code, message, self.path, f"write of row {missing[index].row_key!r}")
            if broken is not None:
                self._connection.retry_or_raise(broken, patience, what)
            elif not patience.wait():
                code, message = failed.get(index, (grpc.StatusCode.UNAVAILABLE, "no answer for this row"))
                raise error_of(code, message, self.path, what)
            entries = list(missing.values())
            call = self._start_mutate(entries)

    def increment_many(self, increments: Sequence[tuple[bytes, ColumnKey, int]]) -> list[int]:
        """Send the increments concurrently; see the interface. A lost answer can make one add twice."""
        self._refuse_if_read_only()
        requests = []
        for key, column, by in increments:
            rule = {"family_name": column.family, "column_qualifier": column.qualifier, "increment_amount": by}
            request = protocol.ReadModifyWriteRowRequest(table_name=self.path, row_key=key, rules=[rule])
            requests.append(request)
        answers = self._connection.unary_many("ReadModifyWriteRow", requests, "increment")
        cells = [answer.row.families[0].columns[0].cells[0] for answer in answers]
        return [int.from_bytes(cell.value, "big", signed=True) for cell in cells]

    def check_and_mutate_many(self, conditional: Sequence[ConditionalMutation]) -> list[bool]:
        """Send the requests concurrently; see the interface."""
        return self.at_once(conditional)

    def at_once(self, changes: Sequence[RowMutation | ConditionalMutation]) -> list[bool]:
        """Send the requests concurrently; see the interface."""
        self._refuse_if_read_only()
        plain: list[RowMutation] = []
        requests: dict[int, Any] = {}
        answers: dict[int, bool] = {}
        for i, change in enumerate(changes):
            if isinstance(change, RowMutation):
                plain.append(change)
            elif not change.any_of:
                plain.append(RowMutation(change.key, change.if_unmatched))
                answers[i] = False
            elif change.if_matched or change.if_unmatched:
                requests[i] = self._conditional(change)
            else:
                answers[i] = self._meets(change)

        def write() -> None:
            self._mutate(plain)

        if requests:
            sent = self._connection.unary_many("CheckAndMutateRow", list(requests.values()), "check", write)
            answers |= {i: bool(answer.predicate_matched) for i, answer in zip(requests, sent, strict=True)}
        else:
            write()
        return [answers.get(i, True) for i in range(len(changes))]

    def _conditional(self, one: ConditionalMutation) -> Any:
        now = messages.now_ms()
        return protocol.CheckAndMutateRowRequest(
            table_name=self.path,
            row_key=one.key,
            predicate_filter=messages.match_filter(tuple(one.any_of), tuple(one.none_of)),
            true_mutations=[messages.mutation(change, now) for change in one.if_matched],
            false_mutations=[messages.mutation(change, now) for change in one.if_unmatched],
        )

    def _meets(self, one: ConditionalMutation) -> bool:
        """Return whether a row meets a condition on which no change depends."""
        condition = messages.match_filter(tuple(one.any_of), tuple(one.none_of))
        return bool(dict(self._read(messages.read_requests(self.path, [one.key], (), condition))))

    def _count(self) -> None:
        self.round_trips += 1
