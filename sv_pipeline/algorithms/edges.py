"""Atomic edges as arrays: pairs of supervoxels with their affinities and areas. Knows no file and no graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import row_starts
from sv_pipeline.ids import UInt64Array

__all__ = ["Edges"]


def _no_ids() -> UInt64Array:
    return np.empty(0, np.uint64)


def _no_affinities() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Edges:
    """Atomic edges as parallel arrays of shape (n,)."""

    node_ids1: UInt64Array = field(default_factory=_no_ids)
    node_ids2: UInt64Array = field(default_factory=_no_ids)
    affinities: npt.NDArray[np.float32] = field(default_factory=_no_affinities)
    areas: UInt64Array = field(default_factory=_no_ids)

    def __len__(self) -> int:
        return len(self.node_ids1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edges):
            return NotImplemented
        return all(np.array_equal(a, b) for a, b in zip(self.arrays, other.arrays, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def join(cls, parts: Iterable[Edges]) -> Edges:
        """Concatenate the edges of all parts."""
        arrays = [part.arrays for part in parts]
        return cls(*map(np.concatenate, zip(*arrays, strict=True))) if arrays else cls()

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays node_ids1, node_ids2, affinities and areas."""
        return self.node_ids1, self.node_ids2, self.affinities, self.areas

    @property
    def pairs(self) -> UInt64Array:
        """Ids of both ends of each edge, shape (n, 2)."""
        return np.stack([self.node_ids1, self.node_ids2], axis=-1)

    def take(self, rows: npt.ArrayLike) -> Edges:
        """Select edges by index or mask."""
        at = np.asarray(rows)
        return Edges(*(array[at] for array in self.arrays))

    def distinct(self) -> Edges:
        """Return each pair once, smaller id first, without loops, with the largest affinity of the pair."""
        low, high = np.minimum(self.node_ids1, self.node_ids2), np.maximum(self.node_ids1, self.node_ids2)
        # The edge with the largest affinity comes first, so that inf wins over any finite value.
        order = np.lexsort((-self.affinities, high, low))
        low, high = low[order], high[order]
        keep = (low != high) & row_starts(low, high)
        at = order[keep]
        return Edges(low[keep], high[keep], self.affinities[at], self.areas[at])
