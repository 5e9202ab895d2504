from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.multicut.cut import (
    Cut,
    LocalGraph,
    Preview,
    Refusal,
    Refused,
    SupervoxelSplitRequired,
    multicut,
    preview,
)
from sv_pipeline.errors import InputError
from sv_pipeline_tests.properties import examples

Row = tuple[int, int, float]
INF = float("inf")
BIG = 1 << 60
"""Supervoxel ids are larger than what a double or an int64 sum can hold."""


def local(rows: list[Row], dtype: npt.DTypeLike = np.float32) -> LocalGraph:
    return LocalGraph(
        np.array([row[:2] for row in rows], np.uint64).reshape(-1, 2), np.array([row[2] for row in rows], dtype)
    )


def cut_of(rows: list[Row], sources: list[int], sinks: list[int], **options: bool) -> Cut:
    outcome = multicut(local(rows), sources, sinks, **options)
    assert isinstance(outcome, Cut), outcome
    return outcome


def refusal_of(rows: list[Row], sources: list[int], sinks: list[int], **options: bool) -> Refused:
    outcome = multicut(local(rows), sources, sinks, **options)
    assert isinstance(outcome, Refused), outcome
    return outcome


def lists(arrays: tuple[npt.NDArray[Any], ...]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


CHAIN: list[Row] = [(1, 2, 0.9), (2, 3, 0.8), (3, 4, 0.1), (4, 5, 0.7), (5, 6, 0.9)]


# -- cuts -------------------------------------------------------------------------------------------------------------


def test_a_chain_is_cut_at_its_weakest_edge() -> None:
    cut = cut_of(CHAIN, [1], [6])
    assert cut.removed_edges.tolist() == [[3, 4]]
    assert cut.removed_edges.dtype == np.uint64
    assert cut.source_side.tolist() == [1, 2, 3]
    assert cut.sink_side.tolist() == [4, 5, 6]
    assert cut.rest == ()
    assert cut.weight == pytest.approx(0.1)


def test_order_and_repetition_of_points_do_not_matter() -> None:
    cut = cut_of(CHAIN, [2, 1, 2, 1], [6, 5, 5])
    assert cut.removed_edges.tolist() == [[3, 4]]


def test_ids_near_the_top_of_uint64_survive() -> None:
    top = 2**64 - 10
    rows = [(a + top, b + top, affinity) for a, b, affinity in CHAIN]
    cut = cut_of(rows, [1 + top], [6 + top])
    assert cut.removed_edges.tolist() == [[3 + top, 4 + top]]


def test_an_edge_listed_in_both_directions_is_removed_in_both() -> None:
    cut = cut_of([*CHAIN, (4, 3, 0.1), (2, 1, 0.9)], [1], [6])
    assert cut.removed_edges.tolist() == [[3, 4], [4, 3]]
    assert cut.weight == pytest.approx(0.2)


def test_all_rows_of_a_pair_count() -> None:
    rows: list[Row] = [(1, 2, 0.9), (2, 3, 0.3), (2, 3, 0.3), (3, 2, 0.3), (3, 4, 0.5), (4, 5, 0.9)]
    assert cut_of(rows, [1], [5]).removed_edges.tolist() == [[3, 4]]


def test_self_loops_mean_nothing() -> None:
    rows: list[Row] = [*CHAIN, (3, 3, 5.0), (4, 4, INF), (9, 9, 1.0)]
    cut = cut_of(rows, [1], [6])
    assert cut.removed_edges.tolist() == [[3, 4]]
    assert lists(cut.rest) == [[9]]


def test_all_edges_between_two_representatives_are_removed() -> None:
    # 2 = 12 and 3 = 13 are supervoxels in two pieces; all four pairs touch.
    rows: list[Row] = [(1, 2, 0.9), (2, 12, INF), (13, 3, INF), (3, 4, 0.9)]
    rows += [(2, 3, 0.1), (12, 3, 0.1), (13, 2, 0.1), (12, 13, 0.1), (13, 12, 0.1)]
    cut = cut_of(rows, [1], [4])
    assert cut.removed_edges.tolist() == [[2, 3], [12, 3], [12, 13], [13, 2], [13, 12]]
    assert cut.source_side.tolist() == [1, 2, 12]
    assert cut.sink_side.tolist() == [3, 4, 13]


def test_uncuttable_edges_are_never_removed() -> None:
    cut = cut_of([(1, 2, 0.5), (2, 3, INF), (3, 4, INF), (4, 5, 0.6)], [1], [5], disallow_isolating_cut=False)
    assert cut.removed_edges.tolist() == [[1, 2]]


def test_points_on_pieces_of_one_supervoxel_are_one_point() -> None:
    cut = cut_of([*CHAIN, (1, 101, INF), (101, 102, INF)], [102, 101], [6])
    assert cut.removed_edges.tolist() == [[3, 4]]
    assert cut.source_side.tolist() == [1, 2, 3, 101, 102]


def test_components_without_points_are_the_rest() -> None:
    rows: list[Row] = [*CHAIN, (21, 20, 0.5), (31, 30, INF), (30, 32, 0.1)]
    cut = cut_of(rows, [1], [6])
    assert lists(cut.rest) == [[20, 21], [30, 31, 32]]
    assert cut.removed_edges.tolist() == [[3, 4]]


def test_a_tie_goes_to_the_smaller_source_side() -> None:
    rows: list[Row] = [(1, 2, 0.9), (2, 3, 0.5), (3, 4, 0.5), (4, 5, 0.5), (5, 6, 0.9)]
    assert cut_of(rows, [1], [6]).removed_edges.tolist() == [[2, 3]]
    assert cut_of(rows, [6], [1]).removed_edges.tolist() == [[4, 5]]


def test_what_hangs_on_an_edge_of_affinity_0_does_not_fall_off() -> None:
    cut = cut_of([*CHAIN, (2, 20, 0.0), (20, 21, 0.5), (5, 22, 0.0)], [1], [6])
    assert cut.removed_edges.tolist() == [[3, 4]]
    assert cut.source_side.tolist() == [1, 2, 3, 20, 21]
    assert cut.sink_side.tolist() == [4, 5, 6, 22]


def test_an_edge_of_affinity_0_between_the_sides_is_removed() -> None:
    cut = cut_of([*CHAIN, (2, 5, 0.0)], [1], [6])
    assert cut.removed_edges.tolist() == [[2, 5], [3, 4]]
    cut = cut_of([(1, 2, 0.5), (2, 3, 0.0), (3, 4, 0.5)], [1], [4])
    assert cut.removed_edges.tolist() == [[2, 3]]


def test_a_fake_edge_is_the_first_to_be_cut() -> None:
    fake = float(np.finfo(np.float32).tiny)
    cut = cut_of([(1, 2, 0.01), (2, 3, fake), (3, 4, 0.01), (4, 5, 0.01)], [1], [5])
    assert cut.removed_edges.tolist() == [[2, 3]]


def test_two_supervoxels_can_be_parted() -> None:
    cut = cut_of([(1, 2, 0.5)], [1], [2])
    assert cut.removed_edges.tolist() == [[1, 2]]
    assert (cut.source_side.tolist(), cut.sink_side.tolist()) == ([1], [2])


def test_paths_keep_the_points_of_a_side_together() -> None:
    # Without paths the cheapest cut goes around 3, between the sources 1 and 5.
    rows: list[Row] = [(1, 2, 0.9), (2, 3, 0.2), (3, 4, 0.2), (4, 5, 0.9), (1, 11, 0.3), (3, 13, 0.7), (5, 15, 0.3)]
    rows += [(11, 12, 0.9), (12, 13, 0.9), (13, 14, 0.9), (14, 15, 0.9)]
    refused = refusal_of(rows, [1, 5], [11, 15], path_augmentation=False)
    assert refused.reason == Refusal.SIDE_FALLS_APART
    cut = cut_of(rows, [1, 5], [11, 15], disallow_isolating_cut=False)
    assert cut.removed_edges.tolist() == [[1, 11], [3, 13], [5, 15]]
    assert cut.source_side.tolist() == [1, 2, 3, 4, 5]


# -- supervoxel splits ------------------------------------------------------------------------------------------------


def test_an_object_of_one_supervoxel_needs_a_supervoxel_split() -> None:
    outcome = multicut(local([]), [7], [7])
    assert isinstance(outcome, SupervoxelSplitRequired)
    (shared,) = outcome.shared
    assert shared.representative == 7
    assert shared.members.tolist() == shared.sources.tolist() == shared.sinks.tolist() == [7]


def test_an_object_of_one_supervoxel_in_pieces_needs_a_supervoxel_split() -> None:
    outcome = multicut(local([(9, 8, INF), (8, 7, INF)]), [9], [8, 7])
    assert isinstance(outcome, SupervoxelSplitRequired)
    (shared,) = outcome.shared
    assert shared.representative == 7
    assert shared.members.tolist() == [7, 8, 9]
    assert shared.sources.tolist() == [9]
    assert shared.sinks.tolist() == [7, 8]
    assert "7" in outcome.message


def test_only_shared_representatives_are_named_each_with_its_own_points() -> None:
    rows: list[Row] = [(1, 2, 0.9), (2, 12, INF), (12, 3, 0.8), (3, 4, 0.7), (4, 14, INF)]
    outcome = multicut(local(rows), [1, 2, 4], [12, 3, 14, 4])
    assert isinstance(outcome, SupervoxelSplitRequired)
    assert [s.representative for s in outcome.shared] == [2, 4]
    assert lists(tuple(s.members for s in outcome.shared)) == [[2, 12], [4, 14]]
    assert lists(tuple(s.sources for s in outcome.shared)) == [[2], [4]]
    assert lists(tuple(s.sinks for s in outcome.shared)) == [[12], [4, 14]]


def test_overlap_is_found_before_points_that_are_not_in_the_region() -> None:
    assert isinstance(multicut(local(CHAIN), [1, 3], [3, 99]), SupervoxelSplitRequired)


def test_a_shared_supervoxel_is_refused_where_supervoxels_may_not_be_split() -> None:
    refused = refusal_of(CHAIN, [1, 3], [3, 6], supervoxel_split_allowed=False)
    assert refused.reason == Refusal.SHARED_SUPERVOXEL
    assert refused.supervoxels.tolist() == [3]
    assert "3" in refused.message


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "sinks", "reason", "named"),
    [
        ([], [6], Refusal.NO_POINTS, "source"),
        ([1], [], Refusal.NO_POINTS, "sink"),
        ([0, 1], [6], Refusal.BACKGROUND, "source"),
        ([0], [0], Refusal.BACKGROUND, "source"),
        ([1, 99], [6], Refusal.NOT_IN_REGION, "99"),
        ([1], [98], Refusal.NOT_IN_REGION, "98"),
        ([1], [40], Refusal.NOT_IN_REGION, "40"),
        ([1], [20], Refusal.NOT_CONNECTED, "nothing to cut"),
        ([1, 20], [6], Refusal.SIDE_NOT_CONNECTED, "20"),
        ([1], [6, 20], Refusal.SIDE_NOT_CONNECTED, "20"),
        ([1, 4], [6, 3], Refusal.SIDE_NOT_CONNECTED, "4"),
    ],
)
def test_points_that_cannot_be_parted_are_refused(
    sources: list[int], sinks: list[int], reason: Refusal, named: str
) -> None:
    rows: list[Row] = [*CHAIN, (20, 21, 0.5), (40, 41, INF)]
    refused = refusal_of(rows, sources, sinks)
    assert refused.reason == reason
    assert named in refused.message


