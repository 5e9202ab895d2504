"""Taking an operation over: its owner is watched until it is surely dead, the locks are proven, the token is exchanged.

Nothing is changed before all of that has held, and the exchange itself succeeds only if the owner has still not moved:
so of two who want to take over, and of a recoverer and an owner that wakes up, one wins and the other one knows.
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
from sv_pipeline.table.interface import CellMatch, SetCell

__all__ = ["ROLLED_BACK", "Claim", "Watched", "claim", "observation_seconds", "take_up", "watch"]

log = logging.getLogger(__name__)

ROLLED_BACK = (
    "failed:rolled_back: other software failed while it wrote this edit, and gave its locks back; what it had written "
    "is taken out again."
)
"""What the log says of an edit whose user has been told that it failed: it is not made again."""


@dataclass(frozen=True)
class Watched:
    """What somebody else has seen of an owner over several looks."""

    signature: str
    """The owner's cell, as it was at all of these looks."""
    seconds: float
    """Seconds between the first look and the last one, by the clock of the process that looked."""


@dataclass(frozen=True, eq=False)
class Claim:
    """An operation that belongs to a recovery."""

    graph: ChunkedGraph
    found: Unfinished
    """As it was when it was claimed."""
    assessment: Assessment
    own: Ownership

    @property
    def operation_id(self) -> int:
        """Of the operation."""
        return self.found.operation_id

    @property
    def row(self) -> OperationRow:
        """Its rows, for this attempt: what is written to the log is newer than what is there."""
        operation = self.found.operation
        cells = [cell for some in operation.row.values() for cell in some] if operation is not None else []
        newest = max((cell.timestamp for cell in cells), default=0)
        identity = read_identity(self.graph.table, self.operation_id) or new_identity()
        return OperationRow(self.graph.table, self.operation_id, self.own, newest + 1, identity)

    @property
    def summary(self) -> dict[str, Any]:
        """What was found, for people."""
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
        """Say in the open row that rows may be written from now on; only once all earlier ones are taken back.

        Raises
        ------
        ConflictError
            If something may have been written since the roll-back; nothing was changed.
        OwnershipLostError
            If the operation went to somebody else.
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
        """Change what the open row says about the recovery."""
        progress = replace(RecoveryProgress.of(self._open_row()), **changes)  # type: ignore[arg-type]
        self.own.change([RECOVERY.set(asdict(progress), FIXED_TIME)])

    def _open_row(self) -> dict:  # type: ignore[type-arg]
        key = open_key(self.operation_id)
        return self.graph.table.read_rows([key], [RECOVERY.key], newest_only=True).get(key, {})


def observation_seconds() -> float:
    """How long an owner is watched at least."""
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
    """Take an operation over.

    Parameters
    ----------
    token
        Token of the new owner. The process that claims with it again keeps what it has.
    watch_seconds
        How long nothing may move; default and minimum: `observation_seconds`.
    watched
        What an observer has seen already. If that is long enough, and the owner's cell is still the same, it is not
        watched again: the exchange succeeds on exactly that cell only.
    progress
        Called with the seconds that are left.
    take_locks
        Whether locks of its scope that are missing are put back, where nobody has edited since.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    NotStuckError
        If it is finished, its owner lives, or somebody else is faster.
    RecoveryStoppedError
        If its locks are not as they should be; nothing was changed.
    """
    operation_id, take_locks = parse_operation(operation_id), parse_flag(take_locks, "take_locks")
    watch_seconds = None if watch_seconds is None else parse_seconds(watch_seconds, "time to watch an owner")
    progress = parse_callback(progress, "progress")
    if watched is not None and not isinstance(watched, Watched):
        raise InputError(f"{shown(watched)} is no observation of an owner.", remedy="Give a Watched, or leave it out.")
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
    """How long the owner has to be watched: one of other software shows no heartbeat, so its locks have to be old.

    Raises
    ------
    NotStuckError
        If they are not.
    """
    quiet = quiet_seconds(graph)
    if not found.foreign or found.owner is not None or _seen_long_enough(found, watched, quiet):
        return seconds
    age = time.time() - found.moved_at / 1000
    if age < 0:  # by a clock that is ahead of ours: then only what is seen counts
        return max(seconds or 0.0, quiet)
    if age < quiet:
        raise NotStuckError(
            f"operation {found.operation_id} is of other software, which shows no heartbeat, and its newest lock is "
            f"{age:.0f} s old: its worker may be at work. It is left alone until that is {quiet:.0f} s old."
        )
    return seconds


def _seen_long_enough(found: Unfinished, watched: Watched | None, seconds: float | None) -> bool:
    """Whether an observer has already seen that an owner does not move, and it has not moved since."""
    if watched is None:
        return False
    return watched.signature == found.signature and watched.seconds >= max(observation_seconds(), seconds or 0)


def take_up(graph: ChunkedGraph, operation_id: int, token: str) -> Claim:
    """An operation that was claimed with this token, as it is now.

    Raises
    ------
    NotStuckError
        If it is finished, or somebody else has claimed it since.
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
        # From here on the earlier owner cannot commit voxels, whatever it believes.
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
    """Wait whether the owner of an operation shows that it lives; as it is at the end, if not.

    Raises
    ------
    NotStuckError
        If it does, or ends.
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
    """Put the token in the place of the owner's, if that is still what was seen."""
    progress = replace(found.progress, attempts=found.progress.attempts + 1, error="")
    if progress.phase not in (Phase.OVER, Phase.UNPROVEN):
        progress = replace(progress, phase=Phase.CLAIMED)  # whatever an earlier recovery did, this one begins anew
    if found.unlocked:
        progress = replace(progress, outcome=ROLLED_BACK)
    changes = [
        SetCell(OWNER, Owner(token, 0).encode(), FIXED_TIME),
        RECOVERY.set(asdict(progress), FIXED_TIME),
    ]
    if found.foreign and found.scope is not None and SCOPE.key not in found.row:
        # What it holds follows from its locks, which recovery gives back: from here on its open row says it.
        changes.append(SCOPE.set(asdict(found.scope), FIXED_TIME))
    key = open_key(found.operation_id)
    if found.owner is None:
        graph.table.check_and_mutate(key, [CellMatch(OWNER)], if_unmatched=changes)
    else:
        graph.table.check_and_mutate(key, [CellMatch(OWNER, found.owner.encode())], if_matched=changes)
    now = read_unfinished(graph, found.operation_id)
    if now is None or now.owner is None or now.owner.token != token:
        raise NotStuckError(f"operation {found.operation_id}: somebody else recovers it, or its owner woke up.")
    log.info("operation %d now belongs to %s", found.operation_id, token)
