"""Atomic edges of a region as arrays, and the form in which an edit stores its edges. Decides nothing about edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.errors import InputError
from sv_pipeline.ids import IdLayout, UInt64Array

__all__ = ["EditEdges", "LocalEdges", "combined", "edit_edge_rows"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def _pairs() -> UInt64Array:
    return np.zeros((0, 2), np.uint64)


@dataclass(frozen=True, eq=False)
class LocalEdges:
    """Atomic edges as parallel arrays.

    Raises
    ------
    InputError
        If the lengths of the arrays differ.
    """

    pairs: UInt64Array = field(default_factory=_pairs)
    """Ids of the two ends, shape (n, 2)."""
    affinities: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Affinities, shape (n,); inf marks an edge that must never be cut."""
    areas: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    active: BoolArray = field(default_factory=lambda: np.zeros(0, np.bool_))
    """Whether each edge connects its ends, shape (n,). Inactive edges lie between two objects, or two parts of one."""

    def __post_init__(self) -> None:
        n = len(self.pairs)
        if self.pairs.shape != (n, 2) or any(a.shape != (n,) for a in (self.affinities, self.areas, self.active)):
            raise InputError(
                f"edges of shape {self.pairs.shape} do not go with {len(self.affinities)} affinities, "
                f"{len(self.areas)} areas and {len(self.active)} marks of activity."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def of(
        cls,
        pairs: npt.ArrayLike,
        affinities: npt.ArrayLike = 0.0,
        areas: npt.ArrayLike = 0,
        active: npt.ArrayLike = True,
    ) -> LocalEdges:
        """Create edges from arrays that broadcast to the number of pairs."""
        ends = np.asarray(pairs, np.uint64).reshape(-1, 2)
        n = len(ends)
        return cls(
            ends,
            np.broadcast_to(np.asarray(affinities, np.float32), n),
            np.broadcast_to(np.asarray(areas, np.uint64), n),
            np.broadcast_to(np.asarray(active, np.bool_), n),
        )

    @classmethod
    def join(cls, parts: Sequence[LocalEdges]) -> LocalEdges:
        """Concatenate edges."""
        names = ("pairs", "affinities", "areas", "active")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names)) if parts else cls()

    def take(self, rows: IntArray | BoolArray) -> LocalEdges:
        """Select edges by index or mask."""
        return LocalEdges(self.pairs[rows], self.affinities[rows], self.areas[rows], self.active[rows])

    def rows(self, pairs: UInt64Array) -> IntArray:
        """Return a row of each pair, in either direction, shape (n,); -1 where there is no such edge."""
        names, codes = np.unique(np.sort(self.pairs, axis=1), return_inverse=True)
        codes = codes.reshape(-1, 2).astype(np.uint64)
        packed, first = np.unique(codes[:, 0] * np.uint64(len(names)) + codes[:, 1], return_index=True)
        ends = find(names, np.sort(pairs, axis=1))
        known = (ends >= 0).all(axis=1)
        row = find(packed, np.where(known, ends[:, 0] * len(names) + ends[:, 1], 0))
        return np.where(known & (row >= 0), np.append(first, -1)[row], -1).astype(np.int64)


def combined(edges: LocalEdges) -> LocalEdges:
    """Combine edges of the same pair: the result is sorted, without loops, and has the lower end first.

    Of several edges of one pair the result has the highest affinity and the largest area; it is active if one of them
    is.
    """
    pairs = np.sort(edges.pairs, axis=1)
    keep = pairs[:, 0] != pairs[:, 1]
    pairs, affinities, areas, active = pairs[keep], edges.affinities[keep], edges.areas[keep], edges.active[keep]
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs = pairs[order]
    starts = np.flatnonzero(np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])[: len(pairs)])
    if not len(starts):
        return LocalEdges()
    return LocalEdges(
        pairs[starts],
        np.maximum.reduceat(affinities[order], starts),
        np.maximum.reduceat(areas[order], starts),
        np.logical_or.reduceat(active[order], starts),
    )


@dataclass(frozen=True, eq=False)
class EditEdges:
    """Edges that an edit adds to the table row of one layer 2 chunk."""

    chunk_id: int
    """Id of the layer 2 chunk."""
    pairs: UInt64Array
    """Ids of the two ends, shape (n, 2); the first end lies in the chunk."""
    affinities: npt.NDArray[np.float32]
    areas: UInt64Array


def edit_edge_rows(edges: LocalEdges, layout: IdLayout) -> list[EditEdges]:
    """Arrange edges as edits store them: each edge is in the chunks of both ends, directed outwards from there.

    An edge inside one chunk is in its row in both directions. Rows are sorted by chunk, edges by their ends.
    """
    pairs = np.concatenate([edges.pairs, edges.pairs[:, ::-1]])
    affinities, areas = np.tile(edges.affinities, 2), np.tile(edges.areas, 2)
    chunks = layout.chunk_ids(2, layout.coordinates(pairs[:, 0]))
    order = unique_rows(chunks, pairs[:, 0], pairs[:, 1])
    names, starts = np.unique(chunks[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(names) else []
    return [
        EditEdges(int(name), pairs[rows], affinities[rows].astype(np.float32), areas[rows].astype(np.uint64))
        for name, rows in zip(names, parts, strict=True)
    ]