def test_only_uncuttable_edges_and_no_overlap_is_refused() -> None:
    assert refusal_of([(1, 2, INF), (3, 4, INF)], [1], [4]).reason == Refusal.NOT_IN_REGION


def test_crossing_paths_are_refused_with_the_supervoxel_where_they_cross() -> None:
    refused = refusal_of([(1, 5, 0.9), (2, 5, 0.8), (3, 5, 0.7), (4, 5, 0.6)], [1, 2], [3, 4])
    assert refused.reason == Refusal.PATHS_CROSS
    assert refused.supervoxels.tolist() == [5]
    assert "5" in refused.message


def test_crossing_paths_are_kept_apart_where_one_side_can_go_around() -> None:
    rows: list[Row] = [(1, 5, 0.9), (2, 5, 0.8), (3, 5, 0.7), (4, 5, 0.6), (3, 6, 0.1), (6, 4, 0.1)]
    cut = cut_of(rows, [1, 2], [3, 4])
    assert cut.removed_edges.tolist() == [[3, 5], [4, 5]]
    assert cut.sink_side.tolist() == [3, 4, 6]


def test_a_cut_that_isolates_the_points_of_a_side_is_refused() -> None:
    rows: list[Row] = [(1, 2, 0.1), (2, 3, 0.9), (3, 4, 0.9)]
    for sources, sinks, side in (([1], [4], "source"), ([4], [1], "sink")):
        refused = refusal_of(rows, sources, sinks)
        assert refused.reason == Refusal.ISOLATING_CUT
        assert side in refused.message
        cut = cut_of(rows, sources, sinks, disallow_isolating_cut=False)
        assert cut.removed_edges.tolist() == [[1, 2]]


