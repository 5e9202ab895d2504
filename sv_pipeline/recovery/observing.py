"""Which unfinished operations are dead, as seen by one observer over several looks. Pure; the observer keeps the notes.

Only the observer's own clock counts: since when has the owner's cell been as it is now?
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sv_pipeline.operations.unfinished import Unfinished

__all__ = ["Observation", "Observations"]


LONGEST_GAP = 10.0
"""Seconds between two looks that count as watched at most: the machine may have slept, or its clock been set."""


class Observation(NamedTuple):
    """One unfinished operation, as it was at all looks since it moved last."""

    signature: str
    since: float
    """Time of the first of these looks, seconds."""
    watched: float = 0.0
    """Seconds between these looks, no gap counted as more than `LONGEST_GAP`."""


@dataclass(frozen=True)
class Observations:
    """What an observer has noted about each unfinished operation."""

    seen: Mapping[int, Observation]
    at: float = 0.0
    """Time of the last look, seconds."""

    @classmethod
    def of(cls, notes: Mapping[str, Any] | None) -> Observations:
        """Out of JSON."""
        notes = dict(notes or {})
        at = float(notes.pop("at", 0.0))
        return cls({int(i): Observation(str(one[0]), *map(float, one[1:3])) for i, one in notes.items()}, at)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; nothing if nothing is unfinished."""
        return {**{str(i): list(one) for i, one in self.seen.items()}, "at": self.at} if self.seen else {}

    def look(self, found: Iterable[Unfinished], now: float) -> Observations:
        """With what is seen now; what is not unfinished any more is forgotten."""
        fresh = {}
        gap = min(max(now - self.at, 0.0), LONGEST_GAP)
        for one in found:
            before = self.seen.get(one.operation_id)
            if before is None or before.signature != one.signature:
                fresh[one.operation_id] = Observation(one.signature, now)
            else:
                fresh[one.operation_id] = Observation(one.signature, min(before.since, now), before.watched + gap)
        return Observations(fresh, now)

    def unmoved(self, operation_id: int, now: float) -> float:
        """Seconds for which an operation has not moved."""
        return now - self.seen[operation_id].since
