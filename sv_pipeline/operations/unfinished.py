"""Which operations are unfinished, and what their rows say. Reads; judges nobody dead.

The open rows are the list. Operations of other software have none: see `foreign`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sv_pipeline.errors import CorruptionError, NotFoundError, SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import FinishedError
from sv_pipeline.operations.log import Operation, OperationStatus, find_operation, read_operations
from sv_pipeline.operations.other_software import Standing, read_standings
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS, Owner, open_key, owner_of
from sv_pipeline.operations.writing import RECOVERY, REQUEST, WRITES, Scope, scope_in, write_set_in
from sv_pipeline.table.interface import ColumnKey, RowView

__all__ = ["Phase", "RecoveryProgress", "Unfinished", "find_unfinished", "read_unfinished", "why_not_unfinished"]


class Phase:
    """How far a recovery has come, as its open row says. A recovery that begins goes back to the first one."""

    CLAIMED = "claimed"
    CLEANED = "cleaned"
    """Nothing is left of what the earlier attempt wrote, and nothing was written since."""
    REPLAYING = "replaying"
    """It is being made again: rows and voxels of this attempt may be there."""
    OVER = "over"
    """It cannot be made again; locks are being given back."""
    UNPROVEN = "unproven"
    """It has ended and holds nothing, but rows or voxels around it are not as they should be."""


@dataclass(frozen=True)
class RecoveryProgress:
    """What recoveries of an operation left in its open row."""

    phase: str = ""
    attempts: int = 0
    error: str = ""
    """Of the last one that failed."""
    outcome: str = ""
    """What the log will say, once it is over."""

    @classmethod
    def of(cls, row: RowView | None) -> RecoveryProgress:
        """Out of an open row."""
        value = RECOVERY.newest(row) or {}
        if not isinstance(value, dict):
            raise CorruptionError(f"the notes of a recovery cannot be read: {value!r}.")
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


@dataclass(frozen=True, eq=False)
class Unfinished:
    """One operation that has not come to its end."""

    operation: Operation | None
    """Its row in the log; None if it has none."""
    operation_id: int
    scope: Scope | None
    """What it holds while it writes; None before."""
    owner: Owner | None
    """Who works on it; None for other software's."""
    progress: RecoveryProgress
    signature: str
    """Changes whenever its owner shows that it lives."""
    foreign: bool = False
    """Made by other software: no owner, no write set, no generation."""
    row: RowView = field(default_factory=dict, repr=False)
    """The open row."""
    objects: tuple[int, ...] = ()
    """Of other software's: roots of the objects that it edits, as of the moment before it."""
    moved_at: int = 0
    """Of other software's: time of the newest of its cells and locks, milliseconds."""
    unlocked: bool = False
    """Of other software's: whether it gave its locks back, although cells of it are there."""
    damage: str = ""
    """Why its rows cannot be read. Then nobody knows what it holds or whether it is complete; it is left alone."""

    @property
    def id(self) -> int:
        """Its number."""
        return self.operation_id

    @property
    def kind(self) -> str:
        """merge, split, undo, redo, or unknown."""
        return "unknown" if self.operation is None else self.operation.kind

    @property
    def user(self) -> str:
        """Who asked for it."""
        return (self.operation.user or "") if self.operation is not None else ""

    @property
    def status(self) -> str:
        """As the log has it."""
        status = None if self.operation is None else self.operation.status
        return "" if status is None else status.name

    @property
    def succeeded(self) -> bool:
        """Whether all is written: the log says so, and nobody has taken anything back."""
        done = self.operation is not None and self.operation.status is OperationStatus.SUCCESS
        return done and (self.foreign or bool(self.write_set[1]))

    @property
    def write_set(self) -> tuple[int, dict[ColumnKey, list[bytes]]]:
        """Time and row keys by column of what it writes."""
        return write_set_in(self.row, self.operation_id)

    @property
    def began(self) -> int | None:
        """When its row was made, milliseconds by the clock of who made it."""
        if self.operation is None:
            return None
        return min((cell.timestamp for cells in self.operation.row.values() for cell in cells), default=None)

    def age(self, now: float | None = None) -> float | None:
        """Seconds since it began; None if its clock is ahead of ours, or it does not say."""
        seconds = None if self.began is None else (time.time() if now is None else now) - self.began / 1000
        return None if seconds is None or seconds < 0 else seconds

    @property
    def outlook(self) -> str:
        """What recovery would do, in a word."""
        if self.damage:
            return "nothing"
        if self.progress.phase == Phase.UNPROVEN:
            return "prove"
        if self.progress.phase == Phase.OVER or self.succeeded:
            return "release"
        if self.scope is None:
            return "sweep"
        return "roll back" if self.unlocked else "recover"