def test_a_cut_around_a_path_is_isolating_too() -> None:
    rows: list[Row] = [(1, 2, 0.9), (2, 3, 0.9), (2, 4, 0.1), (4, 5, 0.9), (5, 6, 0.9)]
    assert refusal_of(rows, [1, 3], [6]).reason == Refusal.ISOLATING_CUT
    assert cut_of([*rows, (1, 7, 0.9)], [1, 3], [6]).source_side.tolist() == [1, 2, 3, 7]


def test_a_side_whose_only_neighbours_are_points_of_the_other_is_not_isolated() -> None:
    cut = cut_of([(1, 2, 0.5), (2, 3, 0.9)], [1], [2])
    assert cut.removed_edges.tolist() == [[1, 2]]


def test_broken_arrays_are_an_input_error() -> None:
    with pytest.raises(InputError, match="nan"):
        local([(1, 2, 0.5), (3, 4, float("nan"))])
    with pytest.raises(InputError, match="3 and 4"):
        local([(1, 2, 0.5), (3, 4, -0.5)])
    with pytest.raises(InputError, match="shape"):
        LocalGraph(np.zeros((3, 2), np.uint64), np.zeros(2))
    with pytest.raises(InputError, match="areas"):
        LocalGraph(np.zeros((3, 2), np.uint64), np.zeros(3), np.zeros(2))


