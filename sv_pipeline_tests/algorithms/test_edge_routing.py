"""Edges of fragments: every rule against brute force, and what must hold whatever the rules are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.components import component_labels, find
from sv_pipeline.algorithms.edge_routing import LOW_AFFINITY, RoutedEdges, planned_edges, route_edges
from sv_pipeline.algorithms.fragments import FragmentPlan, is_placeholder, placeholders, plan_fragments
from sv_pipeline.algorithms.local_edges import LocalEdges, combined, edit_edge_rows
from sv_pipeline.algorithms.multicut.cut import Cut, LocalGraph, multicut
from sv_pipeline.algorithms.routing_checks import require_sound_routing, routing_findings
from sv_pipeline.algorithms.split_geometry import SplitGeometry
from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.errors import CorruptionError, InputError
from sv_pipeline_tests.algorithms.split_worlds import (
    OBJECT,
    Ids,
    World,
    contacts,
    edges_of,
    pieces,
    world_of,
    worlds,
)
from sv_pipeline_tests.properties import examples

RESOLUTION = (4.0, 5.0, 40.0)
INF = np.float32(np.inf)


class Routed:
    """A world, cut and routed; its members may be a part of the object."""

    def __init__(self, world: World, members: Ids | None = None, edges: LocalEdges | None = None) -> None:
        self.world = world
        self.members = world.members if members is None else members
        labels = np.where(np.isin(world.segmentation, self.members), world.sides, 0)
        self.plan = plan_fragments(world.segmentation, world.box, self.members, labels, world.grid)
        self.edges = edges_of(world) if edges is None else edges
        self.geometry = self.geometry_of(self.plan)
        self.routed = route_edges(self.geometry, self.edges)

    def geometry_of(self, plan: FragmentPlan) -> SplitGeometry:
        return SplitGeometry(plan, self.world.segmentation, RESOLUTION, self.world.grid, self.world.layout)

    @property
    def new(self) -> dict[tuple[int, int], tuple[float, int]]:
        """Pairs of nodes, in either order, to affinity and area."""
        e = self.routed.edges
        rows = zip(e.pairs.tolist(), e.affinities.tolist(), e.areas.tolist(), strict=True)
        return {key: (aff, area) for (a, b), aff, area in rows for key in ((a, b), (b, a))}

    @property
    def volume(self) -> Ids:
        volume = self.world.segmentation.copy()
        inside = np.isin(volume, self.members)
        volume[inside] = self.plan.nodes_at(np.argwhere(inside) + self.world.box.start)
        return volume

    def fragments(self, supervoxel: int) -> list[int]:
        found = placeholders(np.flatnonzero(self.plan.old_ids == supervoxel)).tolist()
        return found or [supervoxel]

    def side(self, node: int) -> int:
        ids = np.concatenate([self.plan.nodes, self.routed.outside])
        sides = np.concatenate([self.plan.node_sides, self.routed.outside_sides])
        return int(np.append(sides, 0)[np.append(np.flatnonzero(ids == node), len(ids))[0]])


def line(sides: list[int], chunk: int = 4) -> World:
    """A straight object along x."""
    return world_of(np.full((len(sides), 1, 1), OBJECT), np.array(sides)[:, None, None], (chunk, 4, 4))


# -- whatever the world is --------------------------------------------------------------------------------------------


@given(worlds(), st.booleans())
@examples(150)
def test_every_routing_is_sound(world: World, partly: bool) -> None:
    members = world.members
    if partly:
        members = members[world.layout.coordinates(members)[:, 0] > 0]
    if len(members):
        r = Routed(world, members)
        assert routing_findings(r.plan, r.edges, r.routed) == []


@given(worlds(), st.booleans())
@examples(80)
def test_edges_follow_the_table(world: World, partly: bool) -> None:
    members = world.members
    if partly:
        members = members[world.layout.coordinates(members)[:, 0] > 0]
    if not len(members):
        return
    r = Routed(world, members)
    touching, new, old = contacts(r.volume), r.new, combined(r.edges)
    for (a, b), affinity, area in zip(old.pairs.tolist(), old.affinities.tolist(), old.areas.tolist(), strict=True):
        if not {a, b} & set(r.plan.split_ids.tolist()):
            continue
        candidates = [(x, y) for x in r.fragments(a) for y in r.fragments(b)]
        faces = {p: touching.get((min(p), max(p))) for p in candidates}
        made = {p: new[p] for p in candidates if p in new}
        in_contact = {p for p in candidates if faces[p] is not None}
        if np.isinf(affinity):
            same = {p for p in candidates if r.side(p[0]) == r.side(p[1])}
            for p in in_contact - same:
                assert made[p] == (LOW_AFFINITY, max(1, faces[p] or 0))
            for p in in_contact & same:
                assert made[p] == (INF, max(1, faces[p] or 0))
            others = set(made) - in_contact
            if same and not in_contact & same:
                assert len(others) == 1
                assert others <= same
                assert made[others.pop()] == (INF, area)
            elif not in_contact:
                assert list(made.values()) == [(LOW_AFFINITY, area)]
            else:
                assert not others
        elif in_contact:
            assert made == {p: (np.float32(affinity), max(1, faces[p] or 0)) for p in in_contact}
        else:
            assert list(made.values()) == [(np.float32(affinity), area)]
            distances = r.geometry.distances(*_fragment_first(list(candidates)))
            nearest = r.geometry.distances(*_fragment_first(list(made)))
            assert nearest[0] == distances.min()


def _fragment_first(pairs: list[tuple[int, int]]) -> tuple[Ids, Ids]:
    ends = np.array(pairs, np.uint64)
    ends = np.where(is_placeholder(ends[:, :1]), ends, ends[:, ::-1])
    return ends[:, 0], ends[:, 1]


@given(worlds())
@examples(80)
def test_a_side_whose_voxels_hang_together_hangs_together_by_inf(world: World) -> None:
    r = Routed(world)
    keep = np.isinf(r.routed.edges.affinities)
    old = combined(r.edges)
    gone = LocalEdges.of(np.concatenate([r.routed.retired, r.routed.overridden])).rows(old.pairs) >= 0
    pairs = np.concatenate([old.pairs[np.isinf(old.affinities) & ~gone], r.routed.edges.pairs[keep]])
    ids = np.unique(np.concatenate([pairs.ravel(), r.plan.nodes]))
    component = component_labels(ids, pairs)[find(ids, r.plan.nodes)]
    for side in (1, 2):
        found, n = pieces(world.sides == side)
        for piece in range(1, n + 1):
            nodes = r.plan.nodes_at(np.argwhere(found == piece) + world.box.start)
            assert len(np.unique(component[r.plan.rows(nodes)])) == 1


@given(worlds())
@examples(60)
def test_without_a_cut_the_objects_are_what_they_were(world: World) -> None:
    """Fragments stay in the objects of their supervoxels until edges are cut."""
    r = Routed(world)
    old = combined(r.edges)
    new = planned_edges(r.edges, r.routed)
    before_ids = np.unique(np.concatenate([old.pairs.ravel(), r.plan.members]))
    before = component_labels(before_ids, old.pairs[old.active])
    after_ids = np.unique(np.concatenate([new.pairs.ravel(), r.plan.nodes, np.setdiff1d(before_ids, r.plan.split_ids)]))
    after = component_labels(after_ids, new.pairs)
    owner = after_ids.copy()
    fragments = is_placeholder(after_ids)
    owner[fragments] = r.plan.old_ids[r.plan.rows(after_ids[fragments])]
    pairs = np.unique(np.stack([before[find(before_ids, owner)], after]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@given(worlds(), st.integers(0, 1000))
@examples(40)
def test_the_order_and_direction_of_old_edges_do_not_matter(world: World, seed: int) -> None:
    first = Routed(world)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.concatenate([np.arange(len(first.edges)), rng.integers(0, len(first.edges), 5)]))
    edges = first.edges.take(order)
    flipped = np.where(rng.random(len(order))[:, None] < 0.5, edges.pairs, edges.pairs[:, ::-1])
    other = Routed(world, edges=LocalEdges(flipped, edges.affinities, edges.areas, edges.active))
    assert other.new == first.new
    np.testing.assert_array_equal(other.routed.retired, first.routed.retired)


@given(worlds(), st.booleans())
@examples(60)
def test_with_new_ids_for_some_kept_members_no_pair_is_overridden(world: World, partly: bool) -> None:
    members = world.members
    if partly:
        members = members[world.layout.coordinates(members)[:, 0] > 0]
    if not len(members):
        return
    first = Routed(world, members)
    plan = first.plan.renewing(first.routed.to_renew(first.plan), world.grid)
    routed = route_edges(first.geometry_of(plan), first.edges)
    assert len(routed.overridden) == 0
    assert routing_findings(plan, first.edges, routed) == []


@given(worlds(max_labels=2), st.integers(0, 1 << 20))
@examples(60)
def test_the_planned_graph_can_be_cut_between_the_points(world: World, seed: int) -> None:
    mask = pieces(world.source == OBJECT)[0] == 1
    voxels = np.argwhere(mask)
    if len(voxels) < 2:
        return
    source, sink = np.random.default_rng(seed).choice(voxels, 2, replace=False)
    sides = np.zeros(mask.shape, np.uint8)
    sides[mask] = cut_mask(mask, [source], [sink], RESOLUTION)[mask]
    cut = World(world.grid, world.layout, world.source, world.segmentation, sides)
    r = Routed(cut, np.unique(world.segmentation[mask]))
    start = np.asarray(world.box.start)
    sources = r.geometry.nodes_near([source + start], 1)
    sinks = r.geometry.nodes_near([sink + start], 2)
    planned = planned_edges(r.edges, r.routed)
    outcome = multicut(LocalGraph(planned.pairs, planned.affinities), sources, sinks, disallow_isolating_cut=False)
    assert isinstance(outcome, Cut)
    for side, ids in ((1, outcome.source_side), (2, outcome.sink_side)):
        assert np.isin(r.plan.nodes[r.plan.node_sides == side], ids).all()


# -- cases ------------------------------------------------------------------------------------------------------------


def test_a_supervoxel_without_edges_is_split_all_the_same() -> None:
    r = Routed(line([1, 2, 2]), edges=LocalEdges())
    assert r.new[tuple(placeholders([0, 1]).tolist())] == (LOW_AFFINITY, 1)
    assert len(r.routed.edges) == 1
    assert routing_findings(r.plan, r.edges, r.routed) == []


def test_a_cut_on_a_chunk_face_makes_the_edge_across_it_cuttable() -> None:
    r = Routed(line([1] * 4 + [2] * 4), edges=LocalEdges.of(line([1] * 8).members[None], np.inf, 3))
    assert len(r.plan) == 0
    np.testing.assert_array_equal(r.routed.overridden, r.plan.kept[None])
    assert r.new[tuple(r.plan.kept.tolist())] == (LOW_AFFINITY, 3)
    assert r.routed.to_renew(r.plan).tolist() == r.plan.kept[:1].tolist()
    planned = planned_edges(r.edges, r.routed)
    assert isinstance(
        multicut(LocalGraph(planned.pairs, planned.affinities), *r.plan.kept, disallow_isolating_cut=False), Cut
    )


def test_the_smaller_member_at_a_chunk_face_is_the_one_to_renew() -> None:
    world = line([1] * 4 + [2] * 2)
    r = Routed(world, edges=LocalEdges.of(world.members[None], np.inf, 1))
    assert r.routed.to_renew(r.plan).tolist() == world.members[1:].tolist()


def test_pieces_of_one_side_are_not_joined_by_inf_through_the_other_side() -> None:
    """a b a in one chunk: the two a hang together only through b."""
    r = Routed(line([1, 2, 1]), edges=LocalEdges())
    assert r.new.keys() >= {tuple(placeholders([0, 2]).tolist()), tuple(placeholders([1, 2]).tolist())}
    assert tuple(placeholders([0, 1]).tolist()) not in r.new
    assert (r.routed.edges.affinities == LOW_AFFINITY).all()


def test_what_is_outside_of_the_region_goes_to_one_side_as_a_whole() -> None:
    """A ring: its back is not cut, and touches both sides; more of it touches the second."""
    source = np.ones((8, 8, 1), int)
    source[2:6, 2:6] = 0
    sides = np.where(np.indices(source.shape)[0] < 4, 1, 2)
    sides[:, 1] = 2
    world = world_of(source, sides, (8, 2, 1))
    coordinates = world.layout.coordinates(world.members)
    r = Routed(world, world.members[coordinates[:, 1] == 0])
    assert len(r.routed.outside) == len(world.members) - 1
    assert set(r.routed.outside_sides.tolist()) == {2}
    assert routing_findings(r.plan, r.edges, r.routed) == []
    assert {affinity for affinity, _ in r.new.values()} >= {float("inf")}


def test_partners_of_other_objects_keep_inactive_edges_to_all_fragments_they_touch() -> None:
    source = np.full((6, 2, 1), OBJECT)
    source[:, 1] = 2
    world = world_of(source, np.repeat([1, 2], 3)[:, None, None] * np.ones((1, 2, 1), int), (6, 2, 1))
    (member,), partner = world.members, int(world.segmentation[0, 1, 0])
    r = Routed(world, edges=LocalEdges.of([[member, partner]], 0.25, 6, False))
    assert r.new[int(placeholders(0)), partner] == (0.25, 3) == r.new[int(placeholders(1)), partner]
    rows = r.routed.edges.rows(np.array([[int(placeholders(0)), partner]], np.uint64))
    assert not r.routed.edges.active[rows].any()
    assert len(planned_edges(r.edges, r.routed)) == 1


def test_a_partner_far_away_goes_to_the_nearest_fragment_alone() -> None:
    source = np.zeros((12, 1, 1), int)
    source[:4], source[9:] = OBJECT, 2
    world = world_of(source, np.where(np.arange(12) < 2, 1, 2)[:, None, None], (4, 1, 1))
    partner = int(world.segmentation[-1, 0, 0])
    r = Routed(world, edges=LocalEdges.of([[world.members[0], partner]], 1e-30, 0))
    assert (int(placeholders(1)), partner) in r.new
    assert (int(placeholders(0)), partner) not in r.new


def test_pieces_of_a_supervoxel_that_was_broken_before_get_an_edge_to_the_nearest() -> None:
    world = line([1, 1, 1, 2, 2, 2, 2, 2], chunk=8)
    segmentation = world.segmentation.copy()
    segmentation[[1, 6]] = 0
    broken = World(
        world.grid,
        world.layout,
        world.source * (segmentation > 0),
        segmentation,
        world.sides * (segmentation > 0).astype(np.uint8),
    )
    r = Routed(broken, edges=LocalEdges())
    assert r.plan.first_voxels[:, 0].tolist() == [0, 2, 3, 7]
    made = {tuple(sorted(p)) for p in r.new}
    assert made == {tuple(placeholders(p).tolist()) for p in ([0, 1], [1, 2], [2, 3])}
    assert routing_findings(r.plan, r.edges, r.routed) == []


def test_members_of_a_side_that_touch_without_an_edge_are_joined_if_nothing_else_joins_them() -> None:
    """Two pieces in neighbour chunks without an edge of their own: the object's other half joined them."""
    source = np.ones((4, 3, 1), int)
    source[1:3, 1] = 0
    world = world_of(source, np.where(np.indices(source.shape)[1] < 2, 1, 2), (2, 3, 1))
    left, right = world.members
    world.segmentation[0, 1] = left
    r = Routed(world, edges=LocalEdges.of([[left, right]], np.inf, 1))
    sides = {frozenset(p): a for p, (a, _) in r.new.items() if len({r.side(n) for n in p}) == 1}
    assert len(sides) == 2
    assert set(sides.values()) == {float("inf")}
    cutoff = LocalEdges.of([[left, int(left) + 99], [int(left) + 99, right]], np.inf, 1)
    r = Routed(world, edges=cutoff)
    bridged = [p for p in r.new if is_placeholder(p).all() and r.new[p][0] == float("inf")]
    assert bridged


