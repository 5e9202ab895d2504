"""Recovers several operations: watches all their owners at the same time, then recovers one after the other."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator

from sv_pipeline.arguments import parse_callback, parse_flag, parse_ids
from sv_pipeline.defects import DefectError
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import parse_operation
from sv_pipeline.operations.errors import NotStuckError
from sv_pipeline.operations.ownership import beat_seconds
from sv_pipeline.operations.refusal import EditRefused, Reason
from sv_pipeline.operations.unfinished import find_unfinished
from sv_pipeline.recovery.claiming import Watched, observation_seconds
from sv_pipeline.recovery.report import RecoveryReport
from sv_pipeline.recovery.run import process_token, recover
from sv_pipeline.storage.wall import our_error

__all__ = ["recover_all", "watch_all"]

log = logging.getLogger(__name__)


def recover_all(
    graph: ChunkedGraph,
    operation_ids: Iterable[int],
    *,
    progress: Callable[[float], None] | None = None,
    take_locks: bool = False,
) -> Iterator[tuple[int, RecoveryReport | SvPipelineError]]:
    """Recover operations one after the other, after watching all their owners at the same time.

    The failure of one recovery does not prevent the others. An operation that needs an object which another one has
    locked is tried again at the end.

    Parameters
    ----------
    operation_ids
        Ids of the operations, in any order.
    progress
        Called with the remaining time of watching, in seconds.
    take_locks
        As for :func:`~sv_pipeline.recovery.run.recover`.

    Yields
    ------
    tuple[int, RecoveryReport | SvPipelineError]
        Each operation id with the report of its recovery, or with the error that prevented it; in order of ids, except
        for operations that were tried again.
    """
    wanted = sorted({parse_operation(one) for one in parse_ids(operation_ids, "operations").tolist()})
    return _recovered(graph, wanted, parse_callback(progress, "progress"), parse_flag(take_locks, "take_locks"))


def _recovered(
    graph: ChunkedGraph, wanted: list[int], progress: Callable[[float], None] | None, take_locks: bool
) -> Iterator[tuple[int, RecoveryReport | SvPipelineError]]:
    seen = watch_all(graph, wanted, progress)
    # The second attempt claims with the token of the first one, so it need not watch the owner again.
    token = process_token(f"recovery-{secrets.token_hex(6)}")
    blocked = []
    for operation_id in wanted:
        done = _recover_one(graph, operation_id, seen.get(operation_id), token, take_locks=take_locks)
        if isinstance(done, EditRefused) and done.reason is Reason.LOCKED and operation_id != wanted[-1]:
            log.info("operation %d will be tried again at the end: %s", operation_id, done)
            blocked.append(operation_id)
        else:
            yield operation_id, done
    for operation_id in blocked:
        yield operation_id, _recover_one(graph, operation_id, None, token, take_locks=take_locks)


def _recover_one(
    graph: ChunkedGraph, operation_id: int, watched: Watched | None, token: str, *, take_locks: bool
) -> RecoveryReport | SvPipelineError:
    """Recover one operation; return the report, or the error that prevented it."""
    try:
        if watched is not None and watched.seconds < observation_seconds():
            return NotStuckError(f"operation {operation_id} is not stuck: its owner is at work.")
        return recover(graph, operation_id, token=token, watched=watched, take_locks=take_locks)
    except SvPipelineError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not keep the other operations from recovery
        return our_error(error) or DefectError(error)


def watch_all(
    graph: ChunkedGraph, operation_ids: Iterable[int], progress: Callable[[float], None] | None = None
) -> dict[int, Watched]:
    """Watch the owners of operations, all at the same time, for as long as a single one would be watched.

    Returns
    -------
    dict[int, Watched]
        For each operation that is still unfinished, the cell of its owner, and for how long it has not changed.
    """
    wanted, began = set(operation_ids), time.monotonic()
    since: dict[int, tuple[str, float]] = {}
    while True:
        looked = time.monotonic()
        now = {one.operation_id: one.signature for one in find_unfinished(graph, wanted) if one.operation_id in wanted}
        since = {
            i: (signature, since[i][1] if i in since and since[i][0] == signature else looked)
            for i, signature in now.items()
        }
        left = began + observation_seconds() - looked
        if left <= 0 or not now:
            return {i: Watched(signature, looked - first) for i, (signature, first) in since.items()}
        if progress is not None:
            progress(left)
        time.sleep(min(left + 0.01, beat_seconds() / 2))
