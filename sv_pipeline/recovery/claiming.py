"""Takes over an operation whose owner is dead: watches the owner, checks the locks, and exchanges the owner's token.

Nothing is changed before the owner has been watched for long enough and the locks are proven. The exchange succeeds
only if the owner's cell has still not changed. So if two processes want to take over, or the owner continues meanwhile,
exactly one of them wins, and the other one notices.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sv_pipeline.arguments import parse_callback, parse_flag, parse_seconds, shown
from sv_pipeline.errors import ConflictError, InputError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.errors import NotStuckError, RecoveryStoppedError
from sv_pipeline.operations.other_software import quiet_seconds
from sv_pipeline.operations.ownership import FIXED_TIME, OBSERVED_BEATS, OWNER, Owner, Ownership, beat_seconds, open_key
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.operations.unfinished import Phase, RecoveryProgress, Unfinished, read_unfinished, why_not_unfinished
from sv_pipeline.operations.writing import RECOVERY, SCOPE, OperationRow, new_identity, read_identity
from sv_pipeline.recovery.assessment import Assessment, State, assess
from sv_pipeline.recovery.missing_locks import put_locks_back
from sv_pipeline.table.interface import CellMatch, RowView, SetCell

__all__ = ["ROLLED_BACK", "Claim", "Watched", "claim", "observation_seconds", "take_up", "watch"]

log = logging.getLogger(__name__)

ROLLED_BACK = (
    "failed:rolled_back: other software failed while it wrote this edit, and gave its locks back; what it had written "
    "is taken out again."
)
"""The entry in the log for an edit whose user was told by other software that it failed; it is not replayed."""


@dataclass(frozen=True)
class Watched:
    """An observation of an owner over some time, made before the claim."""

    signature: str
    """The owner's cell, which was the same at each look."""
    seconds: float
    """Time between the first look and the last one, in seconds, by the clock of the process that looked."""


@dataclass(frozen=True, eq=False)
class Claim:
    """An operation that a recovery has taken over."""

    graph: ChunkedGraph
    found: Unfinished
    """The operation as it was when it was claimed."""
    assessment: Assessment
    own: Ownership
    """The recovery's ownership of the operation."""

    @property
    def operation_id(self) -> int:
        """Id of the operation."""
        return self.found.operation_id

    @property
    def row(self) -> OperationRow:
        """The operation's rows for this attempt, whose cells are newer than those already in the log."""
        operation = self.found.operation
        cells = [cell for some in operation.row.values() for cell in some] if operation is not None else []
        newest = max((cell.timestamp for cell in cells), default=0)
        identity = read_identity(self.graph.table, self.operation_id) or new_identity()
        return OperationRow(self.graph.table, self.operation_id, self.own, newest + 1, identity)

    @property
    def summary(self) -> dict[str, Any]:
        """A summary of the claimed operation, for people."""
        found, judged = self.found, self.assessment
        return {
            "found": str(judged.state),
            "operation": found.operation_id,
            "kind": found.kind,
            "user": found.user,
            "status": found.status,
            "recoveries": found.progress.attempts,
            "chunks": len(found.scope.chunks) if found.scope else 0,
            "locked": f"{judged.n_locked} of {judged.n_wanted}",
            "generation": str(found.scope.generation) if found.scope else "none",
            "voxels are in": judged.record is not None,
        }

    def begin_replay(self) -> None:
        """Record in the open row that rows may be written from now on. Requires that the roll-back is complete.

        Raises
        ------
        ConflictError
            If rows of an earlier attempt may still exist; nothing was changed.
        OwnershipLostError
            If another process has taken over the operation.
        """
        self.own.verify()
        phase = RecoveryProgress.of(self._open_row()).phase
        if phase != Phase.CLEANED:
            raise ConflictError(
                f"operation {self.operation_id} cannot be made again now: its open row says {phase!r}, so what an "
                "earlier attempt wrote may still be there.",
                remedy=f"Run 'sv-pipeline stuck recover {self.graph.graph_id} {self.operation_id}', which begins with "
                "the roll-back.",
            )
        self.note(phase=Phase.REPLAYING)

    def note(self, **changes: str | int) -> None:
        """Change fields of the recovery's progress in the open row."""
        progress = replace(RecoveryProgress.of(self._open_row()), **changes)  # type: ignore[arg-type]
        self.own.change([RECOVERY.set(asdict(progress), FIXED_TIME)])

    def _open_row(self) -> dict:  # type: ignore[type-arg]
        key = open_key(self.operation_id)
        return self.graph.table.read_rows([key], [RECOVERY.key], newest_only=True).get(key, {})


