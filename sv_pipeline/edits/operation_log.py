"""The rows of one operation: its entry in PyChunkedGraph's log, and our own row with what recovery needs. Writes them.

Own data never goes into the log's row, which PyChunkedGraph reads whole::

    %020d                    the log: request, status, roots, time
    sv_pipeline:op:%020d     1:scope      what is locked and made: roots, new roots, chunks, generation, time
                             1:writes     every cell that the edit writes: {time, {column: [row keys]}}, zstd
                             1:activated  all edges that a merge made active; stays, so that it can be undone
                         1:supervoxels  (old, new, side) of supervoxels that it replaced; stays, for the same reason

| status | means |
| --- | --- |
| CREATED | begun; nothing is written yet |
| EXCEPTION | ended, nothing written; ``operation_exception`` begins with ``refused:<reason>:`` or ``failed:<kind>:`` |
| WRITE_STARTED | scope, locks and rows are being written, or were when the process died |
| SUCCESS | done |
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import zstandard

from sv_pipeline.edits.refusal import EditRefused
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.lineage import OperationStatus
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import codecs, columns, counters, keys
from sv_pipeline.table.columns import ArrayColumn, Column
from sv_pipeline.table.interface import ColumnKey, DeleteCells, RowMutation, SetCell, Table

__all__ = [
    "OperationRow",
    "Scope",
    "own_key",
    "read_activated",
    "read_scope",
    "read_supervoxels",
    "read_write_set",
    "write_set",
]

SCOPE: Column[Any] = Column(ColumnKey("1", b"scope"), codecs.JsonCodec())
WRITES = ColumnKey("1", b"writes")
ACTIVATED: ArrayColumn[np.uint64] = ArrayColumn(ColumnKey("1", b"activated"), codecs.ArrayCodec("<u8", 2, True))
SUPERVOXELS: ArrayColumn[np.uint64] = ArrayColumn(ColumnKey("1", b"supervoxels"), codecs.ArrayCodec("<u8", 3, True))
MAX_WRITE_SET_BYTES = 1 << 30


def own_key(operation_id: int) -> bytes:
    """Key of our own row of an operation."""
    return b"sv_pipeline:op:%020d" % operation_id


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


def write_set(mutations: Iterable[RowMutation], timestamp: int) -> bytes:
    """Row keys by column of all cells that mutations put at a time, compressed."""
    cells: dict[str, list[str]] = defaultdict(list)
    for mutation in mutations:
        for change in mutation.changes:
            if isinstance(change, SetCell) and change.timestamp == timestamp:
                cells[f"{change.column.family}:{change.column.qualifier.decode()}"].append(mutation.key.decode())
    text = json.dumps({"timestamp": timestamp, "cells": cells}, separators=(",", ":"))
    return zstandard.ZstdCompressor(3).compress(text.encode())


def read_write_set(table: Table, operation_id: int) -> tuple[int, dict[ColumnKey, list[bytes]]]:
    """Time and row keys by column of the cells of an unfinished operation; (0, {}) if it has not begun to write."""
    row = table.read_rows([own_key(operation_id)], [WRITES], newest_only=True).get(own_key(operation_id))
    if not row:
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


def read_scope(table: Table, operation_id: int) -> Scope | None:
    """What an unfinished operation holds; None if nothing."""
    value = SCOPE.newest(table.read_rows([own_key(operation_id)], [SCOPE.key]).get(own_key(operation_id)))
    if value is None:
        return None
    try:
        return Scope(
            int(value["timestamp"]),
            tuple(value["roots"]),
            tuple(value["new_roots"]),
            tuple(value["chunks"]),
            value["generation"],
        )
    except (KeyError, TypeError) as error:
        raise CorruptionError(f"the scope of operation {operation_id} cannot be read: {value!r}.") from error


def read_activated(table: Table, operation_id: int) -> UInt64Array | None:
    """All edges that a merge made active, shape (n, 2); None if other software made it."""
    row = table.read_rows([own_key(operation_id)], [ACTIVATED.key], newest_only=True).get(own_key(operation_id))
    return ACTIVATED.newest(row)


def read_supervoxels(table: Table, operation_id: int) -> UInt64Array:
    """Supervoxels that an operation replaced: (old, new, side), shape (n, 3); none if it replaced none."""
    key = own_key(operation_id)
    found = SUPERVOXELS.newest(table.read_rows([key], [SUPERVOXELS.key], newest_only=True).get(key))
    return np.zeros((0, 3), np.uint64) if found is None else found


@dataclass(frozen=True, eq=False)
class OperationRow:
    """The row of one operation, while it runs."""

    table: Table
    operation_id: int
    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    """Token of this attempt at the operation: whoever takes it over has another."""

    @classmethod
    def create(cls, table: Table, cells: Iterable[SetCell]) -> OperationRow:
        """A new operation id, and its row with the cells of the request."""
        row = cls(table, counters.new_operation_id(table))
        now = time.time_ns() // 1_000_000
        row._write(OperationStatus.CREATED, [columns.ROOTS.set(np.zeros(0, np.uint64)), *cells], now)
        return row

    def refuse(self, refusal: EditRefused) -> None:
        """The request cannot be met; nothing was written."""
        self._end(f"refused:{refusal.reason}: {refusal}")

    def fail(self, error: BaseException) -> None:
        """Something broke before anything was written."""
        self._end(f"failed:{getattr(error, 'kind', type(error).__name__)}: {error}")

    def _end(self, text: str) -> None:
        now = time.time_ns() // 1_000_000
        self._write(OperationStatus.EXCEPTION, [columns.OPERATION_EXCEPTION.set(text, now)], now)

    def start_writing(
        self,
        scope: Scope,
        writes: bytes,
        log: list[SetCell],
        activated: UInt64Array,
        supervoxels: UInt64Array | None = None,
    ) -> None:
        """Durable intent: scope and write set, then the log says so. Before the first indefinite lock."""
        value = {
            "timestamp": scope.timestamp,
            "roots": list(scope.roots),
            "new_roots": list(scope.new_roots),
            "chunks": list(scope.chunks),
            "generation": scope.generation,
        }
        own_cells = [SCOPE.set(value), SetCell(WRITES, writes)]
        if len(activated):
            own_cells.append(ACTIVATED.set(activated))
        if supervoxels is not None:
            own_cells.append(SUPERVOXELS.set(supervoxels))
        own = RowMutation(own_key(self.operation_id), own_cells)
        if scope.chunks:
            log = [*log, columns.CHUNK_LOCK_SCOPE.set(np.array(scope.chunks, np.uint64), scope.timestamp)]
        changes = [
            columns.OPERATION_STATUS.set(int(OperationStatus.WRITE_STARTED)),
            columns.OPERATION_TIMESTAMP.set(_datetime(scope.timestamp)),
            *log,
        ]
        self.table.mutate([own, RowMutation(keys.node_key(self.operation_id), changes)])

    def succeed(self, roots: UInt64Array, timestamp: int) -> None:
        """All rows are there."""
        self._write(OperationStatus.SUCCESS, [columns.ROOTS.set(roots)], timestamp, at_now=True)

    def clear_scope(self, *, done: bool) -> None:
        """No lock is held any more; what the edit was is kept if it is done."""
        log = RowMutation(keys.node_key(self.operation_id), [DeleteCells(columns.CHUNK_LOCK_SCOPE.key)])
        own = [DeleteCells(SCOPE.key), DeleteCells(WRITES)] if done else [DeleteCells()]
        self.table.mutate([RowMutation(own_key(self.operation_id), own), log])

    def _write(self, status: OperationStatus, changes: list[SetCell], timestamp: int, *, at_now: bool = False) -> None:
        cell_time = None if at_now else timestamp
        changes = [
            *changes,
            columns.OPERATION_STATUS.set(int(status), cell_time),
            columns.OPERATION_TIMESTAMP.set(_datetime(timestamp), cell_time),
        ]
        self.table.mutate([RowMutation(keys.node_key(self.operation_id), changes)])


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
