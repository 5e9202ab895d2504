"""Id counters in the table: new segments of chunks, new root ids, operation ids. Shared with PyChunkedGraph.

A counter cell holds the highest number handed out. The root chunk has 256 counters (shards), so that new roots spread
over the key space; number ``k`` of shard ``s`` is segment ``256 k + s``. No number is ever handed out twice.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence

import numpy as np

from sv_pipeline.errors import InputError
from sv_pipeline.helper_threads import Helpers
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import COUNTER
from sv_pipeline.table.interface import ColumnKey, Table

__all__ = [
    "ROOT_SHARDS",
    "last_operation_id",
    "max_segment",
    "new_operation",
    "new_operation_id",
    "node_ids",
    "reserve",
    "reserve_many",
    "segment_step",
]

ROOT_SHARDS = 256

_unsharded: weakref.WeakKeyDictionary[Table, dict[bytes, int]] = weakref.WeakKeyDictionary()
"""Counters without shards of root chunks, by key: they do not change any more once there are operations."""


def segment_step(layout: IdLayout, chunk_id: int) -> int:
    """Return the distance between the segments of one reservation: 1, or 256 in the root chunk."""
    return ROOT_SHARDS if _is_root(layout, chunk_id) else 1


def reserve(table: Table, layout: IdLayout, chunk_id: int, count: int, *, shard: int | None = None) -> int:
    """Reserve ``count`` new segments of a chunk with one atomic increment.

    Parameters
    ----------
    shard
        Which of the 256 counters to use in the root chunk; None chooses a random one.

    Returns
    -------
    int
        The first segment. The others follow in steps of :func:`segment_step` (see :func:`node_ids`).

    Raises
    ------
    InputError
        If the chunk does not have room for so many nodes.
    """
    return reserve_many(table, layout, [(chunk_id, count)], shard=shard)[0]


def reserve_many(
    table: Table, layout: IdLayout, wanted: Sequence[tuple[int, int]], *, shard: int | None = None
) -> list[int]:
    """Apply :func:`reserve` to several (chunk, count) in about the time of one; return the first segment of each."""
    _, ranges = _reserve(table, layout, wanted, shard, [], {})
    for (chunk_id, _), (_, last) in zip(wanted, ranges, strict=True):
        _check_room(layout, chunk_id, last)
    return [first for first, _ in ranges]


def new_operation(table: Table, layout: IdLayout, wanted: Sequence[tuple[int, int]]) -> tuple[int, list[int | None]]:
    """Reserve an operation id and, with the same request, segments of several (chunk, count).

    Returns
    -------
    tuple[int, list[int | None]]
        The operation id, and the first segment in each chunk; None where there is no room.
    """
    operation = [(keys.OPERATION_COUNTER, COUNTER.key, 1)]
    (operation_id,), ranges = _reserve(table, layout, wanted, None, operation, _unsharded.setdefault(table, {}))
    layers = layout.layers([chunk for chunk, _ in wanted]).tolist()
    return operation_id, [
        first if last <= layout.max_segment(layer) else None
        for layer, (first, last) in zip(layers, ranges, strict=True)
    ]


def _reserve(
    table: Table,
    layout: IdLayout,
    wanted: Sequence[tuple[int, int]],
    shard: int | None,
    others: list[tuple[bytes, ColumnKey, int]],
    unsharded: dict[bytes, int],
) -> tuple[list[int], list[tuple[int, int]]]:
    """Increment counters of chunks and others; return the numbers of the others, and first and last segments.

    ``unsharded`` holds the counters without shards of root chunks that are known; those that are read are added.
    """
    for _, count in wanted:
        if count < 1:
            raise ValueError(f"cannot reserve {count} ids")
    chosen = secrets.randbelow(ROOT_SHARDS) if shard is None else shard % ROOT_SHARDS
    roots = [keys.counter_key(chunk_id) for chunk_id, _ in wanted if _is_root(layout, chunk_id)]
    plain = [key for key in roots if key not in unsharded]
    row_keys = [
        keys.root_counter_key(chunk_id, chosen) if _is_root(layout, chunk_id) else keys.counter_key(chunk_id)
        for chunk_id, _ in wanted
    ]
    with Helpers() as pool:
        # PyChunkedGraph's single-threaded ingest takes ids from the counter without shards, which does not affect the
        # shards. That ingest is over before there are edits, so the order of the two requests does not matter.
        reading = pool.submit(table.read_rows, plain, [COUNTER.key], newest_only=True) if plain else None
        counted = [(key, COUNTER.key, count) for key, (_, count) in zip(row_keys, wanted, strict=True)]
        numbers = table.increment_many([*others, *counted])
    rows = reading.result() if reading is not None else {}
    unsharded.update((key, COUNTER.newest(rows.get(key)) or 0) for key in plain)
    ranges = []
    for (chunk_id, count), key, top in zip(wanted, row_keys, numbers[len(others) :], strict=True):
        first, last = top - count + 1, top
        if _is_root(layout, chunk_id):
            taken = unsharded[keys.counter_key(chunk_id)]
            behind = taken // ROOT_SHARDS + 1 - first
            number = top if behind <= 0 else table.increment(key, COUNTER.key, behind + count)
            first, last = ROOT_SHARDS * (number - count + 1) + chosen, ROOT_SHARDS * number + chosen
        ranges.append((first, last))
    return numbers[: len(others)], ranges


def node_ids(layout: IdLayout, chunk_id: int, first: int, count: int) -> UInt64Array:
    """Return the node ids of a reservation, shape (count,), sorted."""
    step = segment_step(layout, chunk_id)
    return layout.node_ids(chunk_id, np.arange(first, first + step * count, step, dtype=np.uint64))


def max_segment(table: Table, layout: IdLayout, chunk_id: int) -> int:
    """Return the highest segment handed out in a chunk; 0 if none."""
    plain = keys.counter_key(chunk_id)
    if not _is_root(layout, chunk_id):
        return COUNTER.newest(table.read_rows([plain], [COUNTER.key]).get(plain)) or 0
    shards = [keys.root_counter_key(chunk_id, shard) for shard in range(ROOT_SHARDS)]
    rows = table.read_rows([plain, *shards], [COUNTER.key])
    # PyChunkedGraph's single-threaded ingest takes root ids from the counter without shards.
    highest = COUNTER.newest(rows.get(plain)) or 0
    for shard, key in enumerate(shards):
        if number := COUNTER.newest(rows.get(key)):
            highest = max(highest, ROOT_SHARDS * number + shard)
    return highest


def new_operation_id(table: Table) -> int:
    """Return a new operation id; the first is 1."""
    return table.increment(keys.OPERATION_COUNTER, COUNTER.key, 1)


def last_operation_id(table: Table) -> int:
    """Return the operation id that was handed out last; 0 if none."""
    rows = table.read_rows([keys.OPERATION_COUNTER], [COUNTER.key])
    return COUNTER.newest(rows.get(keys.OPERATION_COUNTER)) or 0


def _is_root(layout: IdLayout, chunk_id: int) -> bool:
    return int(layout.layers(np.uint64(chunk_id))) == layout.n_layers


def _check_room(layout: IdLayout, chunk_id: int, segment: int) -> None:
    layer = int(layout.layers(np.uint64(chunk_id)))
    if segment > layout.max_segment(layer):
        coordinate = tuple(layout.coordinates(np.uint64(chunk_id)).tolist())
        raise InputError(
            f"chunk {coordinate} of layer {layer} (id {chunk_id}) has room for {layout.max_segment(layer):,} nodes, "
            f"but number {segment:,} was requested.",
            remedy="Ingest with a smaller CHUNK_SIZE, or fewer SPATIAL_BITS.",
        )