# -- preview ----------------------------------------------------------------------------------------------------------


def test_preview_shows_the_components_of_a_legal_cut() -> None:
    shown = preview(local([*CHAIN, (20, 21, 0.5)]), [1], [6])
    assert isinstance(shown, Preview)
    assert not shown.illegal
    assert lists(shown.components) == [[1, 2, 3], [4, 5, 6], [20, 21]]


def test_preview_shows_an_isolating_cut_and_says_that_it_is_illegal() -> None:
    shown = preview(local([(1, 2, 0.1), (2, 3, 0.9)]), [1], [3])
    assert isinstance(shown, Preview)
    assert shown.illegal
    assert shown.refused is not None
    assert shown.refused.reason == Refusal.ISOLATING_CUT
    assert lists(shown.components) == [[1], [2, 3]]


def test_preview_shows_a_side_that_falls_apart() -> None:
    shown = preview(local([(1, 2, 0.1), (2, 3, 0.1), (2, 4, 0.9)]), [1, 3], [2], path_augmentation=False)
    assert isinstance(shown, Preview)
    assert shown.refused is not None
    assert shown.refused.reason == Refusal.SIDE_FALLS_APART
    assert lists(shown.components) == [[1, 3], [2, 4]]


def test_preview_hands_on_what_has_no_cut() -> None:
    assert isinstance(preview(local(CHAIN), [1], [1]), SupervoxelSplitRequired)
    assert isinstance(preview(local(CHAIN), [1], [99]), Refused)


