"""Lists the unfinished operations of a graph, ours and those of other software, for sensors and people."""

from __future__ import annotations

import time
from dataclasses import replace

from sv_pipeline.arguments import parse_flag, parse_seconds
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.operations.unfinished import Unfinished, find_unfinished
from sv_pipeline.recovery.foreign import UNLOCKED_SECONDS, Looked, advance, forget, look, watched
from sv_pipeline.recovery.orphans import orphaned_locks
from sv_pipeline.table.rehearsal import rehearsed

__all__ = ["all_unfinished", "list_stuck"]


def all_unfinished(graph: ChunkedGraph, *, seconds: float = 0.3, note: bool = True) -> list[Unfinished]:
    """Return all unfinished operations that are known by now, ordered by id.

    Parameters
    ----------
    seconds
        How long to search the part of the log that was not searched before, in seconds.
    note
        Whether to write down what was found, so that it need not be searched for again; a dry run writes nothing.
    """
    if not note:
        graph = replace(graph, table=rehearsed(graph.table))
    seconds = parse_seconds(seconds, "time to look through the log")
    found_now = {} if graph.table.read_only else advance(graph.table, seconds=seconds).found
    others = found_now | watched(graph.table)
    looked = Looked({*others}, set())
    if others and not graph.table.read_only:
        looked = look(graph, others, seconds=seconds)
    found = find_unfinished(graph, looked.known)
    if others and not graph.table.read_only:
        now = time.time()
        stay = {
            one.operation_id
            for one in found
            if one.foreign
            and (one.scope is not None or one.damage or now - others.get(one.operation_id, now) < UNLOCKED_SECONDS)
        }
        young = {i for i, since in others.items() if now - since < UNLOCKED_SECONDS}
        forget(graph.table, looked.known - (looked.undecided & young) - stay)
    # Other software leaves refused requests at CREATED, so they cannot be told from requests that are being planned.
    return [one for one in found if not one.foreign or one.scope is not None or one.damage]


def list_stuck(graph: ChunkedGraph, *, min_age: float = 0.0, deep: bool = False, note: bool = True) -> list[Unfinished]:
    """Return the unfinished operations that are old enough, or whose age is unknown.

    Parameters
    ----------
    min_age
        Minimum age, in seconds.
    deep
        Also return finished operations that have left locks; this scans the whole table.
    note
        See `all_unfinished`.
    """
    min_age, deep = parse_seconds(min_age, "age of an operation"), parse_flag(deep, "deep")
    note = parse_flag(note, "note")
    found = all_unfinished(graph, seconds=60.0, note=note)
    if deep:
        known = {one.operation_id for one in found}
        found += [one for one in orphaned_locks(graph) if one.operation_id not in known]
    return [one for one in found if (age := one.age()) is None or age >= min_age]
