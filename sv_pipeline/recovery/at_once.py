"""Recovering several operations: their owners are watched at the same time, then one recovery follows the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.errors import NotStuckError
from sv_pipeline.operations.ownership import beat_seconds
from sv_pipeline.operations.unfinished import find_unfinished
from sv_pipeline.recovery.claiming import Watched, observation_seconds
from sv_pipeline.recovery.report import RecoveryReport
from sv_pipeline.recovery.run import recover

__all__ = ["recover_all", "watch_all"]


def recover_all(
    graph: ChunkedGraph,
    operation_ids: Iterable[int],
    *,
    progress: Callable[[float], None] | None = None,
    take_locks: bool = False,
) -> Iterator[tuple[int, RecoveryReport | SvPipelineError]]:
    """Recover operations one after the other, once all their owners have been watched.

    Parameters
    ----------
    progress
        Called with the seconds of watching that are left.
    take_locks
        As for :func:`~sv_pipeline.recovery.run.recover`.

    Yields
    ------
    tuple[int, RecoveryReport | SvPipelineError]
        Each operation with what was done, or with the reason why it was not recovered; by operation id.
    """
    wanted = sorted(set(operation_ids))
    seen = watch_all(graph, wanted, progress)
    for operation_id in wanted:
        watched = seen.get(operation_id)
        try:
            if watched is not None and watched.seconds < observation_seconds():
                raise NotStuckError(f"operation {operation_id} is not stuck: its owner is at work.")
            yield operation_id, recover(graph, operation_id, watched=watched, take_locks=take_locks)
        except SvPipelineError as error:
            yield operation_id, error


def watch_all(
    graph: ChunkedGraph, operation_ids: Iterable[int], progress: Callable[[float], None] | None = None
) -> dict[int, Watched]:
    """Watch the owners of operations, all at the same time, for as long as one has to be watched.

    Returns
    -------
    dict[int, Watched]
        For each operation that is unfinished, its owner's cell, and for how long that has not changed.
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
