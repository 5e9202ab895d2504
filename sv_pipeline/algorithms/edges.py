"""Atomic edges as arrays: pairs of supervoxels with their affinities and areas. Knows no file and no graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import unique_rows
from sv_pipeline.ids import UInt64Array

__all__ = ["Edges"]


def _no_ids() -> UInt64Array:
    return np.empty(0, np.uint64)


def _no_affinities() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class Edges:
    """Atomic edges; all arrays have shape (n,)."""

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
        """The edges of all parts, one part after the other."""
        arrays = [part.arrays for part in parts]
        return cls(*map(np.concatenate, zip(*arrays, strict=True))) if arrays else cls()

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """node_ids1, node_ids2, affinities, areas."""
        return self.node_ids1, self.node_ids2, self.affinities, self.areas

    @property
    def pairs(self) -> UInt64Array:
        """Both ends of each edge, shape (n, 2)."""
        return np.stack([self.node_ids1, self.node_ids2], axis=-1)

    def take(self, rows: npt.ArrayLike) -> Edges:
        """The edges at some places, or those for which a mask is true."""
        at = np.asarray(rows)
        return Edges(*(array[at] for array in self.arrays))

    def distinct(self) -> Edges:
        """Each pair once, smaller id first, no loops; of the same pair the largest affinity counts."""
        low, high = np.minimum(self.node_ids1, self.node_ids2), np.maximum(self.node_ids1, self.node_ids2)
        # Of the same pair the largest affinity counts: inf holds, whatever else is said.
        at = unique_rows(low, high, -self.affinities)
        at = at[unique_rows(low[at], high[at])]
        at = at[low[at] != high[at]]
        return Edges(low[at], high[at], self.affinities[at], self.areas[at])
