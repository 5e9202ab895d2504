"""Plans the hierarchy above changed layer 2 nodes: the nodes that are retired, new, or get other edges. Pure.

Every cell follows from the rule for cross edges: a node ``n`` of layer ``a`` has at each cross layer ``l >= a`` the
edges [n, p], one for each p = highest ancestor, up to layer ``a``, of the other end of an active edge out of ``n``.

::

    layer a:   new nodes + siblings (remaining nodes whose parent is retired)  --edges of cross layer a-->  new parents
               a node without such edges gets its parent at the layer of its next edges, or at the root layer

All ancestors of a changed layer 2 node are retired. The remaining nodes keep their edges, except for edges to a retired
node: these are replaced by the edges of the new nodes, reversed. The reverse of an edge [n, x] of a new node n, whose
parent is at layer q, is in the rows of x's ancestors of all layers from that of n to q - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find, unique_rows
from sv_pipeline.edits.plan.node_cache import KnownNodes
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph.hierarchy import take
from sv_pipeline.graph.layers import LayeredEdges, layer_parents, parent_chunks
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table.columns import Ragged

__all__ = ["HierarchyPlan", "Layer2Change", "NewNodes", "plan_hierarchy", "provisional_ids"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NewNodes:
    """Nodes that an edit makes, with provisional or final ids."""

    ids: UInt64Array
    """Node ids, shape (n,)."""
    children: Ragged
    """Children of each node, ascending."""
    edges: LayeredEdges
    """Cross edges of the nodes."""


@dataclass(frozen=True, eq=False)
class Layer2Change:
    """The changes of an edit in layer 2."""

    retired: UInt64Array
    """Layer 2 nodes that are replaced, ascending."""
    new: NewNodes
    """Nodes that replace them. Their edges lead to new nodes and to remaining nodes, never to retired ones."""


@dataclass(frozen=True, eq=False)
class HierarchyPlan:
    """The rows of nodes that an edit changes."""

    retired: UInt64Array
    """Nodes of layers 2 and above that are replaced, ascending."""
    new: NewNodes
    """Nodes that replace them."""
    rewritten: LayeredEdges
    """New contents of the cross edge cells that change in the rows of remaining nodes."""
    n_layers: int
    """Number of layers of the graph."""
    layout: IdLayout = field(repr=False)

    @property
    def old_roots(self) -> UInt64Array:
        """Roots that are replaced, ascending."""
        return np.asarray(self.retired[self.layout.layers(self.retired) == self.n_layers], np.uint64)

    @property
    def new_roots(self) -> UInt64Array:
        """Roots that replace them, ascending."""
        return np.sort(self.new.ids[self.layout.layers(self.new.ids) == self.n_layers])

    def new_ancestors(self, nodes: UInt64Array, layers: IntArray) -> UInt64Array:
        """Climb from each node to its highest ancestor among the new nodes, at most up to a layer given for each.

        Parameters
        ----------
        nodes
            Ids of nodes or supervoxels, shape (n,).
        layers
            The highest layer for each of them, shape (n,).

        Returns
        -------
        ndarray
            The ancestors, shape (n,); a node without a new ancestor stands for itself.
        """
        order = np.argsort(self.new.children.values)
        children, parents = self.new.children.values[order], np.repeat(self.new.ids, self.new.children.lengths)[order]
        current, climbing = nodes.copy(), np.arange(len(nodes))
        while len(climbing):
            at = find(children, current[climbing])
            climbing, above = climbing[at >= 0], parents[at[at >= 0]]
            fits = self.layout.layers(above) <= layers[climbing]
            climbing = climbing[fits]
            current[climbing] = above[fits]
        return current

    def renamed(self, old: UInt64Array, new: UInt64Array) -> HierarchyPlan:
        """Return the plan with the ids ``old`` replaced by ``new``; both have shape (n,), and ``old`` is ascending."""

        def ids(array: UInt64Array) -> UInt64Array:
            at = find(old, array)
            return np.asarray(np.where(at >= 0, new[at], array), np.uint64)

        owners = np.repeat(np.arange(len(self.new.ids)), self.new.children.lengths)
        values = ids(self.new.children.values)
        values = values[np.lexsort((values, owners))]
        return HierarchyPlan(
            self.retired,
            NewNodes(
                ids(self.new.ids),
                Ragged(values, self.new.children.offsets),
                LayeredEdges(self.new.edges.layers, ids(self.new.edges.edges)).distinct(),
            ),
            LayeredEdges(self.rewritten.layers, ids(self.rewritten.edges)).distinct(),
            self.n_layers,
            self.layout,
        )


def provisional_ids(layout: IdLayout, chunks: UInt64Array, taken: dict[int, int]) -> UInt64Array:
    """Make provisional ids for new nodes: ids that no counter has reached, from the highest segment of a chunk down.

    Parameters
    ----------
    chunks
        Chunk id of each node, shape (n,).
    taken
        Number of provisional ids made so far in each chunk, by chunk id; updated in place.

    Returns
    -------
    ndarray
        The ids, shape (n,).
    """
    ids = np.zeros(len(chunks), np.uint64)
    for chunk in np.unique(chunks).tolist():
        here = np.flatnonzero(chunks == chunk)
        highest = layout.max_segment(int(layout.layers(np.uint64(chunk)))) - taken.get(chunk, 0)
        ids[here] = layout.node_ids(np.uint64(chunk), (highest - np.arange(len(here))).astype(np.uint64))
        taken[chunk] = taken.get(chunk, 0) + len(here)
    return ids


@dataclass(eq=False)
class _Rows:
    """Edges of nodes, while the planner goes up the layers.

    The partner of an edge is the highest ancestor of its other end, up to the layer that the planner has reached.
    """

    owners: UInt64Array
    layers: IntArray
    partners: UInt64Array

    @classmethod
    def of(cls, edges: LayeredEdges) -> _Rows:
        return cls(edges.edges[:, 0], edges.layers, edges.edges[:, 1])

    def keep(self, mask: npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(self.owners[mask], self.layers[mask], self.partners[mask])

    def distinct(self) -> _Rows:
        at = unique_rows(self.owners, self.layers, self.partners)
        return _Rows(self.owners[at], self.layers[at], self.partners[at])

    def edges(self) -> LayeredEdges:
        return LayeredEdges(self.layers, np.stack([self.owners, self.partners], axis=-1))


def _join(*rows: _Rows) -> _Rows:
    owners, layers, partners = zip(*((r.owners, r.layers, r.partners) for r in rows), strict=True)
    return _Rows(np.concatenate(owners), np.concatenate(layers), np.concatenate(partners))


def plan_hierarchy(layout: IdLayout, change: Layer2Change, retired: UInt64Array, known: KnownNodes) -> HierarchyPlan:
    """Plan all layers above a change of layer 2.

    Parameters
    ----------
    change
        The change of layer 2, with provisional ids.
    retired
        The retired layer 2 nodes and all their ancestors, ascending.
    known
        Rows of these nodes, of their children, and of the nodes that their edges lead to.

    Raises
    ------
    MissingNodes
        If the plan needs rows that ``known`` does not hold.
    CorruptionError
        If stored rows contradict each other.
    """
    return _Planner(layout, change, retired, known).run()


class _Planner:
    """One run from layer 2 to the roots, and its state."""

    def __init__(self, layout: IdLayout, change: Layer2Change, retired: UInt64Array, known: KnownNodes) -> None:
        self.layout, self.retired, self.known = layout, retired, known
        self.taken: dict[int, int] = {}
        for chunk, count in zip(*np.unique(layout.chunks(change.new.ids), return_counts=True), strict=True):
            self.taken[int(chunk)] = int(count)
        self.nodes, self.children = [change.new.ids], [change.new.children]
        self.parent_children, self.parent_ids = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self.alive = _Rows.of(change.new.edges)
        """Edges of those new nodes that have no new parent up to the layer that was reached."""
        self.cells = [self.alive]
        """Edges of all new nodes, as their rows will hold them."""
        self.flips = _Rows.of(LayeredEdges.empty())
        """Edges from remaining nodes to new ones."""
        self.siblings = self._siblings()

    def run(self) -> HierarchyPlan:
        if self.layout.n_layers > 2:
            self._flip(2)
            self._make_parents(3)
        for layer in range(3, self.layout.n_layers):
            self._edges_of_new_nodes(layer)
            self._flip(layer)
            self._make_parents(layer + 1)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([r.lengths for r in self.children]))])
        children = Ragged(np.concatenate([ragged.values for ragged in self.children]), offsets)
        return HierarchyPlan(
            self.retired,
            NewNodes(np.concatenate(self.nodes), children, _join(*self.cells).distinct().edges()),
            self._rewritten().edges(),
            self.layout.n_layers,
            self.layout,
        )

    def _rewritten(self) -> _Rows:
        """Return the whole cells (node, cross layer) of remaining nodes in which an edge leads to another node now."""
        changed = _join(self.flips, self._raised())
        owners = np.unique(changed.owners)
        rows = self._state_of(owners)

        def cell(of: _Rows) -> IntArray:
            return find(owners, of.owners) * (self.layout.n_layers + 1) + of.layers

        return rows.keep(np.isin(cell(rows), cell(changed)))

    def _raised(self) -> _Rows:
        """Return the stored edges of remaining nodes to a retired ancestor of their partner, which may remain itself.

        Other software stores the parent of the partner. If the partner remains, it is a sibling in layer 2, and its
        edges lead to the rows that hold such edges.
        """
        below = self.siblings[self.layout.layers(self.siblings) == 2]
        self.known.index(self.known.edges_of(below).edges[:, 1])
        rows = _Rows.of(self.known.raised)
        return rows.keep((find(self.retired, rows.partners) >= 0) & (find(self.retired, rows.owners) < 0))

    # -- remaining nodes ------------------------------------------------------------------------------------------

    def _siblings(self) -> UInt64Array:
        """Return the remaining nodes of layers 2 and above whose parents are retired, ascending."""
        below = np.unique(take(self.known.children, self.known.index(self.retired)).values)
        below = below[self.layout.layers(below) >= 2]
        return np.setdiff1d(below, self.retired, assume_unique=True)

    def _state_of(self, ids: UInt64Array) -> _Rows:
        """Return the edges of remaining nodes after the edit, as far as the layers that were reached determine them."""
        stored = _Rows.of(self.known.edges_of(ids))
        stored = stored.keep(find(self.retired, stored.partners) < 0)
        return _join(stored, self.flips.keep(find(ids, self.flips.owners) >= 0)).distinct()

    # -- one layer ------------------------------------------------------------------------------------------------

    def _climb(self, nodes: UInt64Array, layer: int) -> UInt64Array:
        """Return the highest ancestor of each node up to a layer, after the edit."""
        current, inverse = np.unique(nodes, return_inverse=True)
        climbing = np.flatnonzero(self.layout.layers(current) < layer)
        while len(climbing):
            above = self._parents_of(current[climbing])
            above_layers = self.layout.layers(above)
            current[climbing[above_layers <= layer]] = above[above_layers <= layer]
            climbing = climbing[above_layers < layer]
        return current[inverse]

    def _parents_of(self, ids: UInt64Array) -> UInt64Array:
        parents = np.zeros(len(ids), np.uint64)
        at = find(self.parent_children, ids)
        parents[at >= 0] = self.parent_ids[at[at >= 0]]
        parents[at < 0] = self.known.parents_of(ids[at < 0])
        wrong = ids[(parents == 0) | (find(self.retired, parents) >= 0)]
        if len(wrong):
            raise CorruptionError(
                f"cross edges lead to node {int(wrong[0])}, which is not in use.",
                remedy="Run `sv-pipeline verify` and repair what it names.",
            )
        return parents

    def _edges_of_new_nodes(self, layer: int) -> None:
        """Give the new nodes of a layer the edges of their children, and raise all partners to this layer."""
        children = self.parent_children[self.layout.layers(self.parent_ids) == layer]
        stay = children[find(self.siblings, children) >= 0]
        below = find(children, self.alive.owners) >= 0
        rows = _join(self.alive.keep(below), self._state_of(stay))
        inherited = _Rows(self.parent_ids[find(self.parent_children, rows.owners)], rows.layers, rows.partners)
        rows = _join(inherited, self.alive.keep(~below))
        rows = rows.keep(rows.layers >= layer)
        self.alive = _Rows(rows.owners, rows.layers, self._climb(rows.partners, layer)).distinct()
        self.cells.append(self.alive.keep(self.layout.layers(self.alive.owners) == layer))

    def _flip(self, layer: int) -> None:
        """Reverse the edges in ``alive`` that lead to remaining nodes of a layer, for the rows of these nodes."""
        partners = self.alive.partners
        stays = (self.layout.layers(partners) == layer) & ~self._is_new(partners)
        rows = self.alive.keep(stays & (self.alive.layers >= layer))
        self.flips = _join(self.flips, _Rows(rows.partners, rows.layers, rows.owners)).distinct()

    def _is_new(self, ids: UInt64Array) -> npt.NDArray[np.bool_]:
        return np.asarray(find(np.sort(np.concatenate(self.nodes)), ids) >= 0)

    def _make_parents(self, layer: int) -> None:
        """Make the parents at ``layer`` of the new nodes and siblings of ``layer - 1``."""
        new = np.concatenate(self.nodes)
        new = new[self.layout.layers(new) == layer - 1]
        stay = self.siblings[self.layout.layers(self.siblings) == layer - 1]
        nodes = np.sort(np.concatenate([new, stay]))
        if not len(nodes):
            return
        rows = self.alive.keep(find(np.sort(new), self.alive.owners) >= 0)
        rows = _join(rows, self._state_of(stay))
        rows = rows.keep(rows.layers >= layer - 1)
        chunks = np.unique(parent_chunks(self.layout, self.layout.coordinates(nodes), layer - 1, layer))
        try:
            made = layer_parents(self.layout, layer, chunks, nodes, rows.edges())
        except ValueError as error:
            raise CorruptionError(
                f"cross edges of layer {layer - 1} lead out of the object that is edited.",
                remedy="Run `sv-pipeline verify` and repair what it names.",
            ) from error
        ids = provisional_ids(self.layout, made.chunks, self.taken)
        self.nodes.append(ids)
        self.children.append(made.children)
        children = np.concatenate([self.parent_children, made.children.values])
        parents = np.concatenate([self.parent_ids, made.of_children(ids)])
        order = np.argsort(children)
        self.parent_children, self.parent_ids = children[order], parents[order]