# -- properties -------------------------------------------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn, unique_cuts: bool = False) -> tuple[list[Row], list[int], list[int]]:
    """Local graphs with inf edges, rows in both directions, several components; up to three points per side."""
    n = draw(st.integers(2, 12))
    offsets = draw(st.permutations(range(n)))
    ids = [BIG + 7 * offset for offset in offsets]
    pair = st.tuples(st.sampled_from(ids), st.sampled_from(ids))
    pairs = draw(st.lists(pair, min_size=1, max_size=30))
    if unique_cuts:
        # Sums of different powers of two differ, so all cuts do.
        affinities = [float(2.0**-i) for i in draw(st.permutations(range(len(pairs))))]
        affinities = [INF if draw(st.integers(0, 5)) == 0 else affinity for affinity in affinities]
    else:
        values = st.one_of(st.integers(0, 3).map(float), st.floats(2.0**-20, 1, width=32), st.just(INF))
        affinities = [draw(values) for _ in pairs]
    most = 2 if unique_cuts else 3
    points = st.lists(st.sampled_from(ids), min_size=1, max_size=most, unique=True)
    rows = [(a, b, affinity) for (a, b), affinity in zip(pairs, affinities, strict=True)]
    return rows, draw(points), draw(points)


def contracted(rows: list[Row]) -> tuple[nx.Graph[int], dict[int, int]]:
    """The oracle's own contraction: graph of representatives, and the representative of every supervoxel."""
    joined: nx.Graph[int] = nx.Graph()
    joined.add_nodes_from(i for row in rows for i in row[:2])
    joined.add_edges_from((a, b) for a, b, affinity in rows if affinity == INF)
    representative = {i: min(part) for part in nx.connected_components(joined) for i in part}
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(representative.values())
    for a, b, affinity in rows:
        u, v = representative[a], representative[b]
        if u != v:
            known = graph.get_edge_data(u, v, {"capacity": 0.0})["capacity"]
            graph.add_edge(u, v, capacity=known + affinity)
    return graph, representative


def check_parts(rows: list[Row], cut: Cut, sources: list[int], sinks: list[int]) -> None:
    """The parts of a cut are exactly what the kept rows connect, and the removed rows join the two sides."""
    removed = {tuple(edge) for edge in cut.removed_edges.tolist()}
    kept: nx.Graph[int] = nx.Graph()
    kept.add_nodes_from(i for row in rows for i in row[:2])
    kept.add_edges_from((a, b) for a, b, _ in rows if (a, b) not in removed)
    parts = {frozenset(part) for part in nx.connected_components(kept)}
    source_side, sink_side = frozenset(cut.source_side.tolist()), frozenset(cut.sink_side.tolist())
    assert parts == {source_side, sink_side, *(frozenset(part.tolist()) for part in cut.rest)}
    assert source_side.issuperset(sources)
    assert sink_side.issuperset(sinks)
    assert removed == {(a, b) for a, b, _ in rows if (a in source_side and b in sink_side) or
                       (b in source_side and a in sink_side)}  # fmt: skip
    assert removed
    weight = sum(affinity for a, b, affinity in rows if (a, b) in removed)
    assert cut.weight == pytest.approx(weight)
    assert np.isfinite(cut.weight)


