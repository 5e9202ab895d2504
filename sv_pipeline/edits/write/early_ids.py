"""Ids of new nodes that are reserved before an edit is planned, with the same request as the operation's own id.

Which chunks get new nodes is nearly always known from the points: an edit replaces the nodes above its points, from
layer 2 to the root, and sometimes some beside them in the region. Ids that the plan does not need are never used, and
those that it needs beyond these are reserved once it is known. Older software has used some ids twice; the commit looks
for that while it writes its intent.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.layers import parent_chunks
from sv_pipeline.table import counters

__all__ = ["EarlyIds", "chunks_above"]


MAX_CHUNKS = 32
"""Largest number of layer 2 chunks for which ids are reserved; with more points than that, few chunks get new nodes."""


def chunks_above(graph: ChunkedGraph, coordinates: npt.NDArray[np.int64]) -> list[int]:
    """Return the ids of layer 2 chunks, coordinates of shape (n, 3), and of all chunks above them."""
    if len(coordinates) > MAX_CHUNKS:
        return []
    layers = range(2, graph.n_layers + 1)
    ids = [parent_chunks(graph.layout, coordinates, 2, layer) for layer in layers]
    return [int(chunk) for chunk in np.unique(np.concatenate(ids))]


@dataclass(eq=False)
class EarlyIds:
    """Ids for the new nodes of one edit."""

    operation_id: int = 0
    """The id of the operation, if it was reserved with them."""
    _free: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def with_operation(cls, graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], per_chunk: int) -> Self:
        """Reserve the id of an operation, and ids of nodes above layer 2 chunks, coordinates of shape (n, 3).

        None are reserved in a chunk that has no room for them: the plan may not need any there.
        """
        wanted = [(chunk, per_chunk) for chunk in chunks_above(graph, coordinates)]
        operation_id, firsts = counters.new_operation(graph.table, graph.layout, wanted)
        found = cls(operation_id)
        for (chunk, count), first in zip(wanted, firsts, strict=True):
            if first is not None:
                found._free[chunk] = counters.node_ids(graph.layout, chunk, first, count).tolist()
        return found

    @classmethod
    def reserve(cls, graph: ChunkedGraph, coordinates: npt.NDArray[np.int64], per_chunk: int, known: EarlyIds) -> Self:
        """Reserve more ids in the chunks for which ``known`` has none; see :meth:`with_operation`."""
        wanted = [(chunk, per_chunk) for chunk in chunks_above(graph, coordinates) if chunk not in known._free]
        found = cls()
        with suppress(InputError):  # a chunk is full; the plan may not need any there
            firsts = counters.reserve_many(graph.table, graph.layout, wanted) if wanted else []
            for (chunk, count), first in zip(wanted, firsts, strict=True):
                found._free[chunk] = counters.node_ids(graph.layout, chunk, first, count).tolist()
        return found

    def joined(self, other: EarlyIds) -> EarlyIds:
        """Return these ids together with those of other chunks."""
        return EarlyIds(self.operation_id, {**other._free, **self._free})

    def take(self, chunk: int, count: int) -> list[int]:
        """Return up to ``count`` ids of a chunk; each is given out once."""
        free = self._free.get(chunk, [])
        self._free[chunk] = free[count:]
        return free[:count]
