"""Checks of the rows beside the nodes in a graph's table: meta, counters, ingest rows, operation log and locks."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import ConfigError, CorruptionError, SvPipelineError
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import LAYER_BITS, IdLayout, UInt64Array
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import VolumeInfo
from sv_pipeline.table import columns, keys, meta
from sv_pipeline.table.counters import ROOT_SHARDS
from sv_pipeline.table.interface import RowKeyRange, RowView, Table
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import hierarchy_columns

__all__ = ["check_meta", "check_operations", "check_progress", "read_counters"]

MAJOR_VERSION = "3"
SUCCESS, CREATED, WRITE_STARTED = 0, 1, 3
ROWS_AT_A_TIME = 10_000
UNFINISHED = {CREATED, WRITE_STARTED}
"""Statuses of operations that may still hold locks."""


# -- meta ---------------------------------------------------------------------------------------------------------


def check_meta(outcome: Outcome, table: Table, stored: meta.TableMeta, volume: VolumeInfo, watershed_url: str) -> None:
    """Check that the meta and version rows can be read, have the version of this layout, and fit the watershed."""
    outcome.checked = 2
    for found in table.damage():
        outcome.error("the table's file is damaged: restore it from a copy, or ingest the graph again.", found)
    version = meta.read_version(table)
    if version is None:
        outcome.warning("the table has no version: write the row `version`.", keys.VERSION.decode())
    elif version.split(".")[0] != MAJOR_VERSION:
        outcome.error(
            f"the table has version {version}, not {MAJOR_VERSION}.x: migrate it with PyChunkedGraph first.",
            keys.VERSION.decode(),
        )
    place = keys.META.decode()
    graph = stored.graph_config
    if graph.FANOUT != 2 or graph.LAYER_ID_BITS != LAYER_BITS:
        outcome.error(
            f"FANOUT {graph.FANOUT} and LAYER_ID_BITS {graph.LAYER_ID_BITS} are not 2 and {LAYER_BITS}, "
            "the only values that can be read.",
            place,
        )
    try:
        IdLayout(ChunkGrid(volume.bounds, stored.chunk_size).n_layers, graph.SPATIAL_BITS)
    except ConfigError as error:
        outcome.error(f"CHUNK_SIZE and SPATIAL_BITS do not fit the watershed: {error}", place)
    if volume.data_type != "uint64":
        outcome.error(f"the watershed volume has data type {volume.data_type}; node ids need uint64.", watershed_url)
    known = stored.data_source.WATERSHED
    if not known or kv.as_url(known) != kv.as_url(watershed_url):
        outcome.warning(
            f"the meta names the watershed {known!r}, not {watershed_url!r}: check that this is the same volume.", place
        )


def read_counters(
    table: Table, layout: IdLayout, ranges: Sequence[RowKeyRange]
) -> tuple[dict[int, int], npt.NDArray[np.int64]]:
    """Read id counters in sorted ranges of keys: one for each chunk id, and the root chunk's shards, shape (256,)."""
    plain: dict[int, int] = {}
    shards = np.zeros(ROOT_SHARDS, np.int64)
    for key, row in table.scan(ranges, [columns.COUNTER.key], newest_only=True):
        chunk, _, shard = key[1:].partition(b"_")
        value = columns.COUNTER.newest(row) or 0
        if not chunk.isdigit():
            continue  # the counter of operations
        if shard.isdigit() and int(shard) < ROOT_SHARDS and int(chunk) >> (64 - LAYER_BITS) == layout.n_layers:
            shards[int(shard)] = value
        elif not shard:
            plain[int(chunk)] = value
    return plain, shards


# -- ingest rows --------------------------------------------------------------------------------------------------


def check_progress(outcome: Outcome, table: Table, layout: IdLayout, grid: ChunkGrid) -> None:
    """Check that every chunk of every layer has its done-marker, and that no chunk outside the grid has one."""
    wanted = [columns.INGEST_RESERVATION.key, columns.INGEST_DONE.key, columns.INGEST_FAILED.key]
    by_state: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, row in table.scan([keys.ingest_range()], wanted, newest_only=True):
        layer, chunk = keys.split_ingest_key(key)
        by_state[layer][_state(row)].append(chunk)
    if not by_state:
        outcome.skipped = "the table has no ingest rows: other software built it"
        return
    for layer in sorted({*by_state, *range(2, layout.n_layers + 1)}):
        inside = 2 <= layer <= layout.n_layers
        expected = layout.chunk_ids(layer, grid.coordinates(layer)) if inside else np.empty(0, np.uint64)
        outcome.checked += len(expected)
        state = {name: np.array(chunks, np.uint64) for name, chunks in by_state[layer].items()}
        begun = np.concatenate([np.empty(0, np.uint64), *state.values()])
        _report_chunks(outcome, layout, layer, np.setdiff1d(begun, expected), _OUTSIDE)
        _report_chunks(outcome, layout, layer, np.setdiff1d(expected, begun), _NOT_BEGUN)
        for name, message in (("failed", _FAILED), ("begun", _INTERRUPTED)):
            some = state.get(name, np.empty(0, np.uint64))
            _report_chunks(outcome, layout, layer, np.intersect1d(some, expected), message)


