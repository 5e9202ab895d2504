"""Replays an operation: makes the request in its rows again, with the same id, under the locks that it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sv_pipeline.edits.history import redo, undo
from sv_pipeline.edits.merging import merge
from sv_pipeline.edits.requests import MergeRequest, Points, SplitRequest
from sv_pipeline.edits.session import Resumption
from sv_pipeline.edits.splitting import split
from sv_pipeline.edits.write.cells import ATTEMPTS_TO_PUT_EDGES
from sv_pipeline.edits.write.commit import CommittedEdit
from sv_pipeline.edits.write.locking import LockPatience
from sv_pipeline.errors import CorruptionError
from sv_pipeline.failpoints import reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.log import Operation, OperationStatus, about
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.unfinished import Phase, Unfinished
from sv_pipeline.operations.writing import REQUEST
from sv_pipeline.recovery.assessment import State
from sv_pipeline.recovery.claiming import Claim
from sv_pipeline.recovery.cleanup import release
from sv_pipeline.table import columns

__all__ = ["Replay", "give_up", "let_go", "make_again", "options_of", "request_of"]

PATIENCE = LockPatience(10.0)
"""The wait for locks is short, since the operation that holds an object may be stuck as well and be recovered next."""


@dataclass(frozen=True)
class Replay:
    """The outcome of an operation's recovery."""

    outcome: str
    """``replayed``, ``refused``, ``rolled back``, ``abandoned``, ``released``, ``swept`` or ``proven``."""
    text: str = ""
    """Why it was not replayed."""
    edit: CommittedEdit | None = None
    """The edit, if it was replayed."""

    @property
    def summary(self) -> dict[str, str]:
        """A summary of the outcome, for people."""
        roots = [] if self.edit is None else self.edit.roots.tolist()
        return {
            "outcome": self.outcome,
            "reason": self.text or "none",
            "new roots": ", ".join(map(str, roots)) or "none",
        }


def make_again(claim: Claim) -> Replay:
    """Make the requested edit again, after the earlier attempt was rolled back.

    Raises
    ------
    ConflictError
        If the open row does not say that the roll-back is complete.
    EditRefused
        With Reason.LOCKED if another operation holds an object, or Reason.RESTORED_APART if table and fork do not
        belong together; the replay can be tried again later. Other refusals end the operation and are not raised.
    """
    found, scope = claim.found, claim.found.scope
    assert scope is not None
    held = claim.assessment.state is State.HELD
    resumption = Resumption(claim.row, scope if held else None, scope.timestamp + ATTEMPTS_TO_PUT_EDGES)
    claim.begin_replay()
    reach("replay")
    try:
        edit = _run(claim.graph, found, resumption)
    except EditRefused as refusal:
        if refusal.reason in (Reason.LOCKED, Reason.RESTORED_APART):
            raise
        return give_up(claim, f"refused:{refusal.reason}: {refusal}")
    return Replay("replayed", edit=edit)


def give_up(claim: Claim, text: str, outcome: str = "refused") -> Replay:
    """End an operation without a replay: the log gets the reason, and its locks are released."""
    claim.note(phase=Phase.OVER, outcome=text)
    reach("give up")
    row = claim.row
    row.say_how_it_ended(text)
    release(claim)
    row.forget_plan()
    claim.own.end()
    return Replay(outcome, text)


def let_go(claim: Claim) -> Replay:
    """End an operation that needs no replay."""
    found, row = claim.found, claim.row
    if claim.assessment.state is State.OVER:
        return give_up(claim, found.progress.outcome)
    if claim.assessment.state is State.UNPROVEN:
        return Replay("proven")  # it stays in the list until the proof succeeds
    if claim.assessment.state is State.FINISHED:
        release(claim)
        claim.graph.table.mutate([row.without_chunks()])
        row.clear_scope()
        return Replay("released")
    status = None if found.operation is None else found.operation.status
    text = f"failed:abandoned: its process ended before it wrote anything; found by {claim.own.token}."
    if found.operation is not None and status not in (OperationStatus.SUCCESS, OperationStatus.EXCEPTION):
        row.say_how_it_ended(text)
    row.forget_plan()  # part of the plan may be stored although the scope is not
    claim.own.end()
    return Replay("swept", text)