def observation_seconds() -> float:
    """Return the minimum time for which an owner is watched, in seconds."""
    return OBSERVED_BEATS * beat_seconds()


def claim(
    graph: ChunkedGraph,
    operation_id: int,
    token: str,
    *,
    watch_seconds: float | None = None,
    watched: Watched | None = None,
    progress: Callable[[float], None] | None = None,
    take_locks: bool = False,
) -> Claim:
    """Take over an operation.

    Parameters
    ----------
    token
        Token of the new owner. A second claim with the same token resumes it.
    watch_seconds
        Time for which the owner's cell must not change, in seconds; the default and minimum is `observation_seconds`.
    watched
        An earlier observation of the owner. If it is long enough and the owner's cell is still the same, the owner is
        not watched again; the exchange then succeeds only on exactly that cell.
    progress
        Called with the remaining time of watching, in seconds.
    take_locks
        Whether to put back missing locks of the operation's scope, where nobody has edited since.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    NotStuckError
        If the operation is finished, its owner is alive, or another process takes it over first.
    RecoveryStoppedError
        If its locks are not as they should be; nothing was changed.
    """
    operation_id, take_locks = parse_operation(operation_id), parse_flag(take_locks, "take_locks")
    watch_seconds = None if watch_seconds is None else parse_seconds(watch_seconds, "time to watch an owner")
    progress = parse_callback(progress, "progress")
    if watched is not None and not isinstance(watched, Watched):
        raise InputError(f"{shown(watched)} is no observation of an owner.", remedy="Pass a Watched, or leave it out.")
    found = _require(graph, operation_id)
    if found.owner is None or found.owner.token != token:
        watch_seconds = _require_quiet(graph, found, watched, watch_seconds)
        if not _seen_long_enough(found, watched, watch_seconds):
            found = watch(graph, found, watch_seconds, progress)
        try:
            assess(graph, found)
        except RecoveryStoppedError:
            if not take_locks and not found.unlocked:
                raise
            put_locks_back(graph, found)
            assess(graph, found)
        reach("claim")
        _exchange(graph, found, token)
        reach("claimed")
    return take_up(graph, operation_id, token)


def _require_quiet(
    graph: ChunkedGraph, found: Unfinished, watched: Watched | None, seconds: float | None
) -> float | None:
    """Return how long the owner has to be watched, in seconds; None means the minimum.

    Other software shows no heartbeat, so the locks of its operation have to be old.

    Raises
    ------
    NotStuckError
        If they are not old enough.
    """
    quiet = quiet_seconds(graph)
    if not found.foreign or found.owner is not None or _seen_long_enough(found, watched, quiet):
        return seconds
    age = time.time() - found.moved_at / 1000
    if age < 0:  # the lock's clock is ahead of ours, so its age is unknown and the owner is watched instead
        return max(seconds or 0.0, quiet)
    if age < quiet:
        raise NotStuckError(
            f"operation {found.operation_id} is of other software, which shows no heartbeat, and its newest lock is "
            f"{age:.0f} s old: its worker may be at work. It is left alone until that is {quiet:.0f} s old."
        )
    return seconds


def _seen_long_enough(found: Unfinished, watched: Watched | None, seconds: float | None) -> bool:
    """Return whether the owner was observed unchanged for long enough, and has not changed since."""
    if watched is None:
        return False
    return watched.signature == found.signature and watched.seconds >= max(observation_seconds(), seconds or 0)


