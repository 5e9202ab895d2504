"""The rows of one operation: its entry in PyChunkedGraph's log, and our own row with what recovery needs. Writes them.

Own data never goes into the log's row, which PyChunkedGraph reads whole::

    %020d                    the log: request, status, roots, time
    sv_pipeline:open:%020d   what recovery needs while the operation is not finished, see `ownership`
    sv_pipeline:op:%020d     1:identity     as in the open row, once it writes; its record in the fork has the same
                             1:activated    all edges that a merge made active; stays, so that it can be undone
                             1:supervoxels  (old, new, side) of supervoxels that it replaced; stays, likewise
                             1:outcome      {"still_one_object": true} where it parted nothing, which was allowed

| status | means |
| --- | --- |
| CREATED | begun; nothing is written yet |
| EXCEPTION | ended, nothing written; ``operation_exception`` begins with ``refused:<reason>:`` or ``failed:<kind>:`` |
| WRITE_STARTED | scope, locks and rows are being written, or were when the process died |
| SUCCESS | done |
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zstandard

from sv_pipeline.errors import CorruptionError
from sv_pipeline.failpoints import reach
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import OperationStatus
from sv_pipeline.operations.ownership import FIXED_TIME, Ownership, open_key
from sv_pipeline.operations.refusal import EditRefused, OwnershipLostError
from sv_pipeline.table import codecs, columns, counters, keys
from sv_pipeline.table.columns import ArrayColumn, Column
from sv_pipeline.table.interface import CellMatch, ColumnKey, DeleteCells, RowMutation, RowView, SetCell, Table

__all__ = [
    "IDENTITY",
    "RECOVERY",
    "REQUEST",
    "SCOPE",
    "WRITES",
    "OperationRow",
    "Scope",
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
OWN_PREFIX = b"sv_pipeline:op:"
MAX_WRITE_SET_BYTES = 1 << 30


def own_key(operation_id: int) -> bytes:
    """Key of our own row of an operation."""
    return OWN_PREFIX + b"%020d" % operation_id


def new_identity() -> str:
    """A random identity."""
    return secrets.token_hex(8)


def without_plan(operation_id: int) -> RowMutation:
    """Take out of our own row what an attempt noted for its undo and of its outcome; the identity stays."""
    noted = (ACTIVATED.key, SUPERVOXELS.key, OUTCOME.key)
    return RowMutation(own_key(operation_id), [DeleteCells(column) for column in noted])


@dataclass(frozen=True)
class Scope:
    """What an operation holds while it writes."""

    timestamp: int
    """Logical time, milliseconds: of all its cells."""
    roots: tuple[int, ...]
    """Locked indefinitely."""
    new_roots: tuple[int, ...]
    """Made, and locked indefinitely as well."""
    chunks: tuple[int, ...] = ()
    """Layer 2 chunks whose voxels are rewritten."""
    generation: int | None = None
    """Of the fork, before the voxels were written."""

    @property
    def lock_keys(self) -> tuple[bytes, ...]:
        """Rows that are locked before anything is written: of roots and of chunks."""
        return (*keys.node_keys(self.roots), *(keys.chunk_lock_key(chunk) for chunk in self.chunks))

    def joined(self, earlier: Scope | None) -> Scope:
        """With what an earlier attempt holds."""
        if earlier is None:
            return self
        return replace(
            self,
            roots=tuple(sorted({*self.roots, *earlier.roots})),
            chunks=tuple(sorted({*self.chunks, *earlier.chunks})),
        )


def write_set(mutations: Iterable[RowMutation], timestamp: int) -> bytes:
    """Row keys by column of all cells that mutations put at a time, compressed."""
    cells: dict[str, list[str]] = defaultdict(list)
    for mutation in mutations:
        for change in mutation.changes:
            if isinstance(change, SetCell) and change.timestamp == timestamp:
                cells[f"{change.column.family}:{change.column.qualifier.decode()}"].append(mutation.key.decode())
    text = json.dumps({"timestamp": timestamp, "cells": cells}, separators=(",", ":"))
    return zstandard.ZstdCompressor(3).compress(text.encode())


def write_set_in(row: RowView | None, operation_id: int) -> tuple[int, dict[ColumnKey, list[bytes]]]:
    """Time and row keys by column of the cells of an unfinished operation, out of its open row.

    (0, {}) if it has not begun to write.
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


def scope_in(row: RowView | None, operation_id: int) -> Scope | None:
    """What an unfinished operation holds, out of its open row; None if nothing."""
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
    """All edges that a merge made active, shape (n, 2); None if other software made it."""
    row = table.read_rows([own_key(operation_id)], [ACTIVATED.key], newest_only=True).get(own_key(operation_id))
    return ACTIVATED.newest(row)


def read_identity(table: Table, operation_id: int) -> str | None:
    """Identity of an operation; None if it wrote nothing, or other software or an older version made it."""
    row_keys = identity_keys(operation_id)
    return identity_in(table.read_rows(row_keys, [IDENTITY.key], newest_only=True), operation_id)


def identity_keys(operation_id: int) -> list[bytes]:
    """Rows that may name the identity of an operation."""
    return [own_key(operation_id), open_key(operation_id)]


def identity_in(rows: dict[bytes, RowView], operation_id: int) -> str | None:
    """What `read_identity` gives, out of the rows of `identity_keys`."""
    found = (IDENTITY.newest(rows.get(key)) for key in identity_keys(operation_id))
    return next((identity for identity in found if identity is not None), None)


