"""A recovery from beginning to end: claim, roll back, make again, prove. One process does all of it.

A recovery that dies is begun again from its claim, never in the middle: so the edit is always planned on a state from
which the cells of every earlier attempt are gone.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sv_pipeline.arguments import LONGEST_TEXT, parse_callback, parse_line, parse_text, parse_user
from sv_pipeline.errors import ConflictError, CorruptionError, SvPipelineError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.errors import FinishedError, NotStuckError
from sv_pipeline.operations.ownership import FIXED_TIME
from sv_pipeline.operations.refusal import OwnershipLostError
from sv_pipeline.operations.unfinished import Phase
from sv_pipeline.operations.writing import RECOVERY, REQUEST
from sv_pipeline.recovery.assessment import State
from sv_pipeline.recovery.claiming import ROLLED_BACK, Claim, Watched, claim
from sv_pipeline.recovery.cleanup import Cleanup, clean_up
from sv_pipeline.recovery.replay import give_up, let_go, make_again
from sv_pipeline.recovery.report import RecoveryReport
from sv_pipeline.table.interface import RowMutation
from sv_pipeline.verify.postcheck import prove_ended
from sv_pipeline.waiting import doing

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STAGES", "abandon", "process_token", "recover"]

log = logging.getLogger(__name__)

STAGES = ("claim", "roll back", "make again", "prove")
ABANDONED = "failed:abandoned: "
"""What the log says of an operation that was given up begins with this."""
_NONCE = secrets.token_hex(4)


def process_token(label: str) -> str:
    """Token for a recovery by this process: a process that is started again for the same purpose gets another one."""
    return f"{label}-{socket.gethostname()}-{os.getpid()}-{_NONCE}"


def recover(
    graph: ChunkedGraph,
    operation_id: int,
    *,
    token: str | None = None,
    watch_seconds: float | None = None,
    watched: Watched | None = None,
    progress: Callable[[float], None] | None = None,
    tell: Callable[[str, dict[str, Any]], None] | None = None,
    abandoned: str = "",
    take_locks: bool = False,
) -> RecoveryReport:
    """Recover one operation.

    Parameters
    ----------
    token
        Token of the new owner; default: a random one. No two processes may use the same one: see `process_token`.
    watch_seconds, watched, progress
        See :func:`~sv_pipeline.recovery.claiming.claim`.
    tell
        Called at the end of each of `STAGES` with its name and what it found or did.
    abandoned
        Why the edit is not to be made again: it is taken back, and the log says so. This is noted before anything is
        taken back, so a recovery that goes on after this one died abandons the operation, too.
    take_locks
        Whether locks of its scope that are missing are put back first, where nobody has edited since.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    NotStuckError
        If there is nothing to recover.
    RecoveryStoppedError
        If its locks are not as they should be; nothing was changed.
    SvPipelineError
        If it failed on the way; the operation stays listed, with the reason, and can be recovered again.
    """
    operation_id = parse_operation(operation_id)
    token = process_token(f"recovery-{secrets.token_hex(6)}") if token is None else parse_line(token, "token")
    if not isinstance(abandoned, str) or abandoned:
        abandoned = parse_text(abandoned, "reason to abandon an operation", longest=2 * LONGEST_TEXT)
    tell = parse_callback(tell, "tell") or _say_nothing
    clock = _Clock()
    claimed = claim(
        graph,
        operation_id,
        token,
        watch_seconds=watch_seconds,
        watched=watched,
        progress=progress,
        take_locks=take_locks,
    )
    clock.lap("claim")
    found, state = claimed.found, claimed.assessment.state
    tell("claim", claimed.summary)
    what = f"recovers operation {operation_id} of graph {graph.graph_id}"
    with claimed.own.beating(), doing(what), _noted(claimed):
        over = found.progress.outcome
        if abandoned:
            _refuse_to_abandon_what_has_ended(claimed)
            over = f"{ABANDONED}{abandoned}"
            claimed.note(outcome=over)
            reach("abandoned")
        cleanup, again = Cleanup(), state in (State.HELD, State.UNWRITTEN)
        if again:
            cleanup = clean_up(claimed)
        clock.lap("roll back")
        tell("roll back", cleanup.summary)
        if over and state not in (State.FINISHED, State.UNPROVEN):
            replay = give_up(claimed, over, _outcome(over))
        else:
            replay = make_again(claimed) if again else let_go(claimed)
        clock.lap("make again")
        tell("make again", replay.summary)
    proof = _prove(claimed)
    clock.lap("prove")
    tell("prove", proof)
    reach("proven")
    return RecoveryReport(
        graph.graph_id,
        operation_id,
        found.kind,
        found.user,
        str(state),
        found.progress.attempts,
        cleanup,
        replay,
        clock.seconds,
        proof,
    )


def abandon(
    graph: ChunkedGraph,
    operation_id: int,
    *,
    user: str,
    reason: str,
    token: str | None = None,
    progress: Callable[[float], None] | None = None,
    tell: Callable[[str, dict[str, Any]], None] | None = None,
    take_locks: bool = False,
) -> RecoveryReport:
    """Take one operation back for good: nothing of it stays, its locks are freed, and the log says why.

    For an operation whose recovery fails again and again, or whose edit is not wanted any more.

    Parameters
    ----------
    user, reason
        Who decided it, and why; the log says both.
    token, progress, tell, take_locks
        As for :func:`recover`.

    Raises
    ------
    InputError
        If there is no reason.
    ConflictError
        If all of it is written: then it is recovered and undone, not abandoned.
    FinishedError
        If it has ended without effect already, so that there is nothing left to abandon.
    SvPipelineError
        As for :func:`recover`.
    """
    why = f"by {parse_user(user).strip()}: {parse_text(reason, 'reason to abandon an operation')}"
    try:
        return recover(
            graph,
            operation_id,
            token=token,
            progress=progress,
            tell=tell,
            abandoned=why,
            take_locks=take_locks,
        )
    except FinishedError as error:
        if error.complete:
            raise ConflictError(
                f"operation {operation_id} is complete, so there is nothing to abandon.",
                remedy=f"Run 'sv-pipeline undo {graph.graph_id} {operation_id}' if the edit is not wanted.",
            ) from error
        raise


def _refuse_to_abandon_what_has_ended(claimed: Claim) -> None:
    """Only what is not complete can be abandoned: a complete edit is undone, by an operation of its own."""
    state, graph_id, operation_id = claimed.assessment.state, claimed.graph.graph_id, claimed.operation_id
    if state is State.FINISHED:
        raise ConflictError(
            f"operation {operation_id} is complete: only its locks are left, so there is nothing to abandon.",
            remedy=f"Run 'sv-pipeline stuck recover {graph_id} {operation_id}', which gives them back; then "
            f"'sv-pipeline undo {graph_id} {operation_id}' if the edit is not wanted.",
        )
    if state is State.UNPROVEN:
        raise ConflictError(
            f"operation {operation_id} has ended and holds no lock; it is listed since something around it is not "
            f"sound: {claimed.found.progress.error}",
            remedy=f"Run 'sv-pipeline verify {graph_id}' and repair what it names; then 'stuck recover' proves it.",
        )


def _prove(claimed: Claim) -> dict[str, Any]:
    """What holds around the operation now that it has ended. Where something does not, it stays in the list."""
    reach("prove")
    try:
        proof = prove_ended(claimed.graph, claimed.operation_id, claimed.found)
    except CorruptionError as error:
        progress = replace(claimed.found.progress, phase=Phase.UNPROVEN, error=str(error)[:2000])
        kept = [claimed.own.cell, RECOVERY.set(asdict(progress), FIXED_TIME), REQUEST.set({}, FIXED_TIME)]
        claimed.graph.table.mutate([RowMutation(claimed.own.key, kept)])
        raise
    if claimed.assessment.state is State.UNPROVEN:
        claimed.own.end()
    return proof


@contextmanager
def _noted(claimed: Claim) -> Iterator[None]:
    """Note an error in the open row, so that the list says why the operation is still there."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OwnershipLostError) and not claimed.own.is_mine:
            raise NotStuckError(error.message) from error
        try:
            claimed.note(error=f"{type(error).__name__}: {error}"[:2000])
        except SvPipelineError:
            log.warning("operation %d: the reason could not be noted", claimed.operation_id, exc_info=True)
        raise


def _outcome(text: str) -> str:
    if text == ROLLED_BACK:
        return "rolled back"
    return "abandoned" if text.startswith(ABANDONED) else "refused"


def _say_nothing(_stage: str, _what: dict[str, Any]) -> None: ...


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
