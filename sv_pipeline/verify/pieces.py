"""Finds roots in several pieces, part by part: each part reduces its supervoxels to what connects them.

This is needed only for roots with a node whose children are not connected; all other roots are connected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sv_pipeline.algorithms.components import components
from sv_pipeline.ids import UInt64Array
from sv_pipeline.verify.atomic_edges import ActiveEdges
from sv_pipeline.verify.edge_checks import SCATTERED_ROOT, scattered_children, scattered_leaves
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import Snapshot
from sv_pipeline.verify.table_checks import report_where

__all__ = ["pieces_of", "report_scattered_roots", "scattered_roots"]


def scattered_roots(nodes: Snapshot, active: ActiveEdges) -> UInt64Array:
    """Return the roots of those own nodes whose children are not connected, shape (n,).

    If the children of every node below a root are connected, then so are its supervoxels. Otherwise they may still be
    connected by edges that leave the node.
    """
    scattered = np.union1d(scattered_leaves(nodes, active, nodes.leaves), scattered_children(nodes, active))
    scattered = scattered[nodes.is_own[scattered]]
    return np.unique(nodes.ids[nodes.tops[scattered]])


def pieces_of(nodes: Snapshot, active: ActiveEdges, roots: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
    """Reduce the supervoxels of some roots to what connects them.

    Returns
    -------
    tuple[UInt64Array, UInt64Array]
        Links between supervoxels, shape (n, 2): one for each supervoxel of the part that has edges to other parts, to
        the lowest supervoxel of its piece, and one for each edge to another part. Then the pieces, shape (m, 2):
        lowest supervoxel and root of each.
    """
    leaves = nodes.leaves
    mine = leaves[np.isin(nodes.ids[nodes.tops[leaves]], roots) & nodes.is_own[leaves]]
    within = np.zeros(len(nodes.ids), np.bool_)
    within[mine] = True
    inside = active.sure & within[active.first] & within[active.second]
    component = components(len(nodes.ids), np.stack([active.first[inside], active.second[inside]], axis=1))
    _, first, where = np.unique(component[mine], return_index=True, return_inverse=True)
    lowest = mine[first]
    leaving = active.sure & within[active.first] & ~within[active.second]
    out, far = active.first[leaving], active.second[leaving]
    ends = np.unique(out)
    to_lowest = np.stack([nodes.ids[ends], nodes.ids[lowest[where[np.searchsorted(mine, ends)]]]], axis=-1)
    links = np.concatenate([to_lowest, np.stack([nodes.ids[out], nodes.ids[far]], axis=-1)])
    return links, np.stack([nodes.ids[lowest], nodes.ids[nodes.tops[lowest]]], axis=-1)


def report_scattered_roots(outcome: Outcome, found: Sequence[tuple[UInt64Array, UInt64Array]]) -> None:
    """Report roots in several pieces, from what `pieces_of` returned for each part."""
    none = np.zeros((0, 2), np.uint64)
    links = np.concatenate([none, *(some for some, _ in found)])
    pieces = np.concatenate([none, *(some for _, some in found)])
    ids, where = np.unique(np.concatenate([links.ravel(), pieces[:, 0]]), return_inverse=True)
    ends = where[: links.size].reshape(-1, 2)
    component = components(len(ids), ends)[where[links.size :]]
    distinct = np.unique(np.stack([pieces[:, 1], component.astype(np.uint64)], axis=-1), axis=0)
    roots, count = np.unique(distinct[:, 0], return_counts=True)
    report_where(outcome, count > 1, roots, SCATTERED_ROOT)
