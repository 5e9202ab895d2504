"""The receivers of a registered graph: delivers to all of them, finds one by name, and reports their status."""

from __future__ import annotations

import time
from typing import Any

from sv_pipeline.errors import NotFoundError
from sv_pipeline.event_receivers import Receiver, receivers_of
from sv_pipeline.feed.delivery import Delivery, deliver, places
from sv_pipeline.feed.journal import advance
from sv_pipeline.registry import Dataset

__all__ = ["deliver_to_all", "receiver_named", "status_of_receivers"]


def deliver_to_all(dataset: Dataset, *, seconds: float = 20.0) -> list[Delivery]:
    """Deliver events to each receiver of a graph except Dagster, whose sensor fetches its events itself.

    Parameters
    ----------
    seconds
        Time for all receivers together, in seconds; each gets at least one request.
    """
    wanted = [receiver for receiver in receivers_of(dataset.config.events) if receiver.to != "dagster"]
    deadline = time.monotonic() + seconds
    outcomes = []
    for i, receiver in enumerate(wanted):
        left = max(0.0, deadline - time.monotonic()) / (len(wanted) - i)
        outcomes.append(deliver(dataset.graph, receiver, seconds=left))
    return outcomes


def receiver_named(dataset: Dataset, name: str) -> Receiver:
    """Return a receiver of a graph; raise NotFoundError, with the known names, if there is none with this name."""
    known = {receiver.name: receiver for receiver in receivers_of(dataset.config.events)}
    if name not in known:
        raise NotFoundError(
            f"graph {dataset.graph_id!r} has no receiver {name!r} (it has: {', '.join(known) or 'none'}).",
            remedy="Receivers are named in the section 'events' of its YAML, and in the environment.",
        )
    return known[name]


def status_of_receivers(dataset: Dataset) -> list[dict[str, Any]]:
    """Return the status of each receiver: name, kind, number of its last event, number of events, and error."""
    wanted = receivers_of(dataset.config.events)
    if not wanted:
        return []
    table = dataset.graph.table
    head, known = advance(table), places(table)
    found = []
    for receiver in wanted:
        place = known.get(receiver.name)
        found.append(
            {
                "receiver": receiver.name,
                "to": receiver.to,
                "number": None if place is None or place.feed != head.feed else place.number,
                "of": head.length,
                "error": "" if place is None else place.error,
                "failing_since": None if place is None else place.failing_since,
            }
        )
    return found