def test_several_objects_are_split_in_one_plan() -> None:
    """Two representatives, next to each other, joined by a finite edge; a cut goes through both."""
    source = np.full((8, 2, 1), OBJECT)
    world = world_of(source, np.where(np.indices(source.shape)[0] < 3, 1, 2), (8, 1, 1))
    first, second = world.members
    r = Routed(world, edges=LocalEdges.of([[first, second]], 0.5, 8))
    assert len(r.plan) == 4
    within = {frozenset(p): v for p, v in r.new.items() if r.side(p[0]) == r.side(p[1])}
    assert sorted(within.values()) == [(0.5, 3), (0.5, 5)]
    planned = planned_edges(r.edges, r.routed)
    sources, sinks = r.plan.nodes[r.plan.node_sides == 1], r.plan.nodes[r.plan.node_sides == 2]
    cut = multicut(LocalGraph(planned.pairs, planned.affinities), sources, sinks, disallow_isolating_cut=False)
    assert isinstance(cut, Cut)
    assert sorted(cut.source_side.tolist()) == sorted(sources.tolist())


# -- checks that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop", "from a node to itself"),
        ("twice", "more than one"),
        ("ghost", "does not exist"),
        ("nan", "no usable affinity"),
        ("drop partner", "no replacement"),
        ("drop brothers", "not joined to each other"),
        ("inf across", "two sides cannot be cut apart"),
        ("retire less", "retired"),
    ],
)
def test_planted_faults_are_found(change: str, message: str) -> None:
    world = line([1, 1, 2, 2, 2, 2])
    r = Routed(world, edges=LocalEdges.of(world.members[None], np.inf, 1))
    e, brothers = r.routed.edges, is_placeholder(r.routed.edges.pairs).all(axis=1)
    changed = {
        "loop": lambda: LocalEdges.join([e, LocalEdges.of([[e.pairs[0, 0]] * 2])]),
        "twice": lambda: LocalEdges.join([e, LocalEdges.of(e.pairs[:1, ::-1])]),
        "ghost": lambda: LocalEdges.join([e, LocalEdges.of([[placeholders(9), world.members[1]]])]),
        "nan": lambda: LocalEdges.of(e.pairs, np.nan),
        "drop partner": lambda: e.take(brothers),
        "drop brothers": lambda: e.take(~brothers),
        "inf across": lambda: LocalEdges.of(e.pairs, np.inf),
        "retire less": lambda: e,
    }[change]()
    retired = r.routed.retired[:0] if change == "retire less" else r.routed.retired
    faulty = RoutedEdges(changed, retired, r.routed.overridden, r.routed.outside, r.routed.outside_sides)
    with pytest.raises(CorruptionError, match=message):
        require_sound_routing(r.plan, r.edges, faulty)
    require_sound_routing(r.plan, r.edges, r.routed)


