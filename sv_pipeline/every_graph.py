"""Asks something of every registered graph at once, within a time. One that fails or hangs does not hide the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.registry import Registry

__all__ = ["PATIENCE", "ask_every_graph"]

Answer = TypeVar("Answer")

AT_ONCE = 8
PATIENCE = 40.0
"""Seconds for all graphs; a tick of a Dagster sensor may take 60."""


def ask_every_graph(
    registry: Registry,
    ask: Callable[[Registry, str], Answer],
    graph_ids: Sequence[str] | None = None,
    *,
    patience: float = PATIENCE,
) -> dict[str, Answer | str]:
    """The answer of each graph (default: of all), by graph id; or what is wrong, as text.

    Parameters
    ----------
    ask
        Called in a thread for each graph, which it may outlive.
    patience
        Seconds; a graph that has not answered by then counts as one that cannot be read.
    """
    wanted = registry.graph_ids() if graph_ids is None else sorted(graph_ids)
    deadline = time.monotonic() + patience
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ask")
    futures = [pool.submit(ask, registry, graph_id) for graph_id in wanted]
    answers: dict[str, Answer | str] = {}
    try:
        for graph_id, future in zip(wanted, futures, strict=True):
            try:
                answers[graph_id] = future.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                answers[graph_id] = f"it did not answer within {patience:.0f} s"
            except (SvPipelineError, OSError, ValueError) as error:
                answers[graph_id] = str(error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answers
