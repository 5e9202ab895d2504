"""A recovery from beginning to end: claim, take back, make again. Its steps can be run by several processes, too."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sv_pipeline.edits.recovery.assessment import State
from sv_pipeline.edits.recovery.claiming import Claim, claim
from sv_pipeline.edits.recovery.cleanup import Cleanup, clean_up
from sv_pipeline.edits.recovery.errors import NotStuckError
from sv_pipeline.edits.recovery.replay import Replay, let_go, make_again
from sv_pipeline.edits.recovery.report import RecoveryReport
from sv_pipeline.edits.refusal import OwnershipLostError
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.waiting import doing

__all__ = ["heal_rows", "recover", "replay_of"]

log = logging.getLogger(__name__)


def recover(
    graph: ChunkedGraph,
    operation_id: int,
    *,
    token: str | None = None,
    watch_seconds: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> RecoveryReport:
    """Recover one operation.

    Parameters
    ----------
    token
        Of the new owner; default: a random one.
    watch_seconds, progress
        See :func:`~sv_pipeline.edits.recovery.claiming.claim`.

    Raises
    ------
    NotStuckError
        If there is nothing to recover.
    RecoveryStoppedError
        If its locks are not as they should be; nothing was changed.
    SvPipelineError
        If it failed on the way; the operation stays listed, with the reason, and can be recovered again.
    """
    clock = _Clock()
    claimed = claim(
        graph, operation_id, token or f"recovery-{secrets.token_hex(6)}", watch_seconds=watch_seconds, progress=progress
    )
    clock.lap("claim")
    with claimed.own.beating(), doing(f"recovers operation {operation_id} of graph {graph.graph_id}"):
        cleanup = heal_rows(claimed)
        clock.lap("cleanup")
        replay = replay_of(claimed)
        clock.lap("replay")
    found = claimed.found
    return RecoveryReport(
        graph.graph_id,
        operation_id,
        found.kind,
        found.user,
        str(claimed.assessment.state),
        found.progress.attempts,
        cleanup,
        replay,
        clock.seconds,
    )


def heal_rows(claimed: Claim) -> Cleanup:
    """Second step: nothing is left of what the earlier attempt wrote."""
    if claimed.assessment.state not in (State.HELD, State.UNWRITTEN):
        return Cleanup()
    with _noted(claimed):
        return clean_up(claimed)


def replay_of(claimed: Claim) -> Replay:
    """Third step: the edit is made, or it is over."""
    with _noted(claimed):
        if claimed.assessment.state in (State.HELD, State.UNWRITTEN):
            return make_again(claimed)
        return let_go(claimed)


@dataclass
class _noted:  # noqa: N801 - used as a function
    """Note an error in the open row, so that the list says why the operation is still there."""

    claimed: Claim

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OwnershipLostError) and not self.claimed.own.is_mine:
            raise NotStuckError(error.message) from error
        if isinstance(error, Exception):
            try:
                self.claimed.note(error=f"{type(error).__name__}: {error}"[:2000])
            except SvPipelineError:
                log.warning("operation %d: the reason could not be noted", self.claimed.operation_id, exc_info=True)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
