"""Cross edges that lead to an ancestor of their partner, as other software writes some, and the right edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array
from sv_pipeline.verify.atomic_edges import ActiveEdges
from sv_pipeline.verify.edge_checks import lifted, raised, stored_cross_edges
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import Snapshot

__all__ = ["RaisedEdges", "find_raised_edges"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RaisedEdges:
    """Cross edges that lead to an ancestor of their partner; arrays of shape (n,)."""

    layers: IntArray
    """Cross layer of each edge."""
    nodes: UInt64Array
    """The node whose row holds the edge."""
    ancestors: UInt64Array
    """The stored partner, which is an ancestor of the right one."""
    partners: UInt64Array
    """The right partner. If several right partners have the same ancestor, each is one entry."""

    @property
    def cells(self) -> int:
        """Number of cells that hold such edges."""
        return len(np.unique(np.stack([self.layers.astype(np.uint64), self.nodes], axis=-1), axis=0))


def find_raised_edges(nodes: Snapshot, active: ActiveEdges) -> RaisedEdges:
    """Find all cross edges of nodes in use that lead to an ancestor of their partner."""
    count, parts = max(len(nodes.ids), 1), []
    for layer in range(2, nodes.layout.n_layers):
        may = lifted(nodes, active, active.joined, layer)
        stored = stored_cross_edges(Outcome("cross_edges"), nodes, layer)
        wrong, right = raised(nodes, np.setdiff1d(stored, may), may)
        parts.append(
            (np.full(len(wrong), layer), nodes.ids[wrong // count], nodes.ids[wrong % count], nodes.ids[right % count])
        )
    layers, owners, ancestors, partners = (np.concatenate([part[i] for part in parts]) for i in range(4))
    return RaisedEdges(layers, owners, ancestors, partners)