_OUTSIDE = "there is an ingest row of a chunk outside the grid: delete it."
_NOT_BEGUN = "a chunk has no done-marker: ingest its layer."
_FAILED = "the ingest of a chunk failed: see its error with `sv-pipeline status`, then ingest again."
_INTERRUPTED = "a chunk has reserved ids, but no done-marker: its ingest was interrupted; repeat it."


def _state(row: RowView) -> str:
    if columns.INGEST_DONE.key in row:
        return "done"
    return "failed" if columns.INGEST_FAILED.key in row else "begun"


def _report_chunks(outcome: Outcome, layout: IdLayout, layer: int, chunks: UInt64Array, message: str) -> None:
    if len(chunks):
        coordinate = ",".join(str(c) for c in layout.coordinates(chunks[0]).tolist())
        outcome.error(message, f"layer {layer} chunk {coordinate} (id {int(chunks[0])})", len(chunks))


# -- operations and locks -----------------------------------------------------------------------------------------


def check_operations(outcome: Outcome, table: Table) -> None:
    """Check that every lock belongs to an unfinished operation, and that every successful operation names its roots."""
    _check_log(outcome, table)
    everything = RowKeyRange(b"\x00", b"\xff" * 32)
    locks = [columns.LOCK.key, columns.INDEFINITE_LOCK.key]
    held = table.scan([everything], locks, newest_only=True)
    while some := list(itertools.islice(held, ROWS_AT_A_TIME)):
        _check_locks(outcome, table, some)


def _check_log(outcome: Outcome, table: Table) -> None:
    """Check the operation log, a few rows at a time."""
    wanted = [columns.OPERATION_STATUS.key, columns.ROOTS.key]
    rows, last = table.scan([keys.operation_range()], wanted, newest_only=True), 0
    while some := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        named: list[tuple[int, UInt64Array]] = []
        for key, row in some:
            if len(key) != keys.DIGITS or not key.isdigit():
                continue
            outcome.checked += 1
            place = f"operation {int(key)}"
            try:
                status = columns.OPERATION_STATUS.newest(row)
                roots = columns.ROOTS.newest(row)
            except CorruptionError as error:
                outcome.error(f"its row cannot be read: {error.message}", place)
                continue
            last = max(last, int(key))
            if status != SUCCESS:
                continue
            if roots is None or not len(roots):
                outcome.error("a successful operation has no `roots`, so that lineage ends here: recover it.", place)
            else:
                named.append((int(key), np.asarray(roots, np.uint64)))
        _check_roots(outcome, table, named)
    _check_operation_counter(outcome, table, last)


def _check_roots(outcome: Outcome, table: Table, named: list[tuple[int, UInt64Array]]) -> None:
    """Check that the roots of successful operations have rows."""
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *(roots for _, roots in named)]))
    found = table.read_rows(keys.node_keys(wanted), hierarchy_columns(), newest_only=True)
    known = np.array([int(key) for key in found], np.uint64)
    for operation, roots in named:
        if not np.isin(roots, known).all():
            place = f"operation {operation}"
            outcome.error("a successful operation names a root that has no row: recover it.", place)


def _check_operation_counter(outcome: Outcome, table: Table, last: int) -> None:
    row = table.read_rows([keys.OPERATION_COUNTER], [columns.COUNTER.key]).get(keys.OPERATION_COUNTER)
    counter = columns.COUNTER.newest(row) or 0
    if last and counter < last:
        outcome.error(
            f"the counter of operations is at {counter}, behind this operation, so that its id could be given out "
            "again: raise the counter.",
            f"operation {last}",
        )


def _check_locks(outcome: Outcome, table: Table, rows: list[tuple[bytes, RowView]]) -> None:
    held: list[tuple[str, bool, int]] = []
    for key, row in rows:
        place = f"row {key.decode()}" if key.isdigit() else f"row {key!r}"
        for column, is_fault in ((columns.INDEFINITE_LOCK, True), (columns.LOCK, False)):
            try:
                operation = column.newest(row)
            except SvPipelineError as error:
                outcome.error(f"a lock cell cannot be read: {error}", place)
                continue
            if operation is not None:
                held.append((place, is_fault, operation))
    unfinished = _unfinished(table, {operation for _, _, operation in held})
    for place, is_fault, operation in held:
        if operation in unfinished:
            continue
        outcome.checked += 1
        if is_fault:
            outcome.error(
                "an indefinite lock of an operation that is finished or unknown blocks this row for ever: "
                f"release it (`indefinite_lock`, operation {operation}).",
                place,
            )
        else:
            outcome.warning("a lock of a finished operation was not released; it expires by itself.", place)


def _unfinished(table: Table, operations: set[int]) -> set[int]:
    """Return those of some operations that may still hold locks."""
    numbers = keys.node_keys(np.array(sorted(operations), np.uint64))
    wanted = [columns.OPERATION_STATUS.key, columns.ROOTS.key]
    found = set()
    for key, row in table.read_rows(numbers, wanted, newest_only=True).items():
        with contextlib.suppress(CorruptionError):  # the check of the log names an operation that cannot be read
            columns.ROOTS.newest(row)
            if columns.OPERATION_STATUS.newest(row) in UNFINISHED:
                found.add(int(key))
    return found