def take_up(graph: ChunkedGraph, operation_id: int, token: str) -> Claim:
    """Resume an operation that was claimed with this token, as it is now.

    Raises
    ------
    NotStuckError
        If the operation is finished, or another process has claimed it since.
    """
    found = _require(graph, operation_id)
    if found.owner is None or found.owner.token != token:
        raise NotStuckError(f"operation {operation_id} belongs to {found.owner and found.owner.token!r} by now.")
    own = Ownership(graph.table, operation_id, token, found.owner.beats)
    _require_own(own)
    assessment = assess(graph, found)
    scope = found.scope
    voxels = scope is not None and bool(scope.chunks) and graph.fork.exists()
    if voxels and assessment.state in (State.HELD, State.UNWRITTEN):
        # From here on the earlier owner cannot commit voxels, even if it is alive after all.
        reach("fence")
        graph.fork.take_fence(operation_id, token)
        reach("fenced")
        _require_own(own)
        assessment = assess(graph, found)
    return Claim(graph, found, assessment, own)


def _require_own(own: Ownership) -> None:
    try:
        own.verify()
    except OwnershipLostError as error:
        raise NotStuckError(error.message) from error


def watch(
    graph: ChunkedGraph,
    found: Unfinished,
    seconds: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Unfinished:
    """Watch the owner of an operation; return the operation as it is at the end, if the owner's cell has not changed.

    Raises
    ------
    NotStuckError
        If the owner's cell changes, or the operation ends.
    """
    until = time.monotonic() + max(observation_seconds(), seconds or 0)
    while (left := until - time.monotonic()) > 0:
        if progress is not None:
            progress(left)
        time.sleep(min(left, beat_seconds() / 2))
        now = _require(graph, found.operation_id)
        if now.signature != found.signature:
            raise NotStuckError(f"operation {found.operation_id} is not stuck: its owner is at work.")
        found = now
    return found


def _require(graph: ChunkedGraph, operation_id: int) -> Unfinished:
    found = read_unfinished(graph, operation_id)
    if found is None:
        raise why_not_unfinished(graph, operation_id)
    return found


def _exchange(graph: ChunkedGraph, found: Unfinished, token: str) -> None:
    """Replace the owner's token by a new one, if the owner's cell is still the one that was observed."""
    progress = replace(found.progress, attempts=found.progress.attempts + 1, error="")
    if progress.phase not in (Phase.OVER, Phase.UNPROVEN):
        progress = replace(progress, phase=Phase.CLAIMED)  # this recovery starts from the beginning
    if found.unlocked:
        progress = replace(progress, outcome=ROLLED_BACK)
    changes = [
        SetCell(OWNER, Owner(token, 0).encode(), FIXED_TIME),
        RECOVERY.set(asdict(progress), FIXED_TIME),
    ]
    if found.foreign and found.scope is not None and SCOPE.key not in found.row:
        # The scope was derived from its locks, which recovery releases, so it is stored in the open row.
        changes.append(SCOPE.set(asdict(found.scope), FIXED_TIME))
    key = open_key(found.operation_id)
    if found.owner is None:
        graph.table.check_and_mutate(key, [CellMatch(OWNER)], if_unmatched=changes)
    else:
        graph.table.check_and_mutate(key, [CellMatch(OWNER, found.owner.encode())], if_matched=changes)
    now = read_unfinished(graph, found.operation_id)
    if now is None or now.owner is None or now.owner.token != token:
        raise NotStuckError(f"operation {found.operation_id}: another process recovers it, or its owner has continued.")
    if found.owner is None and _log_row(now) != _log_row(found):
        # Another recovery has ended it since it was watched, and removed its open row; or its worker has continued.
        Ownership(graph.table, found.operation_id, token).end()
        raise NotStuckError(f"operation {found.operation_id}: somebody has ended or continued it since it was watched.")
    log.info("operation %d now belongs to %s", found.operation_id, token)


def _log_row(found: Unfinished) -> RowView:
    return {} if found.operation is None else found.operation.row
