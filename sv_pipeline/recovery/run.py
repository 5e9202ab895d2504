"""Runs a recovery from beginning to end, in one process: claim, roll back, replay ("make again"), prove.

A recovery that dies is started again from its claim, never from the middle. So the edit is always planned on a state
from which the cells of every earlier attempt have been removed.
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
"""Prefix of the log entry of an operation that was abandoned."""
_NONCE = secrets.token_hex(4)


def process_token(label: str) -> str:
    """Make a token for a recovery by this process; a process started again for the same purpose gets another one."""
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
        Token of the new owner; random by default. No two processes may use the same token; see `process_token`.
    watch_seconds, watched, progress
        See :func:`~sv_pipeline.recovery.claiming.claim`.
    tell
        Called at the end of each of `STAGES` with its name and a summary of what it found or did.
    abandoned
        Reason not to replay the edit. If it is given, the operation is only rolled back, and the log gets the reason.
        It is noted before the roll-back, so a later recovery that continues after this one died abandons the operation
        as well.
    take_locks
        Whether to put back missing locks of the operation's scope first, where nobody has edited since.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    NotStuckError
        If there is nothing to recover.
    RecoveryStoppedError
        If its locks are not as they should be; nothing was changed.
    SvPipelineError
        If the recovery failed. The operation stays in the list, with the reason, and can be recovered again.
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
    """Roll one operation back for good, release its locks, and record the reason in the log.

    This is for an operation whose recovery fails repeatedly, or whose edit is no longer wanted.

    Parameters
    ----------
    user, reason
        The user who abandons it, and the reason; both are recorded in the log.
    token, progress, tell, take_locks
        As for :func:`recover`.

    Raises
    ------
    InputError
        If the reason is empty.
    ConflictError
        If the edit is complete; it can only be recovered and then undone.
    FinishedError
        If the operation has already ended without effect.
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
    """Raise ConflictError if the edit is complete: such an edit is undone, by an operation of its own."""
    state, graph_id, operation_id = claimed.assessment.state, claimed.graph.graph_id, claimed.operation_id
    if state is State.FINISHED:
        raise ConflictError(
            f"operation {operation_id} is complete: only its locks are left, so there is nothing to abandon.",
            remedy=f"Run 'sv-pipeline stuck recover {graph_id} {operation_id}', which releases them; then "
            f"'sv-pipeline undo {graph_id} {operation_id}' if the edit is not wanted.",
        )
    if state is State.UNPROVEN:
        raise ConflictError(
            f"operation {operation_id} has ended and holds no lock; it is listed because something around it is not "
            f"sound: {claimed.found.progress.error}",
            remedy=f"Run 'sv-pipeline verify {graph_id}' and repair what it names; then run 'stuck recover' again.",
        )


def _prove(claimed: Claim) -> dict[str, Any]:
    """Check the rows and voxels around the ended operation. If something is wrong, it stays in the list."""
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
    """Note an error in the open row, so that the list of unfinished operations shows it."""
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