# -- the request ------------------------------------------------------------------------------------------------------


def _run(graph: ChunkedGraph, found: Unfinished, resumption: Resumption) -> CommittedEdit:
    operation = found.operation
    if operation is None:
        raise RecoveryStoppedError(
            f"operation {found.operation_id} has no row in the log, so its request is unknown.",
            remedy="Its locks are kept; see docs/sv_splitting_recovery.md.",
        )
    options = options_of(found)
    if operation.kind in ("undo", "redo"):
        revert = undo if operation.kind == "undo" else redo
        allowed = bool(options.get("allow_partial", True))
        return revert(
            graph, about(operation) or 0, found.user, allow_partial=allowed, patience=PATIENCE, resumption=resumption
        )
    request = request_of(operation, options)
    volume = graph.fork.open() if _has_fork(graph) else None
    if isinstance(request, MergeRequest):
        return merge(graph, request, volume=volume, patience=PATIENCE, resumption=resumption)
    return split(graph, request, volume=volume, patience=PATIENCE, resumption=resumption)


def options_of(found: Unfinished) -> dict[str, Any]:
    """Return the options of a request that the log has no columns for; raise CorruptionError if they are unreadable."""
    try:
        return dict(REQUEST.newest(found.row) or {})
    except (CorruptionError, TypeError, ValueError) as error:
        raise CorruptionError(f"the request of operation {found.operation_id} cannot be read: {error}.") from error


def request_of(operation: Operation, options: dict[str, Any]) -> MergeRequest | SplitRequest:
    """Restore the request of a merge or split from its cells in the log and its options.

    Raises
    ------
    CorruptionError
        If these do not form a request.
    """
    try:
        return _read_request(operation, options)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(f"the request of operation {operation.operation_id} cannot be read: {error}.") from error


def _read_request(operation: Operation, options: dict[str, Any]) -> MergeRequest | SplitRequest:
    row, by_id = operation.row, options.get("by_id", [True, True])
    sides = []
    named = options.get("named", [None, None])
    for i, (ids, where) in enumerate(
        (
            (columns.SOURCE_IDS, columns.SOURCE_COORDINATES),
            (columns.SINK_IDS, columns.SINK_COORDINATES),
        )
    ):
        found, coordinates = ids.newest(row), where.newest(row)
        if named[i] is not None:
            found = np.asarray(named[i], np.uint64)
        use_ids = found is not None and (by_id[i] or coordinates is None)
        points = Points.of(found if use_ids and found is not None else (), coordinates)
        if use_ids and coordinates is not None and "by_id" not in options:
            points = replace(points, asked=points.coordinates)  # other software has moved these points itself
        sides.append(points)
    offset = options.get("offset", False)
    if offset is False:  # the request was made by other software
        stored = columns.BOUNDING_BOX_OFFSET.newest(row)
        offset = None if stored is None or not len(stored) else np.asarray(stored).ravel().tolist()
    user, margin = operation.user or "", None if offset is None else (offset[0], offset[1], offset[2])
    if operation.kind == "merge":
        return MergeRequest(user, sides[0], sides[1], margin)
    names = ("path_augmentation", "disallow_isolating_cut", "memory", "region_memory", "allow_partial")
    # Software without this option took the cut of the first region, whatever it separated.
    chosen = {"allow_partial": True, **{n: options[n] for n in names if n in options}}
    return SplitRequest(user, sides[0], sides[1], margin, **chosen)


def _has_fork(graph: ChunkedGraph) -> bool:
    return graph.fork.exists()
