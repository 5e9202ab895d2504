"""Tells what a recovery would do, without doing it. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.errors import RecoveryStoppedError
from sv_pipeline.operations.unfinished import Unfinished, read_unfinished, why_not_unfinished
from sv_pipeline.recovery.assessment import Assessment, State, assess
from sv_pipeline.recovery.replay import options_of, request_of
from sv_pipeline.segmentation.fork.records import OperationRecord

__all__ = ["DryRun", "dry_run"]

_WHAT = {
    State.EMPTY: "record in the log that it failed: nothing was written",
    State.FINISHED: "release its locks: the edit is complete",
    State.UNPROVEN: "prove its rows and voxels again: it has ended, but they were not as they should be",
    State.OVER: "release its locks: an earlier recovery has taken it back, and it cannot be made again",
    State.HELD: "take back what it wrote, then make it again under its locks",
    State.UNWRITTEN: "release the locks that it has, then make it again: nothing was written",
}


@dataclass(frozen=True)
class DryRun:
    """An unfinished operation, and what recovery would do with it."""

    found: Unfinished
    assessment: Assessment | None
    """The assessment; None if recovery would stop."""
    stopped: str
    """Why recovery would stop; empty if it would not."""
    differing: int | None
    """Number of voxels that the operation has changed; None if none are committed."""
    request: str
    """The request of the operation, for people."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for JSON and for lines in a terminal."""
        found, scope, judged = self.found, self.found.scope, self.assessment
        age = found.age()
        return {
            "operation": found.operation_id,
            "kind": found.kind,
            "user": found.user,
            "status": found.status,
            "age_seconds": None if age is None else round(age),
            "owner": "none (other software)" if found.owner is None else f"{found.owner.token}",
            "beats": None if found.owner is None else found.owner.beats,
            "roots": list(scope.roots) if scope else [],
            "chunks": list(scope.chunks) if scope else [],
            "locked": None if judged is None else f"{judged.n_locked} of {judged.n_wanted} roots and chunks",
            "new_rows_written": None if judged is None else judged.n_new_rows,
            "voxels_are_in": None if judged is None else judged.record is not None,
            "generation": scope.generation if scope else None,
            "voxels_to_put_back": self.differing,
            "recoveries_so_far": found.progress.attempts,
            "last_error": found.progress.error or None,
            "would": self.stopped if judged is None else _WHAT[judged.state],
            "request": self.request,
        }


def dry_run(graph: ChunkedGraph, operation_id: int) -> DryRun:
    """Determine what the recovery of an operation would do now.

    Raises
    ------
    NotFoundError
        If there is no such operation.
    NotStuckError
        If the operation is finished.
    """
    operation_id = parse_operation(operation_id)
    found = read_unfinished(graph, operation_id)
    if found is None:
        raise why_not_unfinished(graph, operation_id)
    assessment, stopped = None, ""
    try:
        assessment = assess(graph, found)
    except RecoveryStoppedError as error:
        stopped = f"nothing: {error}"
        if found.unlocked and not found.damage:
            stopped = (
                "lock its objects again unless they were edited, and take back what it wrote; it is not made again"
            )
    record = None if assessment is None else assessment.record
    differing = None if record is None else _differing(graph, record)
    return DryRun(found, assessment, stopped, differing, _request(found))


def _differing(graph: ChunkedGraph, record: OperationRecord) -> int:
    now = graph.fork.open()
    then = graph.fork.open(version=record.generation_before)
    pairs = [(now[box.slices].read(), then[box.slices].read()) for box in record.boxes]
    return sum(int(np.count_nonzero(a.result() != b.result())) for a, b in pairs)


def _request(found: Unfinished) -> str:
    operation = found.operation
    if operation is None:
        return "unknown: it has no row in the log"
    if operation.kind not in ("merge", "split"):
        return f"{operation.kind} by {found.user!r}"
    try:
        request = request_of(operation, options_of(found))
    except CorruptionError as error:
        return str(error)
    sides = []
    for points in (request.sources, request.sinks):
        what = points.pointed if points.coordinates is not None else points.ids
        sides.append(", ".join(str(one) for one in what.tolist()[:5]))
    return f"{operation.kind} by {found.user!r}: {sides[0]} {'and' if operation.kind == 'merge' else 'from'} {sides[1]}"
