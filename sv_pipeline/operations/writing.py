"""The rows of one operation: its entry in PyChunkedGraph's log, and our own row with what recovery needs. Writes them.

Our own data is never put into the log's row, because PyChunkedGraph reads that row completely::

    %020d                    the log: request, status, roots, time
    sv_pipeline:open:%020d   what recovery needs while the operation is not finished, see `ownership`
    sv_pipeline:op:%020d     1:identity     as in the open row, once it writes; its record in the fork has the same
                             1:activated    all edges that a merge made active; kept for an undo
                             1:supervoxels  (old, new, side) of supervoxels that it replaced; kept for an undo
                             1:outcome      {"still_one_object": true} if a split separated nothing, which was allowed
                             1:attempt      token of the owner that has written these three

| status | meaning |
| --- | --- |
| CREATED | begun; nothing is written yet |
| EXCEPTION | ended, nothing written; ``operation_exception`` begins with ``refused:<reason>:`` or ``failed:<kind>:`` |
| WRITE_STARTED | scope, locks and rows are being written, or were when the process died |
| SUCCESS | complete |
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import zstandard

from sv_pipeline.errors import CorruptionError
from sv_pipeline.failpoints import reach, together
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import FIXED_TIME, Ownership, open_key
from sv_pipeline.operations.refusal import EditRefused, OwnershipLostError
from sv_pipeline.table import codecs, columns, counters, keys
from sv_pipeline.table.columns import ArrayColumn, Column
from sv_pipeline.table.interface import (
    CellMatch,
    Change,
    ColumnKey,
    ConditionalMutation,
    DeleteCells,
    RowMutation,
    RowView,
    SetCell,
    Table,
)

__all__ = [
    "IDENTITY",
    "RECOVERY",
    "REQUEST",
    "SCOPE",
    "WRITES",
    "OperationRow",
    "Scope",
    "made_rows",
    "own_key",
    "read_activated",
    "read_identity",
    "read_still_one_object",
    "read_supervoxels",
    "scope_in",
    "without_plan",
    "write_set",
    "write_set_in",
]

log = logging.getLogger(__name__)

SCOPE: Column[Any] = Column(ColumnKey("1", b"scope"), codecs.JsonCodec())
REQUEST: Column[Any] = Column(ColumnKey("1", b"request"), codecs.JsonCodec())
RECOVERY: Column[Any] = Column(ColumnKey("1", b"recovery"), codecs.JsonCodec())
WRITES = ColumnKey("1", b"writes")
ACTIVATED: ArrayColumn[np.uint64] = ArrayColumn(ColumnKey("1", b"activated"), codecs.ArrayCodec("<u8", 2, True))
SUPERVOXELS: ArrayColumn[np.uint64] = ArrayColumn(ColumnKey("1", b"supervoxels"), codecs.ArrayCodec("<u8", 3, True))
OUTCOME: Column[Any] = Column(ColumnKey("1", b"outcome"), codecs.JsonCodec())
IDENTITY: Column[str] = Column(ColumnKey("1", b"identity"), codecs.TextCodec())
ATTEMPT: Column[str] = Column(ColumnKey("1", b"attempt"), codecs.TextCodec())
OWN_PREFIX = b"sv_pipeline:op:"
MAX_WRITE_SET_BYTES = 1 << 30


_OF_ATTEMPT = (ATTEMPT.key, ACTIVATED.key, SUPERVOXELS.key, OUTCOME.key)


def own_key(operation_id: int) -> bytes:
    """Return the key of our own row of an operation."""
    return OWN_PREFIX + b"%020d" % operation_id


def new_identity() -> str:
    """Return a random identity for an operation or a graph."""
    return secrets.token_hex(8)


def without_plan(operation_id: int) -> RowMutation:
    """Delete what an attempt has stored in our own row about its undo and its outcome; the identity stays."""
    return RowMutation(own_key(operation_id), [DeleteCells(column) for column in _OF_ATTEMPT])


@dataclass(frozen=True)
class Scope:
    """What an operation locks and creates while it writes."""

    timestamp: int
    """Logical time of the edit in milliseconds; the timestamp of all its cells."""
    roots: tuple[int, ...]
    """Roots that are locked indefinitely."""
    new_roots: tuple[int, ...]
    """Roots that are created, and locked indefinitely as well."""
    chunks: tuple[int, ...] = ()
    """Layer 2 chunks whose voxels are rewritten."""
    generation: int | None = None
    """Generation of the fork before the voxels were written; None if no voxels change."""

    @property
    def lock_keys(self) -> tuple[bytes, ...]:
        """Keys of the rows that are locked before anything is written: roots and chunks."""
        return (*keys.node_keys(self.roots), *(keys.chunk_lock_key(chunk) for chunk in self.chunks))

    def joined(self, earlier: Scope | None) -> Scope:
        """Combine this scope with that of an earlier attempt."""
        if earlier is None:
            return self
        return replace(
            self,
            roots=tuple(sorted({*self.roots, *earlier.roots})),
            chunks=tuple(sorted({*self.chunks, *earlier.chunks})),
        )


def write_set(mutations: Iterable[RowMutation], timestamp: int) -> bytes:
    """Encode, compressed, the row keys by column of all cells that mutations set at ``timestamp``."""
    cells: dict[str, list[str]] = defaultdict(list)
    for mutation in mutations:
        for change in mutation.changes:
            if isinstance(change, SetCell) and change.timestamp == timestamp:
                cells[f"{change.column.family}:{change.column.qualifier.decode()}"].append(mutation.key.decode())
    text = json.dumps({"timestamp": timestamp, "cells": cells}, separators=(",", ":"))
    return codecs.compress(text.encode())


def write_set_in(row: RowView | None, operation_id: int) -> tuple[int, dict[ColumnKey, list[bytes]]]:
    """Decode the write set in an open row: the timestamp and the row keys by column of the operation's cells.

    The result is (0, {}) if the operation has not begun to write.
    """
    if not row or WRITES not in row:
        return 0, {}
    try:
        text = zstandard.ZstdDecompressor().decompress(row[WRITES][0].value, max_output_size=MAX_WRITE_SET_BYTES)
        value = json.loads(text)
        cells = {
            ColumnKey(name.split(":", 1)[0], name.split(":", 1)[1].encode()): [key.encode() for key in found]
            for name, found in value["cells"].items()
        }
        return int(value["timestamp"]), cells
    except (ValueError, KeyError, zstandard.ZstdError) as error:
        raise CorruptionError(f"the write set of operation {operation_id} cannot be read: {error}.") from error


def made_rows(cells: Mapping[ColumnKey, Iterable[bytes]]) -> set[bytes]:
    """Return the keys of the rows in a write set that the operation makes: those of new nodes and supervoxels."""
    own = (b"children", b"former_ids")
    return {key for column, found in cells.items() if column.qualifier in own for key in found}


def scope_in(row: RowView | None, operation_id: int) -> Scope | None:
    """Decode what an unfinished operation holds from its open row; None if it holds nothing."""
    try:
        value = SCOPE.newest(row)
        if value is None:
            return None
        return Scope(
            int(value["timestamp"]),
            tuple(value["roots"]),
            tuple(value["new_roots"]),
            tuple(value["chunks"]),
            value["generation"],
        )
    except (CorruptionError, KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"the scope of operation {operation_id} cannot be read: {error}.") from error


def read_activated(table: Table, operation_id: int) -> UInt64Array | None:
    """Read all edges that a merge made active, shape (n, 2); None if other software made it."""
    row = table.read_rows([own_key(operation_id)], [ACTIVATED.key], newest_only=True).get(own_key(operation_id))
    return ACTIVATED.newest(row)


def read_identity(table: Table, operation_id: int) -> str | None:
    """Read the identity of an operation; None if it wrote nothing, or has none (other software, older versions)."""
    row_keys = identity_keys(operation_id)
    return identity_in(table.read_rows(row_keys, [IDENTITY.key], newest_only=True), operation_id)


def identity_keys(operation_id: int) -> list[bytes]:
    """Return the keys of the rows that may contain the identity of an operation."""
    return [own_key(operation_id), open_key(operation_id)]


def identity_in(rows: dict[bytes, RowView], operation_id: int) -> str | None:
    """Decode the result of `read_identity` from the rows of `identity_keys`."""
    found = (IDENTITY.newest(rows.get(key)) for key in identity_keys(operation_id))
    return next((identity for identity in found if identity is not None), None)


def read_supervoxels(table: Table, operation_id: int) -> UInt64Array:
    """Read the supervoxels that an operation replaced: (old, new, side), shape (n, 3); empty if it replaced none."""
    key = own_key(operation_id)
    found = SUPERVOXELS.newest(table.read_rows([key], [SUPERVOXELS.key], newest_only=True).get(key))
    return np.zeros((0, 3), np.uint64) if found is None else found


def read_still_one_object(table: Table, operation_ids: Iterable[int]) -> set[int]:
    """Return which operations left in one object what they should have separated."""
    ids = {own_key(operation_id): operation_id for operation_id in operation_ids}
    rows = table.read_rows(list(ids), [OUTCOME.key], newest_only=True) if ids else {}
    outcomes = {key: OUTCOME.newest(row) for key, row in rows.items()}
    return {ids[key] for key, outcome in outcomes.items() if outcome and outcome.get("still_one_object")}


@dataclass(frozen=True, eq=False)
class OperationRow:
    """The rows of one operation, for one attempt at it."""

    table: Table
    operation_id: int
    own: Ownership
    not_before: int = 0
    """Lower limit in milliseconds of the timestamps of this attempt's cells in the log, whatever the clock says."""
    identity: str = field(default_factory=new_identity)
    """Identity of the operation, the same for all attempts; see `read_identity`."""
    seen: list[bytes] = field(default_factory=list, repr=False)
    """Value of the log's timestamp cell that this attempt read or wrote last; writes to the log depend on it."""
    plans: list[Scope] = field(default_factory=list, repr=False)
    """The scopes that this attempt has begun to store. If an answer was lost, they may be stored or not."""

    @classmethod
    def create(cls, table: Table, cells: Iterable[SetCell], options: dict[str, Any]) -> OperationRow:
        """Create an operation with a new id, and write its rows: cells of the request, and options without cells."""
        row = cls.numbered(table, counters.new_operation_id(table))
        row.store(cells, options)
        return row

    @classmethod
    def numbered(cls, table: Table, operation_id: int) -> OperationRow:
        """Return the rows of a new operation, which are still to be written by :meth:`store`."""
        return cls(table, operation_id, Ownership(table, operation_id))

    def store(self, cells: Iterable[SetCell], options: dict[str, Any]) -> None:
        """Write the rows of a new operation: the cells of its request, and its options that have no cells."""
        reach("create")
        own = [self.own.cell, REQUEST.set(options, FIXED_TIME), IDENTITY.set(self.identity, FIXED_TIME)]
        opened = RowMutation(self.own.key, own)
        created = [columns.ROOTS.set(np.zeros(0, np.uint64)), *cells]
        now = self._now()
        self.table.mutate([opened, self._log(OperationStatus.CREATED, created, now)])
        self.seen.append(columns.OPERATION_TIMESTAMP.encode(_datetime(now)))
        reach("created")

    @property
    def owner(self) -> str:
        """Token of this attempt at the operation; a process that takes it over has another."""
        return self.own.token

    def refuse(self, refusal: EditRefused) -> None:
        """End the operation because the request cannot be fulfilled; nothing was written."""
        self._end(f"refused:{refusal.reason}: {refusal}")

    def fail(self, error: BaseException) -> None:
        """End the operation because of an error before anything was written."""
        self._end(f"failed:{getattr(error, 'kind', type(error).__name__)}: {error}")

    def _end(self, text: str) -> None:
        try:
            self.own.check()
            if self.plans:
                # Chunks in the log of an operation that has ended would look like those of a dead worker of other
                # software.
                self.forget_plan()
            self.say_how_it_ended(text)
        except OwnershipLostError as lost:
            log.warning("%s", lost)  # the new owner ends the operation
        else:
            self.own.end()

    def say_how_it_ended(self, text: str) -> None:
        """Write status EXCEPTION to the log, with a reason."""
        reach("refuse")
        self._write_log(OperationStatus.EXCEPTION, [columns.OPERATION_EXCEPTION.set(text)], self._now())
        reach("refused")

    def start_writing(
        self,
        scope: Scope,
        writes: bytes,
        log: list[SetCell],
        activated: UInt64Array,
        supervoxels: UInt64Array | None = None,
        *,
        still_one_object: bool = False,
    ) -> None:
        """Store scope and write set, WRITE_STARTED in the log, and our own row; called before any indefinite lock.

        They are stored together, in any order. The status alone, or our own row alone, means nothing without a scope:
        recovery then finds an operation that has written nothing.
        """
        own_cells = []
        if len(activated):
            own_cells.append(ACTIVATED.set(activated, FIXED_TIME))
        if supervoxels is not None:
            own_cells.append(SUPERVOXELS.set(supervoxels, FIXED_TIME))
        if still_one_object:
            own_cells.append(OUTCOME.set({"still_one_object": True}, FIXED_TIME))
        if scope.chunks:
            log = [*log, columns.CHUNK_LOCK_SCOPE.set(np.array(scope.chunks, np.uint64))]
        own = [self._own_cells(own_cells)] if own_cells or not self.seen else []
        started, timestamp = OperationStatus.WRITE_STARTED, scope.timestamp
        plan = [SCOPE.set(asdict(scope), FIXED_TIME), SetCell(WRITES, writes, FIXED_TIME)]
        reach("scope")
        self.plans.append(scope)
        to_log, wanted = self._log_if_mine(started, log, timestamp)
        send = partial(together, "half started", send=self.table.at_once)
        answers = self.own.change_with(plan, [to_log, *own], send)
        if answers[0] is bool(to_log.if_matched):
            self.seen[:] = [wanted]
        else:
            self._write_log(started, log, timestamp)
        reach("write started")

    def _own_cells(self, cells: list[SetCell]) -> ConditionalMutation:
        """Return the change of our own row for this attempt.

        The first attempt writes nothing where another has written: its process may have been stopped for so long that
        the operation was recovered. A recovery replaces what earlier attempts may have left.
        """
        set_now = {cell.column for cell in cells}
        old = [DeleteCells(column) for column in _OF_ATTEMPT[1:] if column not in set_now]
        changes: list[Change] = [
            *old,
            *cells,
            ATTEMPT.set(self.owner, FIXED_TIME),
            IDENTITY.set(self.identity, FIXED_TIME),
        ]
        mine = CellMatch(ATTEMPT.key, ATTEMPT.encode(self.owner))
        others = [CellMatch(ATTEMPT.key)] if self.seen else []
        return ConditionalMutation(own_key(self.operation_id), others, [mine], if_unmatched=changes)

    def succeed(self, roots: UInt64Array, timestamp: int) -> None:
        """Write status SUCCESS, since all rows are written; raise OwnershipLostError if ownership was lost."""
        self._write_log(OperationStatus.SUCCESS, [columns.ROOTS.set(roots)], timestamp)

    def clear_scope(self) -> None:
        """Remove the open row, since the operation is complete and holds no lock any more."""
        self.own.end()
        reach("cleared")

    def forget_plan(self) -> None:
        """Delete the plan, of which nothing was written; no lock is held. The final status is still to be written."""
        self.table.mutate([self.without_chunks(), without_plan(self.operation_id)])

    def without_chunks(self) -> RowMutation:
        """Delete the chunks that were locked from the log."""
        return RowMutation(keys.node_key(self.operation_id), [DeleteCells(columns.CHUNK_LOCK_SCOPE.key)])

    def _write_log(self, status: OperationStatus, changes: list[SetCell], timestamp: int) -> None:
        """Write to the log unless another process, which owns the operation then, has written to it meanwhile."""
        column = columns.OPERATION_TIMESTAMP
        while True:
            change, wanted = self._log_if_mine(status, changes, timestamp)
            if self.table.check_and_mutate_many([change])[0] is bool(change.if_matched):
                break
            self.own.verify()
            cells = self.table.read_rows([change.key], [column.key], newest_only=True).get(change.key, {})
            self.seen[:] = [cell.value for cell in column.cells(cells)]
        self.seen[:] = [wanted]

    def _log_if_mine(
        self, status: OperationStatus, changes: list[SetCell], timestamp: int
    ) -> tuple[ConditionalMutation, bytes]:
        """Return a write to the log that is made if nobody has written to it since, and the timestamp that it sets.

        If there was no timestamp before, the write is made if the condition does *not* hold.
        """
        row, column = self._log(status, changes, timestamp), columns.OPERATION_TIMESTAMP
        wanted = column.encode(_datetime(timestamp))
        if self.seen:
            mine = [CellMatch(column.key, self.seen[-1])]
            return ConditionalMutation(row.key, mine, if_matched=row.changes), wanted
        return ConditionalMutation(row.key, [CellMatch(column.key)], if_unmatched=row.changes), wanted

    def _log(self, status: OperationStatus, changes: list[SetCell], timestamp: int) -> RowMutation:
        """Return cells of the log with the current time as timestamp; ``timestamp`` is the logical time of the edit."""
        cells = [
            *changes,
            columns.OPERATION_STATUS.set(int(status)),
            columns.OPERATION_TIMESTAMP.set(_datetime(timestamp)),
        ]
        now = self._now()
        return RowMutation(keys.node_key(self.operation_id), [SetCell(cell.column, cell.value, now) for cell in cells])

    def _now(self) -> int:
        return max(time.time_ns() // 1_000_000, self.not_before)


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
