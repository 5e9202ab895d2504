"""What is stuck: the list for people. Reads."""

from __future__ import annotations

from sv_pipeline.edits.recovery.unfinished import Unfinished, find_unfinished
from sv_pipeline.graph.chunked_graph import ChunkedGraph

__all__ = ["list_stuck"]


def list_stuck(graph: ChunkedGraph, *, min_age: float = 0.0, deep: bool = False) -> list[Unfinished]:
    """Unfinished operations that are old enough, or whose age cannot be told."""
    del deep
    return [one for one in find_unfinished(graph) if (age := one.age()) is None or age >= min_age]
