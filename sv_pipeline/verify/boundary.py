"""What the verification of a part of a graph hands to other parts. This module reads and checks nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array
from sv_pipeline.verify.atomic_edges import AtomicEdges, join_edges, no_edges

__all__ = ["Boundary", "Strays", "join_boundaries"]

BoolArray = npt.NDArray[np.bool_]


def _none(*width: int) -> UInt64Array:
    return np.zeros((0, *width), np.uint64)


@dataclass(frozen=True)
class Strays:
    """Pointers and edges that lead from one part into another where a sound graph has none, or not only there.

    The part into which they lead is verified again with them.
    """

    pointers: UInt64Array = field(default_factory=lambda: _none(2))
    """Nodes in use whose newest parent is in a part that does not expect it: (node, parent), shape (n, 2)."""
    edges: AtomicEdges = field(default_factory=no_edges)
    """Edges of edge files and edit rows, of which the part that they lead into has no reverse."""

    def __len__(self) -> int:
        return len(self.pointers) + len(self.edges)


@dataclass(frozen=True)
class Boundary:
    """What a part hands up. Nodes are named by ids."""

    raised: UInt64Array = field(default_factory=lambda: _none(2))
    """Nodes in use whose parent is in a part of a later stage: (node, parent), shape (n, 2)."""
    edges: UInt64Array = field(default_factory=lambda: _none(5))
    """Edges to other parts: (node, partner, cross layer, joined and due as bits 0 and 1, root of the node).

    Node and partner are the highest ancestors of the supervoxels up to the part's highest layer. Shape (n, 5).
    """
    undecided: UInt64Array = field(default_factory=lambda: _none(3))
    """Nodes without a leaf below them, under a root of another part: (node, root, 1 if the node has no children)."""
    suspects: UInt64Array = field(default_factory=_none)
    """Roots that may be in pieces, shape (n,)."""
    strays: Strays = field(default_factory=Strays)

    def to_bytes(self) -> bytes:
        """Return the boundary as a file of NumPy arrays."""
        arrays = {name: getattr(self, name) for name in ("raised", "edges", "undecided", "suspects")}
        lone = self.strays.edges
        stray = {f.name: getattr(lone, f.name) for f in fields(AtomicEdges) if f.name != "broken"}
        file = io.BytesIO()
        np.savez_compressed(
            file, pointers=self.strays.pointers, **arrays, **{f"stray_{name}": array for name, array in stray.items()}
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Boundary:
        """Read what `to_bytes` returned."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = dict(stored)
        lone = {name.removeprefix("stray_"): arrays.pop(name) for name in list(arrays) if name.startswith("stray_")}
        return cls(strays=Strays(arrays.pop("pointers"), AtomicEdges(**lone)), **arrays)


def join_boundaries(boundaries: Sequence[Boundary]) -> Boundary:
    """Join what several parts hand up."""
    every = [Boundary(), *boundaries]

    def joined(name: str) -> UInt64Array:
        return np.concatenate([getattr(one, name) for one in every])

    strays = Strays(
        np.concatenate([one.strays.pointers for one in every]), join_edges([one.strays.edges for one in every])
    )
    return Boundary(joined("raised"), joined("edges"), joined("undecided"), joined("suspects"), strays)
