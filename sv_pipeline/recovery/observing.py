"""Tells for how long the owners of unfinished operations have not changed, from an observer's repeated looks. Pure.

Only the observer's own clock is used. The observer stores the notes between looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sv_pipeline.operations.unfinished import Unfinished

__all__ = ["Observation", "Observations"]


LONGEST_GAP = 10.0
"""Longest time between two looks that counts as watched, in seconds: the machine may have been suspended meanwhile, or
its clock set."""


OPERATION = "operation "
"""Begin of the names under which notes hold operations."""


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


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
        seen = {
            int(name.removeprefix(OPERATION)): Observation(
                str(one["owner"]), _seconds(one["unchanged since"]), float(one["watched for seconds"])
            )
            for name, one in (notes or {}).items()
            if name.startswith(OPERATION)
        }
        return cls(seen, _seconds(notes["looked at"]) if notes and "looked at" in notes else 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the notes as a value for JSON that people can read; empty if no operation is unfinished."""
        if not self.seen:
            return {}
        operations = {
            f"{OPERATION}{operation_id}": {
                "owner": one.signature,
                "unchanged since": _text(one.since),
                "watched for seconds": round(one.watched, 3),
            }
            for operation_id, one in self.seen.items()
        }
        return {"looked at": _text(self.at), **operations}

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
