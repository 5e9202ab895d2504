"""How far the coarser mips of all graphs are behind. A graph that cannot be read does not hide the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sv_pipeline.pyramid.foreign import note_foreign_edits
from sv_pipeline.registry import PATIENCE, Dataset, Registry, ask_every_graph
from sv_pipeline.segmentation.fork.pending import Lag, lag_of

__all__ = ["GraphLag", "LagVerdict", "lag_of_graph", "lag_verdict", "lags"]


@dataclass(frozen=True)
class GraphLag:
    """How far one graph is behind, or why that is not known."""

    graph_id: str
    lag: Lag | None = None
    """None if there is no fork yet, or it cannot be read."""
    operations: tuple[int, ...] = ()
    fingerprint: str = ""
    """Of what is listed; another one means that something was added, or done."""
    error: str | None = None

    @property
    def behind(self) -> bool:
        """Whether there is something to do."""
        return self.lag is not None and self.lag.entries > 0

    @property
    def seconds(self) -> float:
        """Age of the oldest entry; 0 if nothing is behind or no entry tells."""
        return (self.lag.oldest_seconds or 0.0) if self.lag else 0.0

    def __str__(self) -> str:
        if self.error:
            return f"{self.graph_id}: {self.error}"
        return f"{self.graph_id}: {'no fork yet' if self.lag is None else self.lag}"


def lags(registry: Registry, graph_ids: Sequence[str] | None = None, *, patience: float = PATIENCE) -> list[GraphLag]:
    """The lag of graphs (default: of all), by graph id.

    Parameters
    ----------
    registry
        Where they are registered.
    patience
        Seconds; a graph that has not answered by then counts as one that cannot be read.
    """
    answers = ask_every_graph(registry, _read, graph_ids, patience=patience)
    return [GraphLag(graph_id, error=a) if isinstance(a, str) else a for graph_id, a in answers.items()]


def lag_of_graph(dataset: Dataset) -> Lag:
    """The lag of one graph; other software's edits are entered in its ledger first. NotFoundError without a fork."""
    note_foreign_edits(dataset)
    return dataset.fork.lag()


def _read(registry: Registry, graph_id: str) -> GraphLag:
    dataset = registry.get(graph_id)
    if not dataset.fork.exists():
        return GraphLag(graph_id)
    note_foreign_edits(dataset)
    entries = dataset.fork.pending()
    listed = repr([(entry.operation_id, entry.boxes) for entry in entries]).encode()
    return GraphLag(
        graph_id,
        lag_of(entries),
        tuple(entry.operation_id for entry in entries),
        hashlib.blake2b(listed, digest_size=6).hexdigest(),
    )


@dataclass(frozen=True)
class LagVerdict:
    """Whether all graphs keep up."""

    late: tuple[GraphLag, ...]
    unknown: tuple[GraphLag, ...]
    worst_seconds: float
    operations: int
    boxes: int

    @property
    def passed(self) -> bool:
        """No graph is behind for too long, and all could be read."""
        return not self.late and not self.unknown

    @property
    def explanation(self) -> str | None:
        """The graphs that are late or unreadable; None where all is well."""
        return "; ".join(map(str, (*self.late, *self.unknown))) or None


def lag_verdict(found: Sequence[GraphLag], max_seconds: float) -> LagVerdict:
    """Hold the lag of graphs against a threshold in seconds."""

    def total(count: Callable[[Lag], int]) -> int:
        return sum(count(each.lag) for each in found if each.lag)

    return LagVerdict(
        late=tuple(each for each in found if each.seconds > max_seconds),
        unknown=tuple(each for each in found if each.error),
        worst_seconds=max((each.seconds for each in found), default=0.0),
        operations=total(lambda lag: lag.entries),
        boxes=total(lambda lag: lag.boxes),
    )
