"""Rolls back an operation that other software left half done.

Its rows are found by `operations.footprint`. Rows of supervoxels that it replaced are found by `foreign_supervoxels` in
the chunks that its log row names as locked. Voxels are restored from the state just before the operation.

| # | step | state after a crash |
| --- | --- | --- |
| 1 | lock the new roots, and check that nobody has edited them | as before, with more locks |
| 2 | restore cells in rows that existed before the operation | new rows that nothing points to |
| 3 | remove the rows of new nodes | new supervoxels |
| 4 | remove the rows of new supervoxels, and the cells that name them | nothing |

After a crash at any step, the next recovery finds the rest in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
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

__all__ = ["Remains", "changed_boxes", "pin_of", "read_remains", "replaced_at_points", "restore_rows", "restore_voxels"]


@dataclass(frozen=True)
class Remains:
    """Everything that an operation has left in table and fork."""

    boxes: list[Box] = field(default_factory=list)
    """Boxes of the storage chunks whose voxels differ from those just before the operation."""
    supervoxels: list[RowMutation] = field(default_factory=list)
    """Mutations that remove its new supervoxels."""
    footprint: Footprint = field(default_factory=Footprint)
    """Its cells in the rows of nodes."""

    @property
    def cells(self) -> int:
        """Number of cells that have to be changed or removed; a row that is removed counts as one."""
        return self.footprint.cells + sum(len(mutation.changes) for mutation in self.supervoxels)


def read_remains(graph: ChunkedGraph, found: Unfinished) -> Remains:
    """Search for everything that an operation has left."""
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
    """Return the moment just before the operation, as a version for reading the fork."""
    at = datetime.fromtimestamp((scope.timestamp - 1) / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def changed_boxes(graph: ChunkedGraph, scope: Scope) -> list[Box]:
    """Return the boxes of the storage chunks in the scope whose voxels differ from those just before the operation."""
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


def replaced_at_points(graph: ChunkedGraph, found: Unfinished) -> list[int]:
    """Return supervoxels at the points of a split without chunks whose voxels have changed since just before it.

    Its objects are locked, so nobody else has changed the voxels of their supervoxels. A split of a supervoxel changes
    all of its ids, so it is enough to look at the points between which it was split, and in their chunks.
    """
    scope, operation = found.scope, found.operation
    if scope is None or operation is None or scope.chunks or not scope.roots or not graph.fork.exists():
        return []
    sides = (columns.SOURCE_COORDINATES.newest(operation.row), columns.SINK_COORDINATES.newest(operation.row))
    if operation.kind != "split" or any(side is None for side in sides):
        return []
    bounds = graph.fork.base.info().volume.bounds
    points = np.concatenate([side.reshape(-1, 3) for side in sides if side is not None])
    points = points[((points >= bounds.start) & (points < bounds.stop)).all(axis=1)]
    now, then = graph.fork.open(), graph.fork.open(version=pin_of(scope))
    changed = [np.zeros(0, np.uint64)]
    for coordinate in np.unique(graph.grid.chunk_of(points), axis=0):
        box = graph.grid.box(2, coordinate).clip(bounds)
        pair = now[box.slices].read(), then[box.slices].read()
        before = np.asarray(pair[1].result(), np.uint64)
        changed.append(np.unique(before[before != pair[0].result()]))
    supervoxels = np.unique(np.concatenate(changed))
    supervoxels = supervoxels[supervoxels > 0]
    its = np.isin(
        roots(graph, supervoxels, at=scope.timestamp - 1, missing_ok=True), np.array(found.objects, np.uint64)
    )
    return [int(i) for i in supervoxels[its]]


def _supervoxels_before(graph: ChunkedGraph, scope: Scope, supervoxels: UInt64Array) -> UInt64Array:
    """Return the supervoxels that had voxels before the operation, in the chunks of the given supervoxels."""
    then, bounds = graph.fork.open(version=pin_of(scope)), graph.fork.base.info().volume.bounds
    found = [np.zeros(0, np.uint64)]
    for coordinate in np.unique(graph.layout.coordinates(supervoxels), axis=0):
        box = graph.grid.box(2, coordinate).clip(bounds)
        found.append(np.unique(np.asarray(then[box.slices].read().result(), np.uint64)))
    return np.unique(np.concatenate(found))


def restore_voxels(graph: ChunkedGraph, operation_id: int, scope: Scope, owner: str) -> list[Box]:
    """Restore the voxels of the scope as they were before the operation; return the boxes that differed."""
    boxes = changed_boxes(graph, scope)
    if boxes:
        graph.fork.restore(operation_id, owner=owner, boxes=boxes, generation=pin_of(scope))
    return boxes


# -- rows -------------------------------------------------------------------------------------------------------------


def restore_rows(graph: ChunkedGraph, found: Unfinished) -> int:
    """Remove the operation's cells; return how many there were.

    Raises
    ------
    ConflictError
        If another operation is editing a root that this one has made; nothing was changed.
    RecoveryStoppedError
        If another operation has edited such a root; nothing was changed.
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
    """Return the error for an operation whose half-written nodes a later edit uses."""
    return RecoveryStoppedError(
        f"operation {found.operation_id} cannot be rolled back: {footprint.edited_since}. Nothing was changed.",
        remedy="Undo the later edit first. If it cannot be undone, restore table and fork from backups of one day.",
    )


def _lock_new_roots(graph: ChunkedGraph, found: Unfinished, row_keys: list[bytes]) -> None:
    """Lock the roots that the operation has made: other software leaves them unlocked, so anyone could edit them."""
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
