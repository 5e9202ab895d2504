"""Which unfinished operations are dead, as seen by one observer over several looks. Pure; the observer keeps the notes.

Only the observer's own clock counts: since when has the owner's cell been as it is now?
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sv_pipeline.edits.recovery.unfinished import Unfinished

__all__ = ["Backoff", "Observations"]


@dataclass(frozen=True)
class Observations:
    """Signature of each unfinished operation, and since when (seconds) it is that."""

    seen: Mapping[int, tuple[str, float]]

    @classmethod
    def of(cls, notes: Mapping[str, Any] | None) -> Observations:
        """Out of JSON."""
        return cls({int(i): (str(signature), float(since)) for i, (signature, since) in (notes or {}).items()})

    def to_dict(self) -> dict[str, list[Any]]:
        """As JSON."""
        return {str(i): list(pair) for i, pair in self.seen.items()}

    def look(self, found: Iterable[Unfinished], now: float) -> Observations:
        """With what is seen now; what is not unfinished any more is forgotten."""
        fresh = {}
        for one in found:
            signature, since = self.seen.get(one.operation_id, ("", now))
            fresh[one.operation_id] = (one.signature, min(since, now) if signature == one.signature else now)
        return Observations(fresh)

    def unmoved(self, operation_id: int, now: float) -> float:
        """Seconds for which an operation has not moved."""
        return now - self.seen[operation_id][1]


@dataclass(frozen=True)
class Backoff:
    """When a recovery that failed is tried again."""

    first_seconds: float = 60.0
    max_attempts: int = 4

    def due(self, failures: int, last_failure: float | None, now: float) -> bool:
        """Whether the next attempt may begin; never after the last one."""
        if failures >= self.max_attempts:
            return False
        return not failures or last_failure is None or now - last_failure >= self.first_seconds * 2 ** (failures - 1)
