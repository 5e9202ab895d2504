"""What unfinished operations of a graph need of its fork, so that nothing is removed that recovery or a commit uses.

An operation of ours has a row in the log before it reads the fork. So an operation that is not listed yet reads a
generation that is at least the latest one of the moment before the listing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sv_pipeline.operations.pair import find_misfit
from sv_pipeline.operations.unfinished import Unfinished
from sv_pipeline.operations.watch_list import watched
from sv_pipeline.recovery.foreign import advance
from sv_pipeline.recovery.scan import all_unfinished
from sv_pipeline.registry import Dataset
from sv_pipeline.retention import Bound
from sv_pipeline.segmentation.fork.garbage import Needs
from sv_pipeline.segmentation.fork.records import NEWEST, read_value
from sv_pipeline.table.rehearsal import rehearsed

__all__ = ["needs_of_operations"]

SEARCH_SECONDS = 60.0
"""Time in which the log is searched for operations of other software, in seconds."""
MILLISECOND = 1_000_000


def needs_of_operations(dataset: Dataset, grace: timedelta, *, note: bool = True) -> Needs:
    """Return what the unfinished operations of a graph need of its fork.

    Parameters
    ----------
    dataset
        The graph.
    grace
        Grace period: the clock of an operation's owner may differ from that of the storage by so much.
    note
        Whether to write down how far the log was searched, and what was found.
    """
    if dataset.existing_table is None:
        if read_value(dataset.fork.store().kv, NEWEST) is None:
            return Needs()  # a graph that has only voxels, and no edits
        return Needs(unclear=("the fork has edits, but the graph's table does not exist",))
    graph = dataset.graph if note else replace(dataset.graph, table=rehearsed(dataset.graph.table))
    if (misfit := find_misfit(graph)) is not None:
        # The table does not know what works on this fork; and to make them fit may need an earlier generation.
        return Needs(unclear=(misfit.message.rstrip("."),))
    if graph.table.read_only:
        return Needs(unclear=("the table is opened read-only, so its log cannot be searched for other software",))
    ahead = advance(graph.table, seconds=SEARCH_SECONDS).ahead
    if ahead:
        return Needs(unclear=(f"the last {ahead} operations of the log are still to be searched",))
    unfinished = all_unfinished(graph, seconds=SEARCH_SECONDS)
    listed = {one.id for one in unfinished}
    left = [i for i, (_, notes) in watched(graph.table).items() if notes is None and i not in listed]
    if left:
        return Needs(unclear=(f"{len(left)} operations of other software are still to be examined",))
    unclear = tuple(f"operation {one.id} cannot be read: {one.damage}" for one in unfinished if one.damage)
    margin = grace // timedelta(milliseconds=1)
    began = [one.began for one in unfinished if one.began is not None]
    return Needs(
        bounds=tuple(bound for one in unfinished if (bound := _bound(dataset, one, margin)) is not None),
        # The margin is subtracted once more when the age of files is compared.
        files_since=min(began) * MILLISECOND if began else None,
        unclear=unclear,
    )


def _bound(dataset: Dataset, one: Unfinished, margin: int) -> Bound | None:
    """Return the part of the history that recovery or the commit of an operation reads; None if it reads nothing."""
    why = f"operation {one.id} is unfinished"
    if one.scope is None:
        return None if one.began is None else Bound(why, time=(one.began - margin) * MILLISECOND)
    record = dataset.fork.record(one.id)
    pins = [one.scope.generation, None if record is None else record.generation_before]
    generations = [pin for pin in pins if pin is not None]
    commit_time = (one.scope.timestamp - 1) * MILLISECOND if one.foreign and one.scope.chunks else None
    if not generations and commit_time is None:
        return None
    return Bound(why, generation=min(generations, default=None), commit_time=commit_time)