# -- edges and rows ---------------------------------------------------------------------------------------------------


def test_edges_of_a_pair_become_one() -> None:
    edges = LocalEdges.of(
        [[2, 1], [1, 2], [3, 3], [1, 3]], [0.1, 0.7, 1, 0.5], [9, 2, 1, 1], [False, True, True, False]
    )
    result = combined(edges)
    assert result.pairs.tolist() == [[1, 2], [1, 3]]
    assert result.affinities.tolist() == [np.float32(0.7), 0.5]
    assert result.areas.tolist() == [9, 1]
    assert result.active.tolist() == [True, False]
    assert edges.rows(np.array([[1, 2], [3, 1], [2, 3], [8, 9]], np.uint64)).tolist() in (
        [0, 3, -1, -1],
        [1, 3, -1, -1],
    )
    assert len(combined(LocalEdges())) == 0
    with pytest.raises(InputError, match="do not go with"):
        LocalEdges(edges.pairs, edges.affinities[1:], edges.areas, edges.active)


@given(worlds())
@examples(30)
def test_rows_of_edits_hold_every_edge_from_both_ends(world: World) -> None:
    r = Routed(world)
    e = r.routed.edges
    chunk_ids = world.layout.chunk_ids(1, r.plan.chunks) if len(r.plan) else np.zeros(0, np.uint64)
    new_ids = world.layout.node_ids(chunk_ids, 1000 + np.arange(len(r.plan), dtype=np.uint64))
    final = LocalEdges(r.plan.resolve(e.pairs, new_ids), e.affinities, e.areas, e.active)
    rows = edit_edge_rows(final, world.layout)
    assert [row.chunk_id for row in rows] == sorted({row.chunk_id for row in rows})
    found = set()
    for row in rows:
        coordinates = world.layout.coordinates(row.pairs[:, 0])
        assert (world.layout.chunk_ids(2, coordinates) == row.chunk_id).all()
        assert len(row.pairs) == len(row.affinities) == len(row.areas)
        found |= {(a, b, x, n) for (a, b), x, n in zip(row.pairs.tolist(), row.affinities, row.areas, strict=True)}
    both = np.concatenate([final.pairs, final.pairs[:, ::-1]]).tolist()
    values = list(zip(final.affinities, final.areas, strict=True)) * 2
    assert found == {(a, b, *v) for (a, b), v in zip(both, values, strict=True)}
