"""Makes a table and a fork that were restored from different days fit again: the newer one is rolled back.

Everything after the newest operation that both know is lost, so it is listed first. Nobody may edit meanwhile; edits of
such a graph are refused anyway.

- If the fork is newer, its manifest ends with the last generation before the first operation that the table does not
  know. The voxels of operations that the table does not know are lost.
- If the table is newer, the first operation whose voxels the fork lacks is lost, and all later ones. The cells at their
  times are deleted; then the log says that they were lost.

The files of lost generations are collected as garbage later. After a kill, the next run finds the rest in the same way.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sv_pipeline.errors import ConflictError, UnavailableError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.operations.log import Operation, OperationStatus, read_operations
from sv_pipeline.operations.other_software import logical_time
from sv_pipeline.operations.ownership import OPEN_ROWS
from sv_pipeline.operations.pair import COMMITTED, PAIR_ROW, Older, find_misfit
from sv_pipeline.operations.writing import own_key, read_identity, read_supervoxels
from sv_pipeline.registry import Dataset
from sv_pipeline.segmentation.fork.records import (
    NEWEST,
    Newest,
    OperationRecord,
    first_generation,
    read_value,
    records_in,
)
from sv_pipeline.storage import kv, ocdbt
from sv_pipeline.storage.file_guard import commit_guard, written
from sv_pipeline.storage.generations import current_version, read_manifest
from sv_pipeline.storage.history import manifest_until, node_reader
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import DeleteCells, RowKeyRange, RowMutation, SetCell
from sv_pipeline.upkeep.backup import require_own_manifest

__all__ = ["Reconciliation", "reconcile"]

EVERYTHING = RowKeyRange(b"\x00", b"\xff" * 32)
ROWS_AT_ONCE = 500
LOST = "failed:lost: the voxels of this operation, or of an earlier one, were not in the fork that was restored."

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconciliation:
    """What makes a table and a fork fit."""

    graph_id: str
    newer: str
    """``fork``, ``table``, or ``neither`` if they fit."""
    lost: tuple[int, ...]
    """Numbers of the operations that are lost."""
    users: tuple[str, ...]
    """User of each of them; empty if the table does not know it."""
    generation: int | None
    """The latest generation of the fork afterwards."""
    applied: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        if self.newer == "neither":
            return [f"table and fork of graph {self.graph_id} fit; nothing has to be done."]
        lost = [f"  {number:>6}  {user}" for number, user in zip(self.lost, self.users, strict=True)]
        end = "was rolled back." if self.applied else "would be rolled back. Run the command with --apply to do so."
        return [f"{len(lost)} operations are lost:", *lost, f"The {self.newer} of graph {self.graph_id} {end}"]


def reconcile(dataset: Dataset, *, apply: bool = False) -> Reconciliation:
    """Find out which operations are lost, and roll the newer of table and fork back if ``apply`` is set.

    Raises
    ------
    ConflictError
        If table and fork belong to two graphs, or operations are unfinished.
    NotFoundError
        If the history of the fork does not reach back far enough.
    """
    graph = dataset.graph
    misfit = find_misfit(graph)
    if misfit is None:
        return Reconciliation(dataset.graph_id, "neither", (), (), None, applied=False)
    if misfit.older is Older.NEITHER:
        raise ConflictError(misfit.message, remedy=misfit.remedy)
    if graph.table.any_row([OPEN_ROWS]):
        raise ConflictError(
            f"graph {dataset.graph_id!r} has unfinished operations.",
            remedy=f"Abandon or recover them first: 'sv-pipeline stuck list {dataset.graph_id}'.",
        )
    return (_roll_fork_back if misfit.older is Older.TABLE else _roll_table_back)(dataset, apply=apply)


def _roll_fork_back(dataset: Dataset, *, apply: bool) -> Reconciliation:
    require_own_manifest(dataset.fork)
    store = dataset.fork.store()
    lost = [one for one in records_in(store.kv) if not _is_known(dataset, one)]
    if not lost:
        raise ConflictError(
            f"the fork of graph {dataset.graph_id!r} names an operation that the table does not know, but has no "
            "record of it.",
            remedy="Restore both from backups of the same day.",
        )
    last = min(first_generation(store, one) for one in lost) - 1
    early = [one.operation_id for one in records_in(dataset.fork.store(version=last).kv) if not _is_known(dataset, one)]
    assert not early, "the generation is before the first commit of each of them"
    found = Reconciliation(
        dataset.graph_id, "fork", tuple(one.operation_id for one in lost), ("",) * len(lost), last, applied=apply
    )
    if not apply:
        return found
    # No number may be used again: the fork may hold a fence of an operation that is lost.
    behind = max(found.lost) - counters.last_operation_id(dataset.table)
    if behind > 0:
        dataset.table.increment(keys.OPERATION_COUNTER, columns.COUNTER.key, behind)
    reach("reconcile fork")
    folder = store.folder
    stamp = kv.open_kv(folder).read(ocdbt.SINGLE_MANIFEST, byte_range=slice(0, 0)).result().stamp.generation
    manifest = read_manifest(store.base)
    file = f"{dataset.fork.data_prefix}{secrets.token_hex(16)}"
    new = manifest_until(manifest, last, node_reader(store.base), file)
    if new.nodes:
        kv.write_bytes(folder, file, new.nodes)
    with commit_guard(folder):
        write = kv.open_kv(folder).write(ocdbt.SINGLE_MANIFEST, new.manifest, if_equal=stamp)
        if not written(write, folder, ocdbt.SINGLE_MANIFEST).generation:
            raise UnavailableError(f"the fork {folder} was changed meanwhile.", repeat="Run this again.")
    reach("reconciled")
    _logger.info("graph %s: the fork was rolled back to generation %d", dataset.graph_id, last)
    return found


def _is_known(dataset: Dataset, record: OperationRecord) -> bool:
    return record.identity is None or read_identity(dataset.table, record.operation_id) == record.identity


def _roll_table_back(dataset: Dataset, *, apply: bool) -> Reconciliation:
    graph, table = dataset.graph, dataset.table
    records = {one.operation_id for one in dataset.fork.records()}
    done = sorted(
        (one for one in read_operations(graph) if one.status is OperationStatus.SUCCESS and one.timestamp is not None),
        key=_time,
    )
    changed = [one for one in done if len(read_supervoxels(table, one.operation_id))]
    missing = [one for one in changed if one.operation_id not in records]
    if not missing:
        raise ConflictError(
            f"the table of graph {dataset.graph_id!r} names an operation that the fork lacks, but its log does not.",
            remedy="Restore both from backups of the same day.",
        )
    lost = [one for one in done if _time(one) >= _time(missing[0])]
    ids = tuple(one.operation_id for one in lost)
    kept_records = records & {*ids}
    if kept_records:
        raise ConflictError(
            f"the fork of graph {dataset.graph_id!r} lacks operation {missing[0].operation_id}, but has later ones "
            f"({', '.join(map(str, sorted(kept_records)))}).",
            remedy="Restore both from backups of the same day.",
        )
    generation = current_version(dataset.fork.store().base).generation
    found = Reconciliation(
        dataset.graph_id, "table", ids, tuple(one.user or "" for one in lost), generation, applied=apply
    )
    if apply:
        _delete_cells(dataset, lost)
        reach("reconcile rows")
        _note_lost(dataset, lost)
        reach("reconciled")
        _logger.info("graph %s: %d operations of the table were rolled back", dataset.graph_id, len(lost))
    return found


def _delete_cells(dataset: Dataset, lost: list[Operation]) -> None:
    """Delete all cells in rows of nodes and edges at the times of operations."""
    table, times = dataset.table, {_time(one) for one in lost}
    batch: list[RowMutation] = []
    for key, row in table.scan([EVERYTHING], since=min(times)):
        if not _is_of_graph(key):
            continue
        changes = [
            DeleteCells(column, c.timestamp) for column, cells in row.items() for c in cells if c.timestamp in times
        ]
        if changes:
            batch.append(RowMutation(key, changes))
        if len(batch) >= ROWS_AT_ONCE:
            table.mutate(batch)
            batch = []
    for part in pieces("reconciling rows", batch):
        table.mutate(part)


def _is_of_graph(key: bytes) -> bool:
    """Return whether a key is that of a node or of the edges of a chunk."""
    digits = key.removeprefix(b"f")
    return digits.isdigit() and len(digits) == keys.DIGITS and (key[:1] == b"f" or int(digits) >= 1 << 56)


def _note_lost(dataset: Dataset, lost: list[Operation]) -> None:
    """End the operations in the log, then state the pair.

    The last two are the first lost operation, from which the next run finds all that are left, and the one that the
    table names: until that has ended, table and fork do not fit, so that the next run continues after a kill.
    """
    table = dataset.table
    named = (COMMITTED.newest(table.read_rows([PAIR_ROW], newest_only=True).get(PAIR_ROW)) or {}).get("operation_id")
    for one in sorted(lost, key=lambda one: (one.operation_id == named, one is lost[0])):
        ended = [
            columns.OPERATION_STATUS.set(int(OperationStatus.EXCEPTION)),
            columns.OPERATION_EXCEPTION.set(LOST),
            columns.ROOTS.set(np.zeros(0, np.uint64)),
        ]
        # The log first: by the other row, the next run knows that the operation has changed voxels.
        table.mutate([RowMutation(keys.node_key(one.operation_id), ended)])
        table.mutate([RowMutation(own_key(one.operation_id), [DeleteCells()])])
        reach("reconciling log")
    # The column keeps the newest cell, and that of a lost operation may have a later generation.
    changes: list[DeleteCells | SetCell] = [DeleteCells(COMMITTED.key)]
    newest = read_value(dataset.fork.store().kv, NEWEST)
    if newest is not None:
        there = Newest.decode(newest)
        committed = {"operation_id": there.operation_id, "identity": there.identity}
        changes.append(COMMITTED.set(committed, dataset.fork.generation()))
    table.mutate([RowMutation(PAIR_ROW, changes)])


def _time(operation: Operation) -> int:
    return logical_time(operation) or 0
