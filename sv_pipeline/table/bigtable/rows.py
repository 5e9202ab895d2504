"""Bigtable's messages: builds requests from keys, filters and mutations, and rows from replies. Sends nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from sv_pipeline.table.bigtable.protocol import Entry, Mutation, ReadRowsRequest, RowFilter, RowRange
from sv_pipeline.table.interface import (
    AGING_FAMILY,
    MAX_AGE_MS,
    NEWEST_FAMILY,
    Cell,
    CellFilter,
    CellMatch,
    Change,
    ColumnKey,
    RowKeyRange,
    RowMutation,
    RowView,
    SetCell,
)

__all__ = [
    "entry_batches",
    "match_filter",
    "mutation",
    "read_filter",
    "read_requests",
    "remaining",
    "rows_of",
]

KEYS_PER_REQUEST = 10_000
KEY_BYTES_PER_REQUEST = 400_000  # Bigtable refuses read requests above half a megabyte
RANGES_PER_REQUEST = 2_000
ROWS_PER_REQUEST = 1_000
MUTATIONS_PER_REQUEST = 50_000  # the limit is 100,000
BYTES_PER_REQUEST = 16_000_000


# -- filters ----------------------------------------------------------------------------------------------------------


def read_filter(wanted: CellFilter) -> Any:
    """Return the filter of a read; None if everything is read. The limit comes last: the newest cell that matches."""
    columns, until, newest_only, since = wanted
    return _read_filter(None if columns is None else tuple(columns), until, newest_only, since)


@lru_cache(64)
def _read_filter(columns: tuple[ColumnKey, ...] | None, until: int | None, newest_only: bool, since: int | None) -> Any:
    """Return the filter, which is not to be changed: an edit reads the same columns of nodes again and again."""
    steps = []
    if columns is not None:
        steps.append(_any([_column(column) for column in dict.fromkeys(columns)]))
    if since is not None or until is not None:
        # A bound of 0 microseconds means that there is none.
        start, stop = 0 if since is None else since * 1000, 0 if until is None else (until + 1) * 1000
        times = {"start_timestamp_micros": start, "end_timestamp_micros": stop}
        steps.append(RowFilter(timestamp_range_filter=times))
    if newest_only:
        steps.append(RowFilter(cells_per_column_limit_filter=1))
    return _all(steps)


@lru_cache(64)
def match_filter(any_of: tuple[CellMatch, ...], none_of: tuple[CellMatch, ...] = ()) -> Any:
    """Return a filter that passes a cell if one of ``any_of`` matches and none of ``none_of``; do not change it.

    The locks of many rows have the same condition.
    """
    allowed = _any([_match(match) for match in any_of])
    if not none_of:
        return allowed
    refused = _any([_match(match) for match in none_of])
    nothing = RowFilter(block_all_filter=True)
    return RowFilter(condition={"predicate_filter": refused, "true_filter": nothing, "false_filter": allowed})


def _match(match: CellMatch) -> Any:
    # The limit precedes time and value, because only the newest cell may match; otherwise an outdated lock would match.
    steps = [_column(match.column), RowFilter(cells_per_column_limit_filter=1)]
    if match.since is not None:
        steps.append(RowFilter(timestamp_range_filter={"start_timestamp_micros": match.since * 1000}))
    if match.value is not None:
        value_range = {"start_value_closed": match.value, "end_value_closed": match.value}
        steps.append(RowFilter(value_range_filter=value_range))
    return _all(steps)


def _column(column: ColumnKey) -> Any:
    # The range contains one column. The alternative is a regular expression, in which qualifiers must be escaped.
    return RowFilter(
        column_range_filter={
            "family_name": column.family,
            "start_qualifier_closed": column.qualifier,
            "end_qualifier_closed": column.qualifier,
        }
    )


def _all(steps: list[Any]) -> Any:
    if len(steps) < 2:
        return steps[0] if steps else None
    return RowFilter(chain={"filters": steps})


def _any(choices: list[Any]) -> Any:
    return choices[0] if len(choices) == 1 else RowFilter(interleave={"filters": choices})


# -- reads ------------------------------------------------------------------------------------------------------------


def read_requests(
    table_path: str, keys: Sequence[bytes], ranges: Sequence[RowKeyRange], row_filter: Any
) -> Iterator[Any]:
    """Yield requests for sorted keys and disjoint sorted ranges, each of a size that Bigtable accepts."""
    for batch in _key_batches(keys):
        yield ReadRowsRequest(table_name=table_path, rows={"row_keys": batch}, filter=row_filter)
    for first in range(0, len(ranges), RANGES_PER_REQUEST):
        batch_ranges = [
            RowRange(start_key_closed=start, end_key_open=stop)
            for start, stop in ranges[first : first + RANGES_PER_REQUEST]
        ]
        yield ReadRowsRequest(table_name=table_path, rows={"row_ranges": batch_ranges}, filter=row_filter)


def _key_batches(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for key in keys:
        if len(batch) == KEYS_PER_REQUEST or (batch and size + len(key) + 2 > KEY_BYTES_PER_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += len(key) + 2
    if batch:
        yield batch


def remaining(request: Any, last: bytes) -> Any:
    """Return the request for what a broken read has not returned after row ``last``; None if that is nothing."""
    keys = [key for key in request.rows.row_keys if key > last]
    ranges = []
    for one in request.rows.row_ranges:
        if one.end_key_open > last:
            start = (
                {"start_key_closed": one.start_key_closed} if one.start_key_closed > last else {"start_key_open": last}
            )
            if one.WhichOneof("start_key") == "start_key_open" and one.start_key_open > last:
                start = {"start_key_open": one.start_key_open}
            ranges.append(RowRange(**start, end_key_open=one.end_key_open))
    if not keys and not ranges:
        return None
    row_filter = request.filter if request.HasField("filter") else None
    return ReadRowsRequest(
        table_name=request.table_name, rows={"row_keys": keys, "row_ranges": ranges}, filter=row_filter
    )


def rows_of(responses: Iterable[Any]) -> Iterator[tuple[bytes, RowView]]:
    """Yield rows from a ReadRows reply; an empty row tells how far a filtered scan has come.

    A reply is a stream of cell chunks. A new key begins a row. Family and qualifier are valid until the next ones are
    named. A value may arrive in several pieces, of which all but the last state the full size. The last chunk of a row
    commits it.
    """
    names: dict[tuple[str, bytes], ColumnKey] = {}
    oldest = now_ms() - MAX_AGE_MS
    key, row, family = b"", RowView(), ""
    cells: list[Cell] = []
    pieces: list[Any] = []
    for response in responses:
        for chunk in response.chunks:
            if chunk.reset_row:
                key, pieces = b"", []
                continue
            if chunk.row_key not in (b"", key):
                key, row = chunk.row_key, {}
            if chunk.HasField("family_name"):
                family = chunk.family_name.value
            if chunk.HasField("qualifier"):
                name = (family, chunk.qualifier.value)
                column = names.get(name) or names.setdefault(name, ColumnKey(*name))
                cells = row.setdefault(column, [])
            if not pieces and not chunk.value_size:
                cells.append(Cell(chunk.timestamp_micros // 1000, chunk.value))
            else:
                pieces.append(chunk)
                if not chunk.value_size:
                    cells.append(_joined(pieces))
                    pieces = []
            if chunk.commit_row and _without_garbage(row, oldest):
                yield key, row
        if response.last_scanned_row_key:
            yield response.last_scanned_row_key, {}


def _joined(pieces: list[Any]) -> Cell:
    """Join the pieces of a cell's value; only the first piece has the timestamp."""
    return Cell(pieces[0].timestamp_micros // 1000, b"".join(piece.value for piece in pieces))


def _without_garbage(row: RowView, oldest: int) -> RowView:
    """Remove cells from the row that Bigtable has not collected yet; return the same row."""
    for column in [c for c in row if c.family in (NEWEST_FAMILY, AGING_FAMILY)]:
        if column.family == NEWEST_FAMILY:
            del row[column][1:]
        else:
            row[column] = [cell for cell in row[column] if cell.timestamp >= oldest]
            if not row[column]:
                del row[column]
    return row


# -- writes -----------------------------------------------------------------------------------------------------------


def mutation(change: Change, now: int) -> Any:
    """Return the message of one change; ``now`` (ms) is the timestamp of cells that have none."""
    if isinstance(change, SetCell):
        return Mutation(
            set_cell={
                "family_name": change.column.family,
                "column_qualifier": change.column.qualifier,
                "timestamp_micros": 1000 * (now if change.timestamp is None else change.timestamp),
                "value": change.value,
            }
        )
    if change.column is None:
        return Mutation(delete_from_row={})
    cells: dict[str, Any] = {"family_name": change.column.family, "column_qualifier": change.column.qualifier}
    if change.timestamp is not None:
        start = 1000 * change.timestamp
        cells["time_range"] = {"start_timestamp_micros": start, "end_timestamp_micros": start + 1000}
    return Mutation(delete_from_column=cells)


def entry_batches(mutations: Iterable[RowMutation]) -> Iterator[list[Any]]:
    """Yield entries of MutateRows requests, each of a size that Bigtable accepts; rows without changes are left out."""
    batch: list[Any] = []
    changes = size = 0
    for row in mutations:
        if not row.changes:
            continue
        now = now_ms()
        entry = Entry(row_key=row.key, mutations=[mutation(change, now) for change in row.changes])
        entry_size = entry.ByteSize()
        if batch and (
            len(batch) == ROWS_PER_REQUEST
            or changes + len(row.changes) > MUTATIONS_PER_REQUEST
            or size + entry_size > BYTES_PER_REQUEST
        ):
            yield batch
            batch, changes, size = [], 0, 0
        batch.append(entry)
        changes += len(row.changes)
        size += entry_size
    if batch:
        yield batch


def now_ms() -> int:
    """Return the current time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
