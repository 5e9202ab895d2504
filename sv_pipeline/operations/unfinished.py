"""Unfinished operations, and what their rows contain. Reads; does not decide whether an owner is dead.

Open rows (see `ownership`) are the list. Operations of other software have none: see `recovery.foreign`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sv_pipeline.errors import CorruptionError, NotFoundError, SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import FinishedError
from sv_pipeline.operations.log import Operation, OperationStatus, ending, find_operation, operation_of
from sv_pipeline.operations.other_software import Standing, read_standings, signature_of
from sv_pipeline.operations.ownership import OPEN_PREFIX, OPEN_ROWS, Owner, open_key, owner_of
from sv_pipeline.operations.writing import RECOVERY, REQUEST, WRITES, Scope, scope_in, write_set_in
from sv_pipeline.table import keys
from sv_pipeline.table.interface import ColumnKey, RowView

__all__ = [
    "Phase",
    "RecoveryProgress",
    "Unfinished",
    "find_unfinished",
    "read_log",
    "read_unfinished",
    "try_standings",
    "why_not_unfinished",
]


class Phase:
    """How far a recovery has come, as stored in the open row. A new recovery starts with the first phase again."""

    CLAIMED = "claimed"
    CLEANED = "cleaned"
    """Nothing is left of what the earlier attempt wrote, and nothing was written since."""
    REPLAYING = "replaying"
    """The operation is being replayed: rows and voxels of this attempt may exist."""
    OVER = "over"
    """The operation cannot be replayed; its locks are being released."""
    UNPROVEN = "unproven"
    """The operation has ended and holds no locks, but a check has found wrong rows or voxels around it."""


@dataclass(frozen=True)
class RecoveryProgress:
    """What recoveries of an operation have stored in its open row."""

    phase: str = ""
    attempts: int = 0
    error: str = ""
    """Error of the last recovery that failed."""
    outcome: str = ""
    """Text for the log once the operation is over."""

    @classmethod
    def of(cls, row: RowView | None) -> RecoveryProgress:
        """Decode the progress in an open row."""
        value = RECOVERY.newest(row) or {}
        if not isinstance(value, dict):
            raise CorruptionError(f"the notes of a recovery cannot be read: {value!r}.")
        return cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})


@dataclass(frozen=True, eq=False)
class Unfinished:
    """An operation that is not finished."""

    operation: Operation | None
    """Row of the operation in the log; None if it has none."""
    operation_id: int
    scope: Scope | None
    """What it holds while it writes; None before it writes."""
    owner: Owner | None
    """Current owner; None for operations of other software."""
    progress: RecoveryProgress
    signature: str
    """A value that changes whenever the owner shows that it lives."""
    foreign: bool = False
    """Whether other software made it; it then has no owner, no write set and no generation."""
    row: RowView = field(default_factory=dict, repr=False)
    """Cells of the open row."""
    objects: tuple[int, ...] = ()
    """Roots of the objects that an operation of other software edits, as of the moment before it."""
    moved_at: int = 0
    """For an operation of other software, the time of the newest of its cells and locks, in milliseconds."""
    unlocked: bool = False
    """Whether an operation of other software has released its locks although cells of it are present."""
    damage: str = ""
    """Why its rows cannot be read, if so. Its locks and its state are then unknown, and it is left alone."""

    @property
    def id(self) -> int:
        """Number of the operation."""
        return self.operation_id

    @property
    def kind(self) -> str:
        """One of merge, split, undo, redo, and unknown."""
        return "unknown" if self.operation is None else self.operation.kind

    @property
    def user(self) -> str:
        """User who requested it."""
        return (self.operation.user or "") if self.operation is not None else ""

    @property
    def status(self) -> str:
        """Status in the log; empty if there is none."""
        status = None if self.operation is None else self.operation.status
        return "" if status is None else status.name

    @property
    def succeeded(self) -> bool:
        """Whether everything is written: the log says so, and nothing was rolled back."""
        done = self.operation is not None and self.operation.is_complete
        return done and (self.foreign or bool(self.write_set[1]))

    @property
    def write_set(self) -> tuple[int, dict[ColumnKey, list[bytes]]]:
        """Timestamp of its cells, and their row keys by column."""
        return write_set_in(self.row, self.operation_id)

    @property
    def began(self) -> int | None:
        """Time at which its row was created, in milliseconds by the clock of its first owner."""
        if self.operation is None:
            return None
        return min((cell.timestamp for cells in self.operation.row.values() for cell in cells), default=None)

    def age(self, now: float | None = None) -> float | None:
        """Return the seconds since it began; None if its clock is ahead of ours, or the time is not known."""
        seconds = None if self.began is None else (time.time() if now is None else now) - self.began / 1000
        return None if seconds is None or seconds < 0 else seconds

    @property
    def outlook(self) -> str:
        """What recovery would do, as one word."""
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
    """Find all unfinished operations, sorted by id; those of other software only if they are named."""
    opened = {int(key.removeprefix(OPEN_PREFIX)): row for key, row in graph.table.scan([OPEN_ROWS], newest_only=True)}
    return _described(graph, opened, sorted(set(foreign_ids) - opened.keys()))


def read_unfinished(graph: ChunkedGraph, operation_id: int) -> Unfinished | None:
    """Read one unfinished operation; None if it is finished or does not exist."""
    key = open_key(operation_id)
    row = graph.table.read_rows([key], newest_only=True).get(key)
    opened, others = ({}, [operation_id]) if row is None else ({operation_id: row}, [])
    found = _described(graph, opened, others, thorough=True)
    return found[0] if found else None


def why_not_unfinished(graph: ChunkedGraph, operation_id: int) -> SvPipelineError:
    """Return the error that says why an operation is not unfinished: it has ended, or does not exist."""
    found = find_operation(graph, operation_id)
    if found is None:
        return NotFoundError(
            f"there is no operation {operation_id} in graph {graph.graph_id!r}.",
            remedy=f"See 'sv-pipeline ops {graph.graph_id}' for all of them, 'sv-pipeline stuck list "
            f"{graph.graph_id} --min-age 0' for unfinished ones.",
        )
    return FinishedError(
        f"operation {operation_id} {ending(found)}: it is finished already, so there is nothing to recover.",
        complete=found.is_complete,
    )


def _described(
    graph: ChunkedGraph, opened: dict[int, RowView], foreign_ids: Sequence[int], *, thorough: bool = False
) -> list[Unfinished]:
    wanted = sorted([*opened, *foreign_ids])
    log = read_log(graph, wanted)
    found = [_of_open_row(graph, operation_id, row, log.get(operation_id)) for operation_id, row in opened.items()]
    foreign = [log[i] for i in foreign_ids if i in log]
    of_others = [op for op in foreign if isinstance(op, Operation)]
    standings = try_standings(graph, of_others, thorough=thorough)
    found += [
        one
        for op in of_others
        if op.operation_id in standings and (one := _foreign(op, standings[op.operation_id])) is not None
    ]
    found += [_damaged(None, i, error) for i in foreign_ids if isinstance(error := log.get(i), CorruptionError)]
    return sorted(found, key=lambda one: one.operation_id)


def try_standings(
    graph: ChunkedGraph, operations: Sequence[Operation], *, thorough: bool = False
) -> dict[int, Standing | CorruptionError]:
    """Read how operations stand; where that cannot be read, it is replaced by the error."""
    try:
        return dict(read_standings(graph, operations, thorough=thorough))
    except CorruptionError as error:
        if len(operations) == 1:
            return {operations[0].operation_id: error}
        half = len(operations) // 2
        first = try_standings(graph, operations[:half], thorough=thorough)
        return first | try_standings(graph, operations[half:], thorough=thorough)


def read_log(graph: ChunkedGraph, wanted: Sequence[int]) -> dict[int, Operation | CorruptionError]:
    """Read rows of the log by operation; an unreadable row is replaced by its error."""
    found: dict[int, Operation | CorruptionError] = {}
    for key, row in graph.table.read_rows(keys.node_keys(np.array(wanted, np.uint64))).items():
        try:
            found[int(key)] = operation_of(int(key), row)
        except CorruptionError as error:
            found[int(key)] = error
    return found


def _of_open_row(
    graph: ChunkedGraph, operation_id: int, row: RowView, logged: Operation | CorruptionError | None
) -> Unfinished:
    operation = logged if isinstance(logged, Operation) else None
    try:
        if isinstance(logged, CorruptionError):
            raise logged
        return _read_open_row(graph, operation_id, row, operation)
    except CorruptionError as error:  # one damaged operation must not hide the others
        known, signature = (operation, operation_id, None, None, RecoveryProgress()), signature_of(row.items())
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
            if damage := _no_time(operation, standing):
                raise CorruptionError(damage)
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


def _damaged(operation: Operation | None, operation_id: int, error: CorruptionError) -> Unfinished:
    """Return an operation of other software whose rows cannot be read: nobody knows what it has written."""
    damage, signature = str(error), signature_of([operation_id])
    return Unfinished(operation, operation_id, None, None, RecoveryProgress(), signature, foreign=True, damage=damage)


def _no_time(operation: Operation, standing: Standing) -> str:
    """Return why the cells of an operation cannot be found, if its log does not name the time that they have."""
    if standing.scope is None or operation.timestamp is not None or operation.is_complete:
        return ""
    return f"the log of operation {operation.operation_id} does not say at which time it began to write."


def _foreign(operation: Operation, standing: Standing | CorruptionError) -> Unfinished | None:
    if isinstance(standing, CorruptionError):
        return _damaged(operation, operation.operation_id, standing)
    if standing.scope is None and (operation.is_complete or operation.status is OperationStatus.EXCEPTION):
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
        damage=_no_time(operation, standing),
    )