def read_supervoxels(table: Table, operation_id: int) -> UInt64Array:
    """Supervoxels that an operation replaced: (old, new, side), shape (n, 3); none if it replaced none."""
    key = own_key(operation_id)
    found = SUPERVOXELS.newest(table.read_rows([key], [SUPERVOXELS.key], newest_only=True).get(key))
    return np.zeros((0, 3), np.uint64) if found is None else found


def read_still_one_object(table: Table, operation_ids: Iterable[int]) -> set[int]:
    """Which operations have left as one object what they were to part."""
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
    """Milliseconds: the log's cells of this attempt are not older than this, whatever the clock says."""
    identity: str = field(default_factory=new_identity)
    """The same for all attempts; see `read_identity`."""
    seen: list[bytes] = field(default_factory=list, repr=False)
    """The log's cell of the time as this attempt has seen or written it last: the log is written while it is that."""

    @classmethod
    def create(cls, table: Table, cells: Iterable[SetCell], options: dict[str, Any]) -> OperationRow:
        """A new operation id, and its rows with the cells of the request, and its options that have no cells."""
        operation_id = counters.new_operation_id(table)
        row = cls(table, operation_id, Ownership(table, operation_id))
        reach("create")
        own = [row.own.cell, REQUEST.set(options, FIXED_TIME), IDENTITY.set(row.identity, FIXED_TIME)]
        opened = RowMutation(row.own.key, own)
        created = [columns.ROOTS.set(np.zeros(0, np.uint64)), *cells]
        now = row._now()
        table.mutate([opened, row._log(OperationStatus.CREATED, created, now)])
        row.seen.append(columns.OPERATION_TIMESTAMP.encode(_datetime(now)))
        reach("created")
        return row

    @property
    def owner(self) -> str:
        """Token of this attempt at the operation: whoever takes it over has another."""
        return self.own.token

    def refuse(self, refusal: EditRefused) -> None:
        """The request cannot be met; nothing was written."""
        self._end(f"refused:{refusal.reason}: {refusal}")

    def fail(self, error: BaseException) -> None:
        """Something broke before anything was written."""
        self._end(f"failed:{getattr(error, 'kind', type(error).__name__)}: {error}")

    def _end(self, text: str) -> None:
        try:
            self.own.check()
            self.say_how_it_ended(text)
        except OwnershipLostError as lost:
            log.warning("%s", lost)  # whoever has it brings it to its end
        else:
            self.own.end()

    def say_how_it_ended(self, text: str) -> None:
        """Status EXCEPTION in the log, with a reason."""
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
        """Durable intent: scope and write set, then the log says so. Before the first indefinite lock."""
        own_cells = []
        if len(activated):
            own_cells.append(ACTIVATED.set(activated, FIXED_TIME))
        if supervoxels is not None:
            own_cells.append(SUPERVOXELS.set(supervoxels, FIXED_TIME))
        if still_one_object:
            own_cells.append(OUTCOME.set({"still_one_object": True}, FIXED_TIME))
        if scope.chunks:
            log = [*log, columns.CHUNK_LOCK_SCOPE.set(np.array(scope.chunks, np.uint64))]
        reach("scope")
        self.own.change([SCOPE.set(asdict(scope), FIXED_TIME), SetCell(WRITES, writes, FIXED_TIME)])
        reach("scope written")
        self._write_log(OperationStatus.WRITE_STARTED, log, scope.timestamp)
        if own_cells:
            own_cells.append(IDENTITY.set(self.identity, FIXED_TIME))
            self.table.mutate([RowMutation(own_key(self.operation_id), own_cells)])
        reach("write started")

    def succeed(self, roots: UInt64Array, timestamp: int) -> None:
        """All rows are there; OwnershipLostError if the operation belongs to somebody else."""
        self._write_log(OperationStatus.SUCCESS, [columns.ROOTS.set(roots)], timestamp)

    def clear_scope(self, *, chunks: bool) -> None:
        """The operation is done, and no lock is held any more.

        Parameters
        ----------
        chunks
            Whether chunks were locked, which the log says, too.
        """
        if chunks:
            self.table.mutate([self._without_chunks()])
            reach("log cleared")
        self.own.end()
        reach("cleared")

    def forget_plan(self) -> None:
        """Nothing of the plan was written, and no lock is held; how the operation ended is still to be said."""
        self.table.mutate([self._without_chunks(), without_plan(self.operation_id)])

    def _without_chunks(self) -> RowMutation:
        return RowMutation(keys.node_key(self.operation_id), [DeleteCells(columns.CHUNK_LOCK_SCOPE.key)])

    def _write_log(self, status: OperationStatus, changes: list[SetCell], timestamp: int) -> None:
        """Write to the log unless somebody else has done so meanwhile, who has the operation then."""
        row, column = self._log(status, changes, timestamp), columns.OPERATION_TIMESTAMP
        wanted = column.encode(_datetime(timestamp))
        while True:
            before = [CellMatch(column.key, self.seen[-1])] if self.seen else []
            if before and self.table.check_and_mutate(row.key, before, if_matched=row.changes):
                break
            if not before and not self.table.check_and_mutate(
                row.key, [CellMatch(column.key)], if_unmatched=row.changes
            ):
                break
            self.own.verify()
            cells = self.table.read_rows([row.key], [column.key], newest_only=True).get(row.key, {})
            self.seen[:] = [cell.value for cell in column.cells(cells)]
        self.seen[:] = [wanted]

    def _log(self, status: OperationStatus, changes: list[SetCell], timestamp: int) -> RowMutation:
        """Cells of the log, written now; ``timestamp`` is the logical time of the edit."""
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
