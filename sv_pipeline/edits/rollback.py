"""Rollback of the edits that one user has made since some moment: planned first, then made by undos, newest first.

A merge or split, its undos, and their undos and redos form one *chain*, and only the state of the whole chain matters:

- If the user made the last operations of a chain, and their number is odd, the last one is undone. An even number of
  them cancels out, so there is nothing to do.
- If another user made the last operation, that user has decided about the chain, and it is left as it is.

A later edit *stands on* an operation if it replaced roots that the operation made, or roots that descend from these. If
an edit of another user stands on an operation and is in force, the operation is skipped unless the caller asks for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from sv_pipeline.arguments import parse_flag, parse_user
from sv_pipeline.edits.history import undo
from sv_pipeline.edits.tokens import edit_once, operation_of
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import milliseconds
from sv_pipeline.graph.lineage import lineage
from sv_pipeline.moments import Moment, epoch_milliseconds, parse_moment
from sv_pipeline.operations.log import Operation, OperationStatus, about, asked_for, read_operations
from sv_pipeline.operations.refusal import EditRefused, bad_request
from sv_pipeline.table import columns, keys

__all__ = ["RollbackStep", "Verdict", "plan_rollback", "roll_back"]


class Verdict(StrEnum):
    """What a rollback does with one chain of operations."""

    UNDO = "undo"
    """The chain would be undone."""
    UNDONE = "undone"
    """The rollback has undone the chain."""
    NOTHING = "nothing to do"
    """The user has undone the chain already, or another user has made its last operation."""
    SKIPPED = "skipped"
    """Edits of other users stand on the chain."""
    REFUSED = "refused"
    """The undo was refused."""


@dataclass(frozen=True)
class RollbackStep:
    """One chain of operations, represented by the last one that the user made."""

    operation_id: int
    kind: str
    time: int
    """Logical time of the operation, in milliseconds since the epoch."""
    verdict: Verdict
    why: str = ""
    """Reason of the verdict; empty for ``UNDO`` and ``UNDONE``."""
    stands_on_it: tuple[int, ...] = ()
    """Ids of later operations by other users that stand on it and are in force."""
    undone_by: int | None = None
    """Id of the operation that has undone it."""
    source: tuple[tuple[int, ...], ...] = ()
    """Source points of its request, in voxels (x, y, z) of mip 0."""
    sink: tuple[tuple[int, ...], ...] = ()
    """Sink points of its request, likewise."""
    followers: frozenset[int] = field(default=frozenset(), repr=False)
    """Ids of all operations that stood on it when the plan was made."""


@dataclass(frozen=True)
class _Logged:
    """The part of a successful operation's log row that the plan needs."""

    operation_id: int
    user: str
    time: int
    """Logical time, in milliseconds since the epoch."""
    about: int
    """Id of the operation that it undoes or redoes; 0 for a merge or split."""

    @property
    def order(self) -> tuple[int, int]:
        """Sort key for the operations of a chain."""
        return self.time, self.operation_id


def plan_rollback(graph: ChunkedGraph, user: str, since: Moment, *, over_others: bool = False) -> list[RollbackStep]:
    """Plan the rollback of a user's edits, newest first. Writes nothing.

    Parameters
    ----------
    user
        The user whose edits are rolled back.
    since
        A time, or the number of an operation. Edits at that time or later, or with that number or a higher one, are
        rolled back.
    over_others
        Also undo operations that edits of other users stand on. The effects of those edits remain.

    Raises
    ------
    EditRefused
        If an argument is not valid.
    """
    with bad_request():
        user, moment, over_others = parse_user(user), parse_moment(since), parse_flag(over_others, "over_others")
    logged = _read_log(graph)
    chains = _chains(logged)
    chosen: list[tuple[_Logged, list[_Logged]]] = []
    for chain in chains.values():
        recent = [one for one in chain if one.user == user and _is_since(one, moment)]
        if recent:
            chosen.append((max(recent, key=lambda one: one.order), chain))
    chosen.sort(key=lambda item: item[0].order, reverse=True)
    log = {o.operation_id: o for o in read_operations(graph, [one.operation_id for one, _ in chosen])} if chosen else {}
    followers = _followers(graph, list(log.values()))
    steps = []
    for last, chain in chosen:
        others = _others(followers.get(last.operation_id, set()), chains.values(), chain, user)
        verdict, why = _verdict(last, chain, moment, others, over_others=over_others)
        step = _step(log[last.operation_id], last.time, verdict, why, others)
        steps.append(replace(step, followers=frozenset(followers.get(last.operation_id, ()))))
    return steps


def roll_back(
    graph: ChunkedGraph, steps: Iterable[RollbackStep], by: str, *, tell: Callable[[RollbackStep], None] | None = None
) -> list[RollbackStep]:
    """Make the undos of a plan, in its order. Repeated calls, with the same plan or a new one, make no undo twice.

    An operation is skipped if new edits stand on it since the plan was made.

    Parameters
    ----------
    steps
        The result of :func:`plan_rollback`.
    by
        The user of the undos.
    tell
        Called after each step with its outcome.

    Returns
    -------
    list of RollbackStep
        The steps with their outcomes, in the same order.

    Raises
    ------
    ConflictError
        If an earlier call died while it was writing an undo; that operation has to be recovered first.
    """
    with bad_request():
        by = parse_user(by)
    done: list[RollbackStep] = []
    for step in steps:
        outcome = _undone(graph, step, by) if step.verdict is Verdict.UNDO else step
        done.append(outcome)
        if tell is not None:
            tell(outcome)
    return done


