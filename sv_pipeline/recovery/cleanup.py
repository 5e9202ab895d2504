"""Rolls an operation back: restores the voxels of its chunks, then removes exactly the cells of its write set.

Voxels are restored from the generation on which the operation was planned; later changes elsewhere remain. Rows that
were switched over are switched back before the rows that they pointed to are removed. Each step can be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sv_pipeline.edits.write.cells import take_back_edges
from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.operations.unfinished import Phase
from sv_pipeline.operations.writing import WRITES, Scope, made_rows, without_plan
from sv_pipeline.recovery.assessment import State
from sv_pipeline.recovery.claiming import Claim
from sv_pipeline.recovery.foreign_cleanup import restore_rows, restore_voxels
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.columns import FAKE_EDGES
from sv_pipeline.table.interface import ColumnKey, DeleteCells, RowMutation, Table

__all__ = ["Cleanup", "clean_up", "release"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cleanup:
    """The result of a roll-back."""

    boxes: int = 0
    """Number of boxes whose voxels were restored."""
    voxels: int = 0
    """Number of voxels in these boxes."""
    generation: int | None = None
    """Generation of the fork from which they were restored."""
    cells: int = 0
    """Number of cells in the write set; those that were written have been removed."""

    @property
    def summary(self) -> dict[str, Any]:
        """A summary of the roll-back, for people."""
        return {"boxes put back": self.boxes, "voxels put back": self.voxels, "cells taken out": self.cells}


def clean_up(claim: Claim) -> Cleanup:
    """Roll back the earlier attempt. Its locks are kept, except those of an operation that has written nothing."""
    found, state = claim.found, claim.assessment.state
    assert found.scope is not None
    done = Cleanup()
    if state is State.HELD:
        done = _voxels(claim)
        done = _rows(claim, found.scope, done)
    elif state is State.UNWRITTEN:
        done = _new_rows(claim)
        release(claim)
    reach("clean")
    # Remove the earlier attempt's record for its undo: a replay that replaces no supervoxels would not overwrite it.
    claim.graph.table.mutate([without_plan(claim.operation_id)])
    claim.own.change([DeleteCells(WRITES)])
    claim.note(phase=Phase.CLEANED)
    reach("cleaned")
    return done


def release(claim: Claim) -> None:
    """Release all locks of the scope, temporal ones first: without these, no indefinite lock can be added."""
    scope, table, mine = claim.found.scope, claim.graph.table, claim.operation_id
    if scope is None:
        return
    reach("release")
    every = [*scope.lock_keys, *keys.node_keys(np.array(scope.new_roots, np.uint64))]
    locks.unlock_all(table, every, mine)
    reach("half released")
    locks.unlock_all(table, [], mine, indefinite=every)
    reach("all released")


def _voxels(claim: Claim) -> Cleanup:
    graph, record = claim.graph, claim.assessment.record
    if record is None:
        return _foreign_voxels(claim) if claim.found.foreign else Cleanup()
    claim.own.check()
    reach("restore")
    try:
        graph.fork.restore(claim.operation_id, owner=claim.own.token)
    except ConflictError:
        claim.own.verify()  # raises OwnershipLostError if another process has taken the operation over
        raise
    reach("restored")
    boxes = record.boxes
    return Cleanup(len(boxes), sum(box.volume for box in boxes), record.generation_before)


def _foreign_voxels(claim: Claim) -> Cleanup:
    scope = claim.found.scope
    if scope is None or not claim.graph.fork.exists():
        return Cleanup()
    claim.own.check()
    reach("restore")
    boxes = restore_voxels(claim.graph, claim.operation_id, scope, claim.own.token)
    reach("restored")
    return Cleanup(len(boxes), sum(box.volume for box in boxes))


def _rows(claim: Claim, scope: Scope, done: Cleanup) -> Cleanup:
    table = claim.graph.table
    timestamp, cells = claim.found.write_set
    if not cells:
        if claim.found.foreign:
            removed = restore_rows(claim.graph, claim.found)
            return Cleanup(done.boxes, done.voxels, done.generation, removed)
        return done
    made = made_rows(cells)
    fake = cells.pop(FAKE_EDGES.key, [])
    claim.own.check()
    reach("switch back")
    old = [(column, key) for column, found in cells.items() for key in found if key not in made]
    for piece in pieces("half switched back", old):
        _remove(table, piece, timestamp)
    _fake_edges(claim, fake, timestamp)
    reach("switched back")
    claim.own.check()
    _remove(table, [(column, key) for column, found in cells.items() for key in found if key in made], timestamp)
    new_roots = keys.node_keys(np.array(scope.new_roots, np.uint64))
    locks.unlock_all(table, [], claim.operation_id, indefinite=new_roots)
    reach("rows removed")
    return Cleanup(done.boxes, done.voxels, done.generation, sum(map(len, cells.values())) + len(fake))


def _new_rows(claim: Claim) -> Cleanup:
    """Remove the new rows of an operation that has not begun to switch rows over; nothing points to them.

    Other cells of the write set were not written. They are left alone, because the operation does not hold all locks.
    """
    timestamp, cells = claim.found.write_set
    made = made_rows(cells)
    new = [(column, key) for column, found in cells.items() for key in found if key in made]
    _remove(claim.graph.table, new, timestamp)
    return Cleanup(cells=len(new) if claim.assessment.n_new_rows else 0)


def _remove(table: Table, cells: Iterable[tuple[ColumnKey, bytes]], timestamp: int) -> None:
    by_row: dict[bytes, list[DeleteCells]] = {}
    for column, key in cells:
        by_row.setdefault(key, []).append(DeleteCells(column, timestamp))
    table.mutate(RowMutation(key, changes) for key, changes in by_row.items())


def _fake_edges(claim: Claim, row_keys: list[bytes], timestamp: int) -> None:
    """Remove fake edges. A user's edge is in two rows, one direction in each, or in one row with both directions."""
    operation = claim.found.operation
    edge = None if operation is None else columns.ADDED_EDGES.newest(operation.row)
    if edge is None:
        return
    edge = edge.reshape(-1, 2)
    for key in row_keys:
        for candidate in (edge, edge[:, ::-1], np.concatenate([edge, edge[:, ::-1]])):
            take_back_edges(claim.graph.table, key, candidate.astype(np.uint64), timestamp)
