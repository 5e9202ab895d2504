"""The lag of all graphs: how far their coarser mips are behind. An unreadable graph does not hide the others."""

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
    """The lag of one graph, or the reason why it is unknown."""

    graph_id: str
    lag: Lag | None = None
    """None if the graph has no fork yet, or the fork cannot be read."""
    operations: tuple[int, ...] = ()
    """Operations whose entries are in the ledger."""
    fingerprint: str = ""
    """Hash of the ledger; it changes when entries are added or worked on."""
    error: str | None = None

    @property
    def behind(self) -> bool:
        """Whether the ledger has entries."""
        return self.lag is not None and self.lag.entries > 0

    @property
    def seconds(self) -> float:
        """Age of the oldest entry in seconds; 0 if there is no entry whose age is known."""
        return (self.lag.oldest_seconds or 0.0) if self.lag else 0.0

    def __str__(self) -> str:
        if self.error:
            return f"{self.graph_id}: {self.error}"
        return f"{self.graph_id}: {'no fork yet' if self.lag is None else self.lag}"


def lags(registry: Registry, graph_ids: Sequence[str] | None = None, *, patience: float = PATIENCE) -> list[GraphLag]:
    """Return the lag of graphs, ordered by graph id.

    Parameters
    ----------
    registry
        The registry of the graphs.
    graph_ids
        Graphs to read; default: all.
    patience
        Seconds after which a graph that has not answered counts as unreadable.
    """
    answers = ask_every_graph(registry, _read, graph_ids, patience=patience)
    return [GraphLag(graph_id, error=a) if isinstance(a, str) else a for graph_id, a in answers.items()]


def lag_of_graph(dataset: Dataset) -> Lag:
    """Return the lag of one graph, after entering edits by other software in its ledger.

    Raises NotFoundError if the graph has no fork.
    """
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
        """Whether no graph is behind for too long, and all could be read."""
        return not self.late and not self.unknown

    @property
    def explanation(self) -> str | None:
        """The graphs that are late or unreadable, as text; None if there are none."""
        return "; ".join(map(str, (*self.late, *self.unknown))) or None


def lag_verdict(found: Sequence[GraphLag], max_seconds: float) -> LagVerdict:
    """Compare the lag of graphs with a threshold in seconds."""

    def total(count: Callable[[Lag], int]) -> int:
        return sum(count(each.lag) for each in found if each.lag)

    return LagVerdict(
        late=tuple(each for each in found if each.seconds > max_seconds),
        unknown=tuple(each for each in found if each.error),
        worst_seconds=max((each.seconds for each in found), default=0.0),
        operations=total(lambda lag: lag.entries),
        boxes=total(lambda lag: lag.boxes),
    )
