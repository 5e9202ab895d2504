"""A region as it will be after supervoxels are replaced; cut and hierarchy are planned on it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.algorithms.components import find, same_rows
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.algorithms.local_edges import LocalEdges
from sv_pipeline.edits.plan.level2_change import OtherChange
from sv_pipeline.edits.plan.region import Region
from sv_pipeline.ids import IdLayout, UInt64Array

__all__ = ["PlannedRegion", "local_edges_of", "replace_supervoxels"]


@dataclass(frozen=True, eq=False)
class PlannedRegion:
    """A region with its new supervoxels, and the changes in layer 2 that do not depend on the cut."""

    region: Region
    other: OtherChange


def local_edges_of(region: Region) -> LocalEdges:
    """Return all edges of a region; those that lead out of it count as inactive."""
    edges = region.edges
    return LocalEdges(edges.pairs, edges.affinities, edges.areas, region.active)


def replace_supervoxels(
    layout: IdLayout, region: Region, links: UInt64Array, new: LocalEdges, retired: UInt64Array
) -> PlannedRegion:
    """Put new supervoxels and their edges in the place of old ones.

    Parameters
    ----------
    links
        Pairs (old, new), shape (m, 2). Each new supervoxel is in the chunk, and below the layer 2 node, of its old one.
    new
        Edges of the new supervoxels.
    retired
        Pairs of supervoxels that are no edges any more, smaller id first, shape (r, 2).
    """
    gone = np.unique(links[:, 0])
    stays = find(gone, region.supervoxels) < 0
    ids, first = np.unique(links[:, 1], return_index=True)
    parents = region.ancestors[find(region.supervoxels, links[first, 0])]
    supervoxels = np.concatenate([region.supervoxels[stays], ids])
    ancestors = np.concatenate([region.ancestors[stays], parents])
    order = np.argsort(supervoxels)
    supervoxels, ancestors = supervoxels[order], ancestors[order]

    keep = ~same_rows(region.edges.pairs, retired)
    kept = region.edges.take(keep)
    added = Edges(new.pairs[:, 0], new.pairs[:, 1], new.affinities, new.areas)
    edges = Edges.join([kept, added]).distinct()
    layers = layout.cross_layers(edges.node_ids1, edges.node_ids2)
    planned = Region(supervoxels, ancestors, edges, layers, region.box, region.whole)

    joined = np.sort(new.pairs[new.active], axis=1)
    joined = joined[(find(supervoxels, joined) >= 0).all(axis=1)] if len(joined) else joined
    joined = joined[layout.cross_layers(joined[:, 0], joined[:, 1]) > 1]
    nodes = region.ancestors_of(gone, 2)
    bridges = planned.ancestors_of(joined, 2)
    return PlannedRegion(planned, OtherChange(np.unique(np.concatenate([nodes, _unlisted(region, bridges)])), joined))


def _unlisted(region: Region, nodes: UInt64Array) -> UInt64Array:
    """Return the layer 2 nodes of those pairs (n, 2) that no active edge of the region has connected before."""
    across = region.active & (region.layers > 1)
    before = region.ancestors_of(region.edges.pairs[across], 2)
    return nodes[~same_rows(np.sort(nodes, axis=1), np.sort(before, axis=1))].ravel()
