"""Tells for how long the owners of unfinished operations have not changed, from an observer's repeated looks. Pure.

Only the observer's own clock is used. The observer stores the notes between looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sv_pipeline.operations.unfinished import Unfinished

__all__ = ["Observation", "Observations"]


LONGEST_GAP = 10.0
"""Longest time between two looks that counts as watched, in seconds: the machine may have been suspended meanwhile, or
its clock set."""


class Observation(NamedTuple):
    """One unfinished operation, as it was at each look since its owner's cell last changed."""

    signature: str
    """The owner's cell."""
    since: float
    """Time of the first of these looks, in seconds since the epoch."""
    watched: float = 0.0
    """Total time between these looks, in seconds; each gap counts at most `LONGEST_GAP`."""


@dataclass(frozen=True)
class Observations:
    """An observer's notes about all unfinished operations."""

    seen: Mapping[int, Observation]
    """Observation of each operation, by its id."""
    at: float = 0.0
    """Time of the last look, in seconds since the epoch."""

    @classmethod
    def of(cls, notes: Mapping[str, Any] | None) -> Observations:
        """Make the notes from the value that :meth:`to_dict` returned."""
        notes = dict(notes or {})
        at = float(notes.pop("at", 0.0))
        return cls({int(i): Observation(str(one[0]), *map(float, one[1:3])) for i, one in notes.items()}, at)

    def to_dict(self) -> dict[str, Any]:
        """Return the notes as a value for JSON; empty if no operation is unfinished."""
        return {**{str(i): list(one) for i, one in self.seen.items()}, "at": self.at} if self.seen else {}

    def look(self, found: Iterable[Unfinished], now: float) -> Observations:
        """Return the notes after a look at the operations that are unfinished now; others are dropped."""
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
        """Return for how long the owner's cell of an operation has not changed, in seconds."""
        return now - self.seen[operation_id].since
