"""Reads a part of a graph, and the few rows and edges beside it that its checks refer to. This module judges nothing.

What is read beside a part's own rows::

    far ends     supervoxels that the part's edges lead to; of upper layers, the nodes that edges lead to
    children     of the part's nodes, if they belong to other parts
    partners     of cross edges, and ends of atomic cross edges
    chains       all ancestors of all of these and of the part's nodes

The cost therefore depends on the size of the part and of its surface, not on the size of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import ColumnKey, RowView, Table
from sv_pipeline.verify import atomic_edges, snapshot
from sv_pipeline.verify.atomic_edges import ActiveEdges, AtomicEdges
from sv_pipeline.verify.boundary import Boundary, Strays
from sv_pipeline.verify.part import Division, Part
from sv_pipeline.verify.snapshot import NONE, Snapshot

__all__ = [
    "EdgeFolders",
    "RowsBeside",
    "edges_of_boundary",
    "gather_edges",
    "gather_nodes",
    "lifted_edges",
    "lonely_edges",
    "own_below",
    "read_nodes",
]

ROWS_AT_ONCE = 20_000
FIRST_CHILDREN = 4
"""Number of children that are looked at first, to find out whether a node has a leaf below it."""


@dataclass(frozen=True)
class EdgeFolders:
    """URLs of the folders of edge files and component files."""

    edges: str
    components: str


# -- edges ------------------------------------------------------------------------------------------------------------


def gather_edges(
    table: Table, division: Division, part: Part, folders: EdgeFolders, strays: AtomicEdges
) -> AtomicEdges:
    """Read the edges of a part's files, and those of other parts' files that have an end in the part."""
    layout, grid = division.layout, division.grid
    chunks = None if division.is_whole else division.chunks(part)
    own = atomic_edges.read_atomic_edges(table, layout, grid, folders.edges, folders.components, coordinates=chunks)
    if division.is_whole:
        return own
    ends = np.unique(layout.chunks(own.pairs.ravel()))
    ends = ends[(layout.layers(ends) == 1) & ~division.owns(part, ends)]
    far = layout.coordinates(ends)
    far = far[(far < grid.shape(2)).all(axis=-1)]
    found, broken = [own, strays], list(own.broken)
    for start in range(0, len(far), atomic_edges.FILES_PER_READ):
        some = far[start : start + atomic_edges.FILES_PER_READ]
        beside = atomic_edges.read_atomic_edges(
            table, layout, grid, folders.edges, folders.components, coordinates=some
        )
        broken += beside.broken
        touching = division.owns(part, beside.pairs.ravel()).reshape(-1, 2)
        found.append(beside.take(np.asarray(touching.any(axis=-1))))
    return atomic_edges.join_edges(found, tuple(broken))


def lonely_edges(division: Division, part: Part, nodes: Snapshot, edges: AtomicEdges) -> AtomicEdges:
    """Return the edges of a part's files that the part of their far end may not find in its own surroundings."""
    layout = division.layout
    mine = division.owns(part, edges.files)
    away = ~division.owns(part, edges.pairs.ravel()).reshape(-1, 2)
    known = (nodes.find(edges.pairs) != NONE).all(axis=-1) & (layout.layers(edges.pairs) == 1).all(axis=-1)
    at = np.flatnonzero(mine & away.any(axis=-1) & known)
    misplaced = layout.chunks(edges.pairs[at, 0]) != edges.files[at]
    back = np.flatnonzero(~mine)
    index = nodes.find(edges.pairs)
    count = len(nodes.ids)
    there = index[back, 1] * count + index[back, 0]
    in_place = layout.chunks(edges.pairs[back, 0]) == edges.files[back]
    seen = np.isin(index[at, 0] * count + index[at, 1], there[in_place])
    return replace(edges.take(at[misplaced | ~seen]), broken=())


# -- nodes ------------------------------------------------------------------------------------------------------------


class RowsBeside:
    """Rows that others refer to, each read once, also if it is missing.

    Parameters
    ----------
    table
        The graph's table.
    layout
        Layout of the graph's ids.
    wanted
        Columns to read.
    known
        Ids whose rows are known already, shape (n,).
    """

    def __init__(
        self, table: Table, layout: IdLayout, wanted: list[ColumnKey], known: UInt64Array | None = None
    ) -> None:
        self._table, self._layout, self._wanted = table, layout, wanted
        self._known = np.zeros(0, np.uint64) if known is None else known
        self.rows: dict[int, RowView] = {}

    def read(self, ids: UInt64Array) -> UInt64Array:
        """Read the rows of these ids as far as they are not known, and return the parents that they name."""
        ids = np.setdiff1d(ids, self._known)
        ids = ids[ids != 0]
        self._known = np.union1d(self._known, ids)
        found = read_nodes(self._table, ids, self._wanted)
        self.rows |= found
        parents = snapshot.of_rows(self._layout, found).parents
        return np.asarray(parents[parents != 0], np.uint64)

    def read_with_ancestors(self, ids: UInt64Array) -> None:
        """Read the rows of these ids and of all their ancestors."""
        while len(ids):
            ids = self.read(ids)


def read_nodes(table: Table, ids: UInt64Array, wanted: list[ColumnKey]) -> dict[int, RowView]:
    """Read node rows by id."""
    found: dict[int, RowView] = {}
    for start in range(0, len(ids), ROWS_AT_ONCE):
        some = keys.node_keys(ids[start : start + ROWS_AT_ONCE])
        found |= {int(key): row for key, row in table.read_rows(some, wanted, newest_only=True).items()}
    return found