@examples(200)
@given(request=requests())
def test_between_two_points_the_cut_weighs_what_networkx_says(request: tuple[list[Row], list[int], list[int]]) -> None:
    rows, (source, *_), (sink, *_) = request
    graph, representative = contracted(rows)
    outcome = multicut(local(rows), [source], [sink], disallow_isolating_cut=False)
    u, v = representative.get(source, source), representative.get(sink, sink)
    if u == v:
        assert isinstance(outcome, SupervoxelSplitRequired)
        members = sorted({source} | {i for i, r in representative.items() if r == u})
        assert outcome.shared[0].members.tolist() == members
    elif u not in graph or v not in graph or not nx.has_path(graph, u, v):
        assert isinstance(outcome, Refused)
        assert outcome.reason in (Refusal.NOT_IN_REGION, Refusal.NOT_CONNECTED)
    else:
        assert isinstance(outcome, Cut)
        assert outcome.weight == pytest.approx(nx.minimum_cut_value(graph, u, v))
        check_parts(rows, outcome, [source], [sink])


@examples(200)
@given(request=requests(), path_augmentation=st.booleans())
def test_a_cut_of_several_points_parts_the_sides_and_nothing_else(
    request: tuple[list[Row], list[int], list[int]], path_augmentation: bool
) -> None:
    rows, sources, sinks = request
    graph, representative = contracted(rows)
    outcome = multicut(local(rows), sources, sinks, path_augmentation=path_augmentation, disallow_isolating_cut=False)
    source_vertices = {representative.get(i, i) for i in sources}
    sink_vertices = {representative.get(i, i) for i in sinks}
    assert isinstance(outcome, SupervoxelSplitRequired) == bool(source_vertices & sink_vertices)
    if isinstance(outcome, Cut):
        check_parts(rows, outcome, sources, sinks)
        graph.add_edges_from(("source", i) for i in source_vertices)
        graph.add_edges_from(("sink", i) for i in sink_vertices)
        lowest = nx.minimum_cut_value(graph, "source", "sink")
        if path_augmentation:
            assert outcome.weight >= lowest or outcome.weight == pytest.approx(lowest)
        else:
            assert outcome.weight == pytest.approx(lowest)


@examples(150)
@given(request=requests(unique_cuts=True))
def test_swapping_the_sides_of_a_unique_cut_removes_the_same_edges(
    request: tuple[list[Row], list[int], list[int]],
) -> None:
    rows, sources, sinks = request
    one = multicut(local(rows, np.float64), sources, sinks)
    other = multicut(local(rows, np.float64), sinks, sources)
    assert type(one) is type(other)
    if isinstance(one, Cut) and isinstance(other, Cut):
        assert one.removed_edges.tolist() == other.removed_edges.tolist()
        assert one.source_side.tolist() == other.sink_side.tolist()
    if isinstance(one, Refused) and isinstance(other, Refused):
        assert {one.reason, other.reason} <= {Refusal.ISOLATING_CUT, Refusal.PATHS_CROSS} or one.reason == other.reason


@examples(100)
@given(request=requests(), random=st.randoms(use_true_random=False))
def test_the_outcome_does_not_depend_on_the_order_of_rows_and_points(
    request: tuple[list[Row], list[int], list[int]], random: Any
) -> None:
    rows, sources, sinks = request
    shuffled, other_sources, other_sinks = list(rows), list(sources), list(sinks) * 2
    for items in (shuffled, other_sources, other_sinks):
        random.shuffle(items)
    one, other = preview(local(rows), sources, sinks), preview(local(shuffled), other_sources, other_sinks)
    assert type(one) is type(other)
    if isinstance(one, Preview) and isinstance(other, Preview):
        assert one.cut.removed_edges.tolist() == other.cut.removed_edges.tolist()
        assert lists(one.components) == lists(other.components)
        assert one.illegal == other.illegal
    if isinstance(one, Refused) and isinstance(other, Refused):
        assert (one.reason, one.message) == (other.reason, other.message)
