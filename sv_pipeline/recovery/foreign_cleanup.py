"""What an operation of other software left half done, and taking it back.

Its rows are found by `operations.footprint`, and those of supervoxels that it replaced by `foreign_supervoxels`, in the
chunks that its log names as locked. Voxels come from a read pinned to the moment before it.

| # | step | a crash right after it leaves |
| --- | --- | --- |
| 1 | new roots are locked, and it is looked whether anybody has edited them | locks more |
| 2 | cells in rows that were there before | new rows that nothing points to |
| 3 | rows of new nodes | new supervoxels |
| 4 | rows of new supervoxels, and what names them | nothing |

After each of them, the next recovery finds what is left in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.footprint import Footprint
from sv_pipeline.operations.other_software import footprint_of
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.operations.writing import Scope
from sv_pipeline.recovery.foreign_supervoxels import supervoxel_changes
from sv_pipeline.recovery.missing_locks import lock_free_rows
from sv_pipeline.table import columns
from sv_pipeline.table.interface import RowMutation

__all__ = ["Remains", "changed_boxes", "pin_of", "read_remains", "restore_rows", "restore_voxels"]


@dataclass(frozen=True)
class Remains:
    """What an operation has left."""

    boxes: list[Box] = field(default_factory=list)
    """Storage chunks whose voxels are not those of the moment before it."""
    supervoxels: list[RowMutation] = field(default_factory=list)
    """What takes new supervoxels out."""
    footprint: Footprint = field(default_factory=Footprint)

    @property
    def cells(self) -> int:
        """Number of cells that are to be changed or removed, a row that goes counted as one."""
        return self.footprint.cells + sum(len(mutation.changes) for mutation in self.supervoxels)


def read_remains(graph: ChunkedGraph, found: Unfinished) -> Remains:
    """Look for all that an operation has left."""
    assert found.scope is not None
    assert found.operation is not None
    boxes, supervoxels = [], []
    if found.scope.chunks and graph.fork.exists():
        boxes = changed_boxes(graph, found.scope)
        before = partial(_supervoxels_before, graph, found.scope)
        supervoxels = supervoxel_changes(graph, found.operation_id, found.scope, before)
    return Remains(boxes, supervoxels, footprint_of(graph, found.operation, found.objects))


# -- voxels -----------------------------------------------------------------------------------------------------------


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


def _supervoxels_before(graph: ChunkedGraph, scope: Scope, supervoxels: UInt64Array) -> UInt64Array:
    """Supervoxels that had voxels before the operation, in the chunks of some supervoxels."""
    then, bounds = graph.fork.open(version=pin_of(scope)), graph.fork.base.info().volume.bounds
    found = [np.zeros(0, np.uint64)]
    for coordinate in np.unique(graph.layout.coordinates(supervoxels), axis=0):
        box = graph.grid.box(2, coordinate).clip(bounds)
        found.append(np.unique(np.asarray(then[box.slices].read().result(), np.uint64)))
    return np.unique(np.concatenate(found))


def restore_voxels(graph: ChunkedGraph, operation_id: int, scope: Scope, owner: str) -> list[Box]:
    """Put the voxels of the scope back as they were before the operation; the boxes that differed."""
    boxes = changed_boxes(graph, scope)
    if boxes:
        graph.fork.restore(operation_id, owner=owner, boxes=boxes, generation=pin_of(scope))
    return boxes


# -- rows -------------------------------------------------------------------------------------------------------------


def restore_rows(graph: ChunkedGraph, found: Unfinished) -> int:
    """Take the operation's cells out; how many.

    Raises
    ------
    ConflictError
        If somebody is editing a root that it has made; nothing was changed.
    RecoveryStoppedError
        If somebody has edited one; nothing was changed.
    """
    assert found.scope is not None
    assert found.operation is not None
    table, remains = graph.table, read_remains(graph, found)
    if made := [m.key for m in remains.footprint.made if graph.layout.layers(int(m.key)) == graph.n_layers]:
        _lock_new_roots(graph, found, made)
        remains = read_remains(graph, found)
    if remains.footprint.edited_since:
        raise edited_since(found, remains.footprint)
    reach("switch back")
    for piece in pieces("half switched back", list(remains.footprint.switched)):
        table.mutate(piece)
    reach("switched back")
    table.mutate(remains.footprint.made)
    reach("nodes removed")
    table.mutate(remains.supervoxels)
    reach("rows removed")
    return remains.cells


def edited_since(found: Unfinished, footprint: Footprint) -> RecoveryStoppedError:
    """The error about an operation on whose half-written nodes somebody has built."""
    return RecoveryStoppedError(
        f"operation {found.operation_id} cannot be rolled back: {footprint.edited_since}. Nothing was changed.",
        remedy="Undo the later edit first. If it cannot be undone, restore table and fork from backups of one day.",
    )


def _lock_new_roots(graph: ChunkedGraph, found: Unfinished, row_keys: list[bytes]) -> None:
    """Other software does not lock the roots that it makes: anybody may be about to edit one."""
    rows = graph.table.read_rows(row_keys, [columns.INDEFINITE_LOCK.key], newest_only=True)
    free = [key for key in row_keys if columns.INDEFINITE_LOCK.newest(rows.get(key)) != found.operation_id]
    got = lock_free_rows(graph, found.operation_id, free)
    if not all(got):
        root = int(next(key for key, ok in zip(free, got, strict=True) if not ok))
        raise ConflictError(
            f"operation {found.operation_id} cannot be rolled back now: root {root}, which it has made, is being "
            "edited. Nothing was changed.",
            repeat="Try again in a minute.",
        )