def find_unfinished(graph: ChunkedGraph, foreign_ids: Iterable[int] = ()) -> list[Unfinished]:
    """All unfinished operations, by id; those of other software only if they are named."""
    opened = {int(key.removeprefix(OPEN_PREFIX)): row for key, row in graph.table.scan([OPEN_ROWS], newest_only=True)}
    return _described(graph, opened, sorted(set(foreign_ids) - opened.keys()))


def read_unfinished(graph: ChunkedGraph, operation_id: int) -> Unfinished | None:
    """One unfinished operation; None if it is finished, or there is none."""
    key = open_key(operation_id)
    row = graph.table.read_rows([key], newest_only=True).get(key)
    opened, others = ({}, [operation_id]) if row is None else ({operation_id: row}, [])
    found = _described(graph, opened, others, thorough=True)
    return found[0] if found else None


def why_not_unfinished(graph: ChunkedGraph, operation_id: int) -> SvPipelineError:
    """The error that says why an operation is not unfinished: it has ended, or there is none of this number."""
    found = find_operation(graph, operation_id)
    if found is None:
        return NotFoundError(
            f"there is no operation {operation_id} in graph {graph.graph_id!r}.",
            remedy=f"See 'sv-pipeline ops {graph.graph_id}' for all of them, 'sv-pipeline stuck list "
            f"{graph.graph_id} --min-age 0' for unfinished ones.",
        )
    status = "without a status" if found.status is None else found.status.name
    return FinishedError(
        f"operation {operation_id} is finished already ({status}): there is nothing to recover.",
        complete=found.status is OperationStatus.SUCCESS,
    )


def _described(
    graph: ChunkedGraph, opened: dict[int, RowView], foreign_ids: Sequence[int], *, thorough: bool = False
) -> list[Unfinished]:
    wanted = sorted([*opened, *foreign_ids])
    log = _log_of(graph, wanted)
    found = [_of_open_row(graph, operation_id, row, log.get(operation_id)) for operation_id, row in opened.items()]
    foreign = [log[i] for i in foreign_ids if i in log]
    of_others = [op for op in foreign if isinstance(op, Operation)]
    standings = read_standings(graph, of_others, thorough=thorough)
    found += [
        one
        for op in of_others
        if op.operation_id in standings and (one := _foreign(op, standings[op.operation_id])) is not None
    ]
    return sorted(found, key=lambda one: one.operation_id)


def _log_of(graph: ChunkedGraph, wanted: Sequence[int]) -> dict[int, Operation | CorruptionError]:
    """Rows of the log by operation, or why one cannot be read."""
    if not wanted:
        return {}
    try:
        return {op.operation_id: op for op in read_operations(graph, np.array(wanted, np.uint64))}
    except CorruptionError as error:
        if len(wanted) == 1:
            return {wanted[0]: error}
        return {number: op for one in wanted for number, op in _log_of(graph, [one]).items()}


def _of_open_row(
    graph: ChunkedGraph, operation_id: int, row: RowView, logged: Operation | CorruptionError | None
) -> Unfinished:
    operation = logged if isinstance(logged, Operation) else None
    try:
        if isinstance(logged, CorruptionError):
            raise logged
        return _read_open_row(graph, operation_id, row, operation)
    except CorruptionError as error:  # the others must not be hidden by it
        known, signature = (operation, operation_id, None, None, RecoveryProgress()), _hash(row.items())
        return Unfinished(*known, signature, row=row, damage=str(error))


def _read_open_row(graph: ChunkedGraph, operation_id: int, row: RowView, operation: Operation | None) -> Unfinished:
    owner, scope = owner_of(row), scope_in(row, operation_id)
    write_set_in(row, operation_id)
    foreign = REQUEST.key not in row
    signature, unlocked = "" if owner is None else owner.encode().decode(), False
    objects: tuple[int, ...] = ()
    if operation is not None and foreign and WRITES not in row:
        # One of other software that somebody has begun to recover.
        standing = read_standings(graph, [operation], thorough=True).get(operation_id)
        if standing is not None:
            scope, objects, unlocked = scope or standing.scope, standing.objects, standing.unlocked
    return Unfinished(
        operation,
        operation_id,
        scope,
        owner,
        RecoveryProgress.of(row),
        signature,
        foreign,
        row,
        objects=objects,
        unlocked=unlocked,
    )


def _foreign(operation: Operation, standing: Standing) -> Unfinished | None:
    finished = (OperationStatus.SUCCESS, OperationStatus.EXCEPTION)
    if standing.scope is None and operation.status in finished:
        return None
    return Unfinished(
        operation,
        operation.operation_id,
        standing.scope,
        None,
        RecoveryProgress(),
        standing.signature,
        foreign=True,
        objects=standing.objects,
        moved_at=standing.moved_at,
        unlocked=standing.unlocked,
    )


def _hash(cells: Iterable[Any]) -> str:
    return hashlib.sha256(repr([*cells]).encode()).hexdigest()[:16]
