"""Which edges the fragments of a supervoxel split get in place of the edges of the supervoxels that they replace.

The terms member, kept, fragment, node and side are explained in :mod:`sv_pipeline.algorithms.fragments`.

=====================================  ================================================================================
old edge                               new edges
=====================================  ================================================================================
finite, any partner                    from every fragment that touches the partner; if none does, from the nearest
inf, ends on one side that touch       inf
inf, ends on two sides that touch      `LOW_AFFINITY`, since nodes on two sides must always be separable
inf, no ends on one side touch         in addition, the nearest two nodes on one side get inf; if no two are on one side
                                       and none touch, the nearest two get `LOW_AFFINITY`
inf, between kept members on two       `LOW_AFFINITY`: the pair stays and its affinity is *overridden*
sides
none (fragments of one supervoxel)     `LOW_AFFINITY` where they touch, which only fragments on two sides do; a fragment
                                       that touches no other (the supervoxel was disconnected) is joined to the nearest
none (members on one side that touch,  inf, where the side would not be connected otherwise
in two chunks)
=====================================  ================================================================================

Supervoxels outside the cut that are joined by inf to members (pieces of the same label outside of the region) have no
side yet. A group of them that is connected by inf goes to the side with which it has more contact, since inf may not
join two sides.

An affinity is kept unless the table says otherwise. The area of a new edge is the number of voxel faces (at least 1)
where its ends touch; if they do not touch, it is the area of the old edge. Several edges of one pair become one with
the highest affinity and the largest area; it is active if one of them is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from sv_pipeline.algorithms.components import component_labels, components, find
from sv_pipeline.algorithms.fragments import BoolArray, FragmentPlan, IntArray, Sides, is_placeholder
from sv_pipeline.algorithms.local_edges import LocalEdges, combined
from sv_pipeline.algorithms.split_geometry import FloatArray, SplitGeometry
from sv_pipeline.ids import UInt64Array

__all__ = ["LOW_AFFINITY", "RoutedEdges", "planned_edges", "route_edges"]

LOW_AFFINITY = np.float32(0.001)
"""Affinity of edges across the cut."""
_NEAREST_VOTE = 1e-6
"""Weight of an edge without contact in the vote for a side, where contacts count by their voxel faces."""


@dataclass(frozen=True, eq=False)
class RoutedEdges:
    """The changes of a supervoxel split to atomic edges. Fragments are named by their placeholders."""

    edges: LocalEdges
    """New edges, and new values of overridden edges."""
    retired: UInt64Array
    """Pairs whose edges are removed because one of their ends is split; sorted, shape (r, 2)."""
    overridden: UInt64Array
    """Pairs of unsplit supervoxels whose affinity changes; sorted, shape (o, 2)."""
    outside: UInt64Array
    """Supervoxels outside the cut that are joined by inf to members; sorted, shape (p,)."""
    outside_sides: Sides
    """Side to which each of ``outside`` goes, shape (p,)."""

    def to_renew(self, plan: FragmentPlan) -> UInt64Array:
        """Return the kept members that need new ids to avoid overridden pairs: the smaller member of each pair."""
        size = np.concatenate([plan.kept_voxel_counts, [np.iinfo(np.int64).max]])
        sizes = size[find(plan.kept, self.overridden)]
        return np.unique(self.overridden[np.arange(len(sizes)), np.argmin(sizes, axis=1)])


def planned_edges(edges: LocalEdges, routed: RoutedEdges) -> LocalEdges:
    """Return the active edges of the graph after the split; a cut can be tried on them before anything is written."""
    old = combined(edges)
    gone = np.concatenate([routed.retired, routed.overridden])
    stays = LocalEdges.of(gone).rows(old.pairs) < 0
    everything = LocalEdges.join([old.take(stays), routed.edges])
    return everything.take(everything.active)


def route_edges(geometry: SplitGeometry, edges: LocalEdges) -> RoutedEdges:
    """Find the edges of the fragments of a plan.

    Parameters
    ----------
    geometry
        The plan, and the positions of its nodes.
    edges
        All atomic edges that touch a member, and the edges of affinity inf between supervoxels that are joined by inf
        to members. Further edges have no effect.
    """
    return _Routing(geometry, combined(edges)).result()


@dataclass(frozen=True, eq=False)
class _Candidates:
    """All ways to replace old edges: each fragment (or unsplit end) of one end with each of the other."""

    edge: IntArray
    """Row of the old edge, ascending."""
    one: UInt64Array
    """A fragment, or a kept end; shape (n,)."""
    other: UInt64Array
    faces: IntArray
    """Number of voxel faces where the two touch; -1 where they do not touch."""

    def __len__(self) -> int:
        return len(self.edge)


class _Routing:
    """One run of `route_edges`."""

    def __init__(self, geometry: SplitGeometry, edges: LocalEdges) -> None:
        self.geometry, self.plan, self.edges = geometry, geometry.plan, edges
        split = np.isin(edges.pairs, self.plan.split_ids)
        self.retired = split.any(axis=1)
        self.inf = np.isinf(edges.affinities)
        # The split end comes first, so that the first node of each candidate is a fragment.
        self.ends = np.where(split[:, :1], edges.pairs, edges.pairs[:, ::-1])
        self.candidates = self._candidates()
        self.distance = np.full(len(self.candidates), np.inf)
        self.outside, self.outside_sides = self._outside()

    def result(self) -> RoutedEdges:
        parts = [self._finite(), *self._uncuttable(), self._between_fragments(), self._overridden()]
        routed = combined(LocalEdges.join(parts))
        routed = combined(LocalEdges.join([routed, self._bridges(routed)]))
        return RoutedEdges(
            edges=routed,
            retired=self.edges.pairs[self.retired],
            overridden=self.edges.pairs[self._is_overridden],
            outside=self.outside,
            outside_sides=self.outside_sides,
        )

    # -- candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self) -> _Candidates:
        rows = np.flatnonzero(self.retired)
        order = np.argsort(self.plan.old_ids, kind="stable")
        owners = self.plan.old_ids[order]
        nodes = self.plan.nodes[order]
        ends = self.ends[rows]
        first = np.searchsorted(owners, ends, side="left")
        counts = np.searchsorted(owners, ends, side="right") - first
        split = counts > 0
        n = np.maximum(counts, 1)
        pairs = n[:, 0] * n[:, 1]
        edge = np.repeat(np.arange(len(rows)), pairs)
        within = np.arange(len(edge)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        chosen = np.stack([within // n[edge, 1], within % n[edge, 1]], axis=1)
        index = np.where(split[edge], first[edge] + chosen, 0)
        both = np.where(split[edge], nodes[index], ends[edge]) if len(nodes) else ends[edge]
        contacts = self.geometry.contacts
        row = contacts.find(both[:, 0], both[:, 1])
        faces = np.append(contacts.faces, -1)[row]
        return _Candidates(rows[edge], both[:, 0], both[:, 1], faces)

    def _any(self, mask: BoolArray) -> BoolArray:
        """Return for each candidate whether ``mask`` holds for any candidate of its edge."""
        hits = np.zeros(len(self.edges), np.bool_)
        hits[self.candidates.edge[mask]] = True
        return np.asarray(hits[self.candidates.edge])

    def _nearest(self, mask: BoolArray) -> BoolArray:
        """Select the nearest candidate of each edge among those in ``mask`` (of equals: the larger, then the first)."""
        c = self.candidates
        rows = np.flatnonzero(mask)
        missing = rows[np.isinf(self.distance[rows])]
        self.distance[missing] = self.geometry.distances(c.one[missing], c.other[missing])
        sizes = np.concatenate([self.plan.voxel_counts, self.plan.kept_voxel_counts, [0]])
        size = sizes[self.plan.rows(c.one[rows])] + sizes[self.plan.rows(c.other[rows])]
        order = np.lexsort((np.arange(len(rows)), -size, self.distance[rows], c.edge[rows]))
        _, first = np.unique(c.edge[rows[order]], return_index=True)
        chosen = np.zeros(len(c), np.bool_)
        chosen[rows[order[first]]] = True
        return chosen

    def _new(self, mask: BoolArray, affinity: npt.NDArray[np.float32] | np.float32) -> LocalEdges:
        """Convert candidates to edges."""
        c = self.candidates
        pairs = np.stack([c.one[mask], c.other[mask]], axis=1)
        old = c.edge[mask]
        areas = np.where(c.faces[mask] >= 0, np.maximum(c.faces[mask], 1), self.edges.areas[old])
        affinities = np.broadcast_to(np.asarray(affinity, np.float32), len(pairs))
        return LocalEdges(pairs, affinities, areas.astype(np.uint64), self.edges.active[old])

    # -- sides --------------------------------------------------------------------------------------------------------

    def sides(self, nodes: UInt64Array) -> Sides:
        """Return the side of fragments, kept members and supervoxels joined to them by inf; 0 for others. Any shape."""
        flat = nodes.ravel()
        own = np.append(self.plan.node_sides, 0)[self.plan.rows(flat)]
        outside = np.append(self.outside_sides, 0)[find(self.outside, flat)]
        return np.where(own > 0, own, outside).astype(np.uint8).reshape(nodes.shape)

    def _outside(self) -> tuple[UInt64Array, Sides]:
        """Find the supervoxels that are joined to members by inf without being members, and the side of each."""
        pairs = self.edges.pairs[self.inf]
        ids = np.unique(pairs)
        if not len(ids):
            return ids, np.zeros(0, np.uint8)
        component = component_labels(ids, pairs)
        is_member = np.isin(ids, self.plan.members)
        outside = ids[~is_member & np.isin(component, component[is_member])]
        if not len(outside):
            return outside, np.zeros(0, np.uint8)
        inside = np.isin(pairs, outside)
        group = component_labels(outside, pairs[inside.all(axis=1)])
        voters, choices, weights = zip(*self._votes(outside), strict=True)
        votes = np.zeros((int(group.max()) + 1, 256))
        np.add.at(votes, (group[np.concatenate(voters)], np.concatenate(choices)), np.concatenate(weights))
        return outside, np.argmax(votes, axis=1)[group].astype(np.uint8)

    def _votes(self, outside: UInt64Array) -> list[tuple[IntArray, Sides, FloatArray]]:
        """Return votes: row in ``outside``, a side that it is joined to, and the weight of the connection."""
        c = self.candidates
        voter = find(outside, c.other)
        concerned = self.inf[c.edge] & (voter >= 0)
        touching = concerned & (c.faces >= 0)
        nearest = self._nearest(concerned & ~self._any(touching))
        sides = np.append(self.plan.node_sides, 0)[self.plan.rows(c.one)]
        direct = np.flatnonzero(self.inf & ~self.retired)
        ends = self.edges.pairs[direct]
        ends = np.where(np.isin(ends[:, :1], self.plan.kept), ends, ends[:, ::-1])
        to_kept = np.isin(ends[:, 0], self.plan.kept) & np.isin(ends[:, 1], outside)
        ends = ends[to_kept]
        contacts = self.geometry.contacts
        faces = np.append(contacts.faces, -1)[contacts.find(ends[:, 0], ends[:, 1])]
        return [
            (voter[touching], sides[touching], _weights(c.faces[touching])),
            (voter[nearest], sides[nearest], _weights(c.faces[nearest])),
            (find(outside, ends[:, 1]), self.plan.kept_sides[find(self.plan.kept, ends[:, 0])], _weights(faces)),
        ]

    # -- the rules ----------------------------------------------------------------------------------------------------

    def _finite(self) -> LocalEdges:
        finite = ~self.inf[self.candidates.edge]
        touching = finite & (self.candidates.faces >= 0)
        chosen = touching | self._nearest(finite & ~self._any(touching))
        return self._new(chosen, self.edges.affinities[self.candidates.edge[chosen]])

    def _uncuttable(self) -> list[LocalEdges]:
        c = self.candidates
        inf = self.inf[c.edge]
        same = inf & (self.sides(c.one) == self.sides(c.other))
        touching = inf & (c.faces >= 0)
        joined = touching & same
        # Without a contact on one side, the side keeps the edge nevertheless.
        joined |= self._nearest(same & ~self._any(joined))
        across = touching & ~same
        apart = inf & ~self._any(joined | across)
        return [self._new(joined, np.float32(np.inf)), self._new(across | self._nearest(apart), LOW_AFFINITY)]

    def _between_fragments(self) -> LocalEdges:
        """Return the edges among the fragments of each supervoxel."""
        contacts = self.geometry.contacts
        own = is_placeholder(contacts.pairs).all(axis=1)
        rows = self.plan.rows(contacts.pairs[own].ravel()).reshape(-1, 2)
        brothers = self.plan.old_ids[rows[:, 0]] == self.plan.old_ids[rows[:, 1]]
        pairs, faces = contacts.pairs[own][brothers], contacts.faces[own][brothers]
        links = self._links(rows[brothers])
        return LocalEdges.of(
            np.concatenate([pairs, links]),
            LOW_AFFINITY,
            np.concatenate([np.maximum(faces, 1), np.zeros(len(links), np.int64)]),
        )

    def _links(self, touching: IntArray) -> UInt64Array:
        """Return pairs of fragments that join the parts of supervoxels that were disconnected before; nearest first."""
        n = len(self.plan)
        if not n:
            return np.zeros((0, 2), np.uint64)
        group = components(n, touching)
        _, old = np.unique(self.plan.old_ids, return_inverse=True)
        _, owner = np.unique(np.stack([group, old]), axis=1, return_inverse=True)
        groups_of_old = np.bincount(np.unique(np.stack([old, owner.ravel()]), axis=1)[0])
        broken = np.flatnonzero(groups_of_old[old] > 1)
        one, other = (broken[i] for i in np.triu_indices(len(broken), 1))
        apart = (old[one] == old[other]) & (group[one] != group[other])
        one, other = one[apart], other[apart]
        if not len(one):
            return np.zeros((0, 2), np.uint64)
        nodes = self.plan.nodes
        distance = self.geometry.distances(nodes[one], nodes[other])
        order = np.lexsort((other, one, distance))
        # Ranks instead of distances: no two are equal, and none is 0, which would mean that there is no edge.
        rank = np.empty(len(order))
        rank[order] = np.arange(1, len(order) + 1)
        _, first = np.unique(np.stack([group[one[order]], group[other[order]]]), axis=1, return_index=True)
        best = order[first]
        between = sparse.coo_array((rank[best], (group[one[best]], group[other[best]])), shape=(n, n))
        tree = sparse.csgraph.minimum_spanning_tree(between.tocsr())
        chosen = order[tree.data.astype(np.int64) - 1]
        return np.stack([nodes[one[chosen]], nodes[other[chosen]]], axis=1)

    @cached_property
    def _is_overridden(self) -> BoolArray:
        sides = self.sides(self.edges.pairs)
        return np.asarray(self.inf & ~self.retired & (sides > 0).all(axis=1) & (sides[:, 0] != sides[:, 1]))

    def _overridden(self) -> LocalEdges:
        old = self.edges.take(self._is_overridden)
        return LocalEdges(old.pairs, np.full(len(old), LOW_AFFINITY), old.areas, old.active)

    def _bridges(self, routed: LocalEdges) -> LocalEdges:
        """Return inf edges between touching members on one side of one object that are not connected otherwise."""
        plan, contacts = self.plan, self.geometry.contacts
        pairs = contacts.pairs[np.isin(contacts.pairs, plan.nodes).all(axis=1)]
        if not len(pairs):
            return LocalEdges()
        rows = self.plan.rows(pairs.ravel()).reshape(-1, 2)
        owners = np.concatenate([plan.old_ids, plan.kept])
        inf_pairs = self.edges.pairs[self.inf]
        ids = np.union1d(inf_pairs, plan.members)
        before = component_labels(ids, inf_pairs)[find(ids, owners)]
        stays = self.inf & ~self.retired & ~self._is_overridden
        now = np.concatenate([self.edges.pairs[stays], routed.pairs[np.isinf(routed.affinities)]])
        nodes = np.unique(np.concatenate([now.ravel(), plan.nodes]))
        after = component_labels(nodes, now)[find(nodes, plan.nodes)]
        one, other = rows.T
        wanted = (plan.node_sides[one] == plan.node_sides[other]) & (before[one] == before[other])
        wanted &= (owners[one] != owners[other]) & (after[one] != after[other])
        # Two kept members that have an edge get no bridge: the old edge would stay in the edge files beside it.
        wanted &= is_placeholder(pairs).any(axis=1) | (self.edges.rows(pairs) < 0)
        # Within a chunk, touching pieces on one side come from different supervoxels, whose edges stay as they are.
        chunk = self.geometry.chunk_of(owners)
        wanted &= chunk[one] != chunk[other]
        faces = contacts.faces[contacts.find(*pairs[wanted].T)] if wanted.any() else np.zeros(0, np.int64)
        return LocalEdges.of(pairs[wanted], np.float32(np.inf), np.maximum(faces, 1))


def _weights(faces: IntArray) -> FloatArray:
    """Return the weights of contacts in the vote for a side."""
    return np.where(faces >= 0, np.maximum(faces, 1), _NEAREST_VOTE).astype(np.float64)