def _undone(graph: ChunkedGraph, step: RollbackStep, by: str) -> RollbackStep:
    """Undo the operation of one step; return the step with its outcome."""
    number = step.operation_id
    if operation_of(graph, _token(number)) is None and (fresh := _built_since(graph, step, by)):
        why = f"other edits were made on it while it was to be undone: {', '.join(map(str, sorted(fresh)))}"
        return replace(step, verdict=Verdict.SKIPPED, why=why, stands_on_it=tuple(sorted(fresh)))
    origin = asked_for(graph, number).operation_id

    def is_it(operation: Operation) -> bool:
        return operation.user == by and about(operation) in (number, origin)

    try:
        edit = edit_once(graph, _token(number), is_it, lambda: undo(graph, number, by))
    except EditRefused as refused:
        return replace(step, verdict=Verdict.REFUSED, why=f"{refused.reason}: {refused}")
    except ConflictError as conflict:
        conflict.advise(conflict.repair, repeat="Then run the rollback again; it continues where it stopped.")
        raise
    return replace(step, verdict=Verdict.UNDONE, undone_by=edit.operation_id)


def _token(number: int) -> str:
    return f"rollback.{number}"


def _built_since(graph: ChunkedGraph, step: RollbackStep, by: str) -> set[int]:
    """Return operations that stand on the one of a step since the plan was made, except for those by ``by``."""
    found = _followers(graph, read_operations(graph, [step.operation_id])).get(step.operation_id, set())
    fresh = sorted(found - step.followers)
    return {o.operation_id for o in read_operations(graph, fresh) if o.user != by} if fresh else set()


# -- reading the log --------------------------------------------------------------------------------------------------

_COLUMNS = [
    column.key
    for column in (
        columns.USER,
        columns.OPERATION_STATUS,
        columns.OPERATION_TIMESTAMP,
        columns.UNDO_OPERATION_ID,
        columns.REDO_OPERATION_ID,
    )
]


def _read_log(graph: ChunkedGraph) -> dict[int, _Logged]:
    """Read all operations that succeeded, by id."""
    found = {}
    for key, row in graph.table.scan([keys.operation_range()], _COLUMNS, newest_only=True):
        if columns.OPERATION_STATUS.newest(row) != OperationStatus.SUCCESS:
            continue
        target = columns.UNDO_OPERATION_ID.newest(row) or columns.REDO_OPERATION_ID.newest(row) or 0
        time = milliseconds(columns.OPERATION_TIMESTAMP.newest(row)) or 0
        found[int(key)] = _Logged(int(key), columns.USER.newest(row) or "", time, target)
    return found


def _chains(logged: Mapping[int, _Logged]) -> dict[int, list[_Logged]]:
    """Return the chains by the id of their merge or split, each with its operations in order of time."""
    origins: dict[int, int] = {}
    chains: dict[int, list[_Logged]] = defaultdict(list)
    for one in sorted(logged.values(), key=lambda one: one.order):
        origins[one.operation_id] = origins.get(one.about, one.about) or one.operation_id
        chains[origins[one.operation_id]].append(one)
    return chains


def _is_since(one: _Logged, moment: object) -> bool:
    return one.operation_id >= moment if isinstance(moment, int) else one.time >= epoch_milliseconds(moment)  # type: ignore[arg-type]


def _others(after: set[int], chains: Iterable[list[_Logged]], own: list[_Logged], user: str) -> tuple[int, ...]:
    """Return the ids of other users' operations that stand on a chain and are in force, ascending.

    Of each other chain, only the operations in ``after`` count; an even number of them cancels out.
    """
    found = []
    for chain in chains:
        standing = [one for one in chain if one.operation_id in after]
        if chain is not own and len(standing) % 2 and standing[-1].user != user:
            found.append(standing[-1].operation_id)
    return tuple(sorted(found))


def _verdict(
    last: _Logged, chain: list[_Logged], moment: object, others: tuple[int, ...], *, over_others: bool
) -> tuple[Verdict, str]:
    if chain[-1] != last:
        return Verdict.NOTHING, f"operation {chain[-1].operation_id} by {chain[-1].user} has changed it since"
    own = 0
    for one in reversed(chain):
        if one.user != last.user or not _is_since(one, moment):
            break
        own += 1
    if own % 2 == 0:
        return Verdict.NOTHING, f"{last.user} has undone it already"
    if others and not over_others:
        return Verdict.SKIPPED, f"later edits of other users depend on it: {', '.join(map(str, others))}"
    return Verdict.UNDO, ""


def _followers(graph: ChunkedGraph, operations: list[Operation]) -> dict[int, set[int]]:
    """Return the ids of the operations that stand on each given operation, by its id."""
    if not operations:
        return {}
    roots = np.unique(np.concatenate([operation.roots for operation in operations]))
    found = lineage(graph, roots, past=False)
    following: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (old, new), operation in zip(found.edges.tolist(), found.operations.tolist(), strict=True):
        following[old].append((new, operation))
    return {o.operation_id: set(_reached(o.roots.tolist(), following)) - {o.operation_id} for o in operations}


def _reached(roots: list[int], following: Mapping[int, list[tuple[int, int]]]) -> Iterator[int]:
    seen, left = set(roots), list(roots)
    while left:
        for new, operation in following.get(left.pop(), ()):
            yield operation
            if new not in seen:
                seen.add(new)
                left.append(new)


def _step(operation: Operation, time: int, verdict: Verdict, why: str, others: tuple[int, ...]) -> RollbackStep:
    sides = [column.newest(operation.row) for column in (columns.SOURCE_COORDINATES, columns.SINK_COORDINATES)]
    source, sink = (() if side is None else tuple(map(tuple, side.tolist())) for side in sides)
    return RollbackStep(operation.operation_id, operation.kind, time, verdict, why, others, None, source, sink)
