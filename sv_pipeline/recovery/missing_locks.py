"""Puts back the locks of an unfinished operation that a person or tool has removed, where nobody has edited since.

An operation that has begun to write is rolled back only while it holds every root and chunk of its scope: only then is
it certain that no other edit uses what it wrote. If a lock is missing, the rows and the fork tell whether one does.
"""

from __future__ import annotations

import logging
import time

from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.log import OperationStatus, find_operation
from sv_pipeline.operations.other_software import footprint_of
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.table import columns, keys, locks
from sv_pipeline.table.columns import INDEFINITE_LOCK, LOCK
from sv_pipeline.table.interface import CellMatch, ConditionalMutation

__all__ = ["lock_free_rows", "put_locks_back"]

log = logging.getLogger(__name__)


def put_locks_back(graph: ChunkedGraph, found: Unfinished) -> list[str]:
    """Lock the roots and chunks that an operation should hold and that no operation holds.

    Returns
    -------
    list[str]
        Names of the roots and chunks whose locks were put back.

    Raises
    ------
    RecoveryStoppedError
        If another operation holds one of them, or has edited there since; no lock was put back.
    """
    scope = found.scope
    if scope is None or found.succeeded:
        return []
    rows = graph.table.read_rows(scope.lock_keys, [INDEFINITE_LOCK.key, LOCK.key], newest_only=True)
    names = dict(zip(scope.lock_keys, _names(graph, found), strict=True))
    missing = []
    for key, name in names.items():
        holder = INDEFINITE_LOCK.newest(rows.get(key))
        if holder is None:
            missing.append(key)
        elif holder != found.operation_id:
            raise _stopped(found, f"{name} is held by operation {holder}", _advice(graph, holder))
    if not missing:
        return []
    _refuse_if_edited(graph, found, missing, names)
    got = lock_free_rows(graph, found.operation_id, missing)
    reach("locks put back")
    try:
        if not all(got):
            name = next(names[key] for key, ok in zip(missing, got, strict=True) if not ok)
            raise _stopped(found, f"{name} has been locked by somebody just now", None, "Try again in a minute.")
        _refuse_if_edited(graph, found, missing, names)  # checked again, now that nobody can edit there any more
    except RecoveryStoppedError:
        ours = [key for key, ok in zip(missing, got, strict=True) if ok]
        locks.unlock_all(graph.table, [], found.operation_id, indefinite=ours)
        raise
    for key in missing:
        log.warning("operation %d: the lock of %s was missing and is put back", found.operation_id, names[key])
    return [names[key] for key in missing]


def lock_free_rows(graph: ChunkedGraph, mine: int, row_keys: list[bytes]) -> list[bool]:
    """Lock rows indefinitely for operation ``mine``, except for rows that another operation has locked.

    Returns
    -------
    list[bool]
        Whether the operation has now locked each of the rows.
    """
    got = locks.lock_all_indefinitely(graph.table, row_keys, mine, guard=())
    expiry = int(graph.meta.graph_config.ROOT_LOCK_EXPIRY.total_seconds() * 1000)
    anybody = [CellMatch(LOCK.key, since=time.time_ns() // 1_000_000 - expiry), CellMatch(INDEFINITE_LOCK.key)]
    rest = [key for key, ok in zip(row_keys, got, strict=True) if not ok]
    taken = graph.table.check_and_mutate_many(
        [ConditionalMutation(key, anybody, if_unmatched=[INDEFINITE_LOCK.set(mine)]) for key in rest]
    )
    free = {key for key, somebody in zip(rest, taken, strict=True) if not somebody}
    return [ok or key in free for key, ok in zip(row_keys, got, strict=True)]


def _names(graph: ChunkedGraph, found: Unfinished) -> list[str]:
    assert found.scope is not None
    chunks = [f"chunk {tuple(c)}" for c in graph.layout.coordinates(list(found.scope.chunks)).tolist()]
    return [*(f"root {root}" for root in found.scope.roots), *chunks]


def _refuse_if_edited(graph: ChunkedGraph, found: Unfinished, missing: list[bytes], names: dict[bytes, str]) -> None:
    """Raise RecoveryStoppedError if another operation has replaced a root, or changed voxels of an unlocked chunk."""
    scope = found.scope
    assert scope is not None
    if found.foreign and found.operation is not None and found.objects:
        # A repair by that software has a later timestamp than the operation; the footprint recognises both.
        since = footprint_of(graph, found.operation, found.objects).edited_since
        if since:
            raise _stopped(found, since, _BUILT_ON)
    names_of = (*scope.roots, *scope.new_roots) if not found.foreign else ()
    roots = {keys.node_key(root): f"root {root}" for root in names_of}
    rows = graph.table.read_rows(roots, [columns.NEW_PARENTS.key])
    for key, row in rows.items():
        if any(cell.timestamp != scope.timestamp for cell in columns.NEW_PARENTS.cells(row)):
            raise _stopped(found, f"{roots[key]} was replaced by another edit since", _BUILT_ON)
    chunks = [chunk for chunk in scope.chunks if keys.chunk_lock_key(chunk) in set(missing)]
    if not chunks or not graph.fork.exists():
        return
    where = graph.layout.coordinates(chunks).tolist()
    boxes = {chunk: graph.grid.box(2, at) for chunk, at in zip(chunks, where, strict=True)}
    for record in graph.fork.records():
        later = record.logical_time > scope.timestamp or record.generation_before > (scope.generation or 0)
        if record.operation_id == found.operation_id or not later:
            continue
        for chunk, box in boxes.items():
            if any(box.clip(changed).volume for changed in record.boxes):
                name = names[keys.chunk_lock_key(chunk)]
                raise _stopped(found, f"operation {record.operation_id} has changed voxels of {name} since", _BUILT_ON)


_BUILT_ON = (
    "Undo that edit first (sv-pipeline ops names it). If it cannot be undone, restore table and fork from backups of "
    "one day."
)


def _advice(graph: ChunkedGraph, holder: int) -> str:
    found = find_operation(graph, holder)
    over = found is not None and found.status in (OperationStatus.SUCCESS, OperationStatus.EXCEPTION)
    if over:
        return f"That operation is finished: 'sv-pipeline stuck recover {graph.graph_id} {holder} --deep' frees it."
    return f"Wait until that operation ends, or recover it: sv-pipeline stuck recover {graph.graph_id} {holder}."


def _stopped(found: Unfinished, what: str, remedy: str | None, repeat: str | None = None) -> RecoveryStoppedError:
    return RecoveryStoppedError(
        f"the missing locks of operation {found.operation_id} cannot be put back: {what}. Nothing was changed.",
        remedy=remedy,
        repeat=repeat,
    )