def own_below(division: Division, part: Part, below: Boundary) -> Boundary:
    """Select what concerns a part of upper layers out of what parts of earlier stages handed up."""
    if part.chunk is None:
        edges = below.edges[(below.edges[:, 2] == part.low) & division.owns(part, below.edges[:, 4])]
    else:
        edges = below.edges
    return replace(
        below,
        raised=below.raised[division.owns(part, below.raised[:, 1])],
        edges=edges,
        undecided=below.undecided[division.owns(part, below.undecided[:, 1])],
    )


def gather_nodes(
    table: Table, division: Division, part: Part, below: Boundary, strays: Strays, edges: AtomicEdges | None
) -> Snapshot:
    """Read the node rows of a part and those beside it.

    Parameters
    ----------
    below
        What parts of earlier stages hand up to this part.
    strays
        What leads into this part from parts that are not below it.
    edges
        The part's atomic edges; None if no check needs edges.
    """
    layout = division.layout
    if division.is_whole:
        return snapshot.read_snapshot(table, layout)
    own = snapshot.read_snapshot(table, layout, division.ranges(part))
    rows = RowsBeside(table, layout, snapshot.hierarchy_columns(), own.ids)
    seeds = np.unique(np.concatenate([below.raised.ravel(), below.edges[:, :2].ravel(), strays.pointers[:, 1]]))
    rows.read_with_ancestors(seeds)
    if edges is not None:
        rows.read_with_ancestors(np.unique(edges.pairs))
    rows.read_with_ancestors(np.unique(own.parents))
    own = replace(own, reached=seeds)
    in_use = own.is_reached
    rows.read(np.unique(own.children[in_use[own.child_owner]]))
    if edges is None:
        return replace(_joined(layout, own, rows.rows), reached=seeds)
    partners = [np.zeros(0, np.uint64)]
    for cells in own.cross_edges.values():
        partners.append(cells.edges[in_use[cells.owners], 1])
    partner_ids = np.unique(np.concatenate(partners))
    rows.read(partner_ids)
    rows.read(
        np.unique(np.concatenate([np.zeros(0, np.uint64), *(c.edges.ravel() for c in own.atomic_cross_edges.values())]))
    )
    nodes = replace(_joined(layout, own, rows.rows), reached=seeds)
    at = nodes.find(partner_ids)
    open_ids = partner_ids[(at != NONE) & (layout.layers(partner_ids) > 1)]
    open_ids = open_ids[~nodes.is_reached[nodes.find(open_ids)]]
    open_ids = open_ids[~division.owns(part, open_ids)]
    if len(open_ids):
        return replace(nodes, reached=np.union1d(seeds, reached_nodes(table, layout, open_ids)))
    return nodes


def _joined(layout: IdLayout, own: Snapshot, beside: dict[int, RowView]) -> Snapshot:
    return snapshot.with_beside(own, snapshot.of_rows(layout, beside))


def reached_nodes(table: Table, layout: IdLayout, ids: UInt64Array) -> UInt64Array:
    """Return those of some nodes that have a leaf below them; the hierarchy must be sound.

    Only the first few children of each node are looked at, and the others if those lead nowhere.
    """
    ids = np.unique(ids)
    rows = read_nodes(table, ids, snapshot.hierarchy_columns())
    nodes = snapshot.of_rows(layout, rows)
    found = nodes.ids[nodes.is_leaf]
    above = np.flatnonzero((nodes.layers > 1) & (np.diff(nodes.child_starts) > 0))
    position = np.arange(len(nodes.children)) - nodes.child_starts[:-1][nodes.child_owner]
    for slice_of in (position < FIRST_CHILDREN, position >= FIRST_CHILDREN):
        at = slice_of & np.isin(nodes.child_owner, above[~np.isin(nodes.ids[above], found)])
        children, owners = nodes.children[at], nodes.ids[nodes.child_owner[at]]
        lower = layout.layers(children) < layout.layers(owners)
        children, owners = children[lower], owners[lower]
        if not len(children):
            continue
        parents = snapshot.of_rows(layout, read_nodes(table, np.unique(children), [columns.PARENT.key]))
        where = parents.find(children)
        kept = where != NONE
        kept[kept] = parents.parents[where[kept]] == owners[kept]
        live = reached_nodes(table, layout, children[kept])
        found = np.union1d(found, owners[kept][np.isin(children[kept], live)])
    return found


# -- edges of upper layers --------------------------------------------------------------------------------------------


def lifted_edges(division: Division, part: Part, nodes: Snapshot, active: ActiveEdges) -> UInt64Array:
    """Return a part's edges to other parts, in the form of `Boundary.edges`."""
    leaving = active.layers >= part.high
    above = nodes.ancestors[part.high]
    mine = division.owns(part, nodes.ids[active.first])
    if part.low:  # of upper layers, the first end belongs to a part below
        mine = np.ones(len(mine), np.bool_)
    at = np.flatnonzero(leaving & mine & (active.joined | active.due))
    flags = active.joined[at].astype(np.uint64) | (active.due[at].astype(np.uint64) << np.uint64(1))
    first, second = above[active.first[at]], above[active.second[at]]
    rows = np.stack(
        [
            nodes.ids[first],
            nodes.ids[second],
            active.layers[at].astype(np.uint64),
            flags,
            nodes.ids[nodes.tops[first]],
        ],
        axis=-1,
    )
    return np.unique(rows, axis=0)


def edges_of_boundary(nodes: Snapshot, edges: UInt64Array) -> ActiveEdges:
    """Convert edges that parts below handed up to indices into a snapshot."""
    flags = edges[:, 3]
    return ActiveEdges(
        nodes.find(edges[:, 0]),
        nodes.find(edges[:, 1]),
        edges[:, 2].astype(np.int64),
        (flags & np.uint64(1)) != 0,
        (flags & np.uint64(2)) != 0,
        np.zeros(len(edges), np.bool_),
    )
