"""Taking back what an operation of other software left half done, which says only when it was and in which chunks.

All its cells carry the time of the operation, so cells of that time are looked for in its chunks and above them. Two
things do not: new supervoxels, whose rows name the operation, have copies of older `parents`; and lists of `children`
were overwritten in place, with fragments for what was split. Voxels come from a read pinned to that time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.writing import Scope
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Change, DeleteCells, RowKeyRange, RowMutation, RowView

__all__ = ["changed_boxes", "pin_of", "restore_rows", "restore_voxels"]

_LEFT_ALONE = {columns.LOCK.key, columns.INDEFINITE_LOCK.key}


def pin_of(scope: Scope) -> str:
    """The time before the operation, for a pinned read."""
    at = datetime.fromtimestamp((scope.timestamp - 1) / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def changed_boxes(graph: ChunkedGraph, scope: Scope) -> list[Box]:
    """Storage chunks inside the scope whose voxels are not those of the pin."""
    now = graph.fork.open()
    then = graph.fork.open(version=pin_of(scope))
    volume = graph.fork.base.info().volume
    size, origin = np.asarray(volume.scales[0].chunk_size), np.asarray(volume.scales[0].voxel_offset)
    bounds = volume.bounds
    boxes = []
    for coordinate in graph.layout.coordinates(np.array(scope.chunks, np.uint64)):
        box = graph.grid.box(2, coordinate).clip(bounds)
        pair = now[box.slices].read(), then[box.slices].read()
        differing = np.argwhere(pair[0].result() != pair[1].result()) + box.start
        places = np.unique((differing - origin) // size, axis=0)
        boxes += [Box.of(origin + p * size, origin + (p + 1) * size).clip(bounds) for p in places]
    return sorted(set(boxes), key=lambda box: box.start)


def restore_voxels(graph: ChunkedGraph, operation_id: int, scope: Scope, owner: str) -> list[Box]:
    """Put the voxels of the scope back as they were before the operation; the boxes that differed."""
    boxes = changed_boxes(graph, scope)
    if boxes:
        graph.fork.restore(operation_id, owner=owner, boxes=boxes, generation=pin_of(scope))
    return boxes


def restore_rows(graph: ChunkedGraph, operation_id: int, scope: Scope) -> int:
    """Take the operation's cells out of its chunks and what is above them; how many."""
    rows = dict(graph.table.scan(_ranges(graph, scope)))
    made = np.array(
        [
            int(key)
            for key, row in rows.items()
            if key.isdigit()
            and columns.FORMER_IDS.key in row
            and operation_id in [i for _, i in columns.OPERATION_ID.history(row)]
        ],
        np.uint64,
    )
    old_of = {int(new): columns.FORMER_IDS.newest(rows[keys.node_key(int(new))]) for new in made}
    changes = {key: [*_changes(key, row, scope.timestamp, made, old_of)] for key, row in rows.items()}
    graph.table.mutate(RowMutation(key, some) for key, some in changes.items() if some)
    return sum(map(len, changes.values()))


def _ranges(graph: ChunkedGraph, scope: Scope) -> list[RowKeyRange]:
    layout, chunks = graph.layout, np.array(scope.chunks, np.uint64)
    coordinates = layout.coordinates(chunks)
    ranges = keys.chunk_ranges(layout, layout.chunk_ids(1, coordinates))
    for layer in range(2, graph.n_layers + 1):
        above = np.unique(coordinates // 2 ** (layer - 2), axis=0)
        ranges += keys.chunk_ranges(layout, layout.chunk_ids(layer, above))
    ranges += [RowKeyRange(key, key + b"\x00") for key in keys.edit_edge_keys(chunks)]
    return ranges


def _changes(
    key: bytes, row: RowView, timestamp: int, made: UInt64Array, old_of: dict[int, UInt64Array | None]
) -> Iterator[Change]:
    if key.isdigit() and int(key) in old_of:
        yield DeleteCells()
        return
    for column, cells in row.items():
        for cell in cells:
            if cell.timestamp == timestamp and column not in _LEFT_ALONE:
                yield DeleteCells(column, cell.timestamp)
            elif column == columns.CHILDREN.key and len(made):
                children = columns.CHILDREN.decode(cell.value)
                if np.isin(children, made).any():
                    yield columns.CHILDREN.set(_with_old(children, made, old_of), cell.timestamp)
            elif column == columns.NEW_IDS.key and np.isin(columns.NEW_IDS.decode(cell.value), made).all():
                yield DeleteCells(column, cell.timestamp)


def _with_old(children: UInt64Array, made: UInt64Array, old_of: dict[int, UInt64Array | None]) -> UInt64Array:
    kept = children[~np.isin(children, made)]
    old = [old_of[int(new)] for new in children[np.isin(children, made)]]
    return np.unique(np.concatenate([kept, *(one for one in old if one is not None)]))
