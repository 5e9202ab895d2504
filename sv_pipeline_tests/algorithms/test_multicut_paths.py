from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.multicut.graph import ContractedGraph, LocalGraph, contract
from sv_pipeline.algorithms.multicut.paths import CrossingPaths, JoinedSides, SeparatedSide, join_sides
from sv_pipeline_tests.properties import examples

Lengths = dict[tuple[int, int], float]
Pairs = set[tuple[int, int]]


def graph_of(lengths: Lengths) -> ContractedGraph:
    edges = np.array(list(lengths), np.uint64).reshape(-1, 2)
    return contract(LocalGraph(edges, 1 / np.array(list(lengths.values()), float)), np.empty(0, np.uint64))


def vertices(graph: ContractedGraph, ids: list[int]) -> npt.NDArray[np.int64]:
    return graph.vertices(np.array(ids, np.uint64))


def join(lengths: Lengths, sources: list[int], sinks: list[int]) -> tuple[Pairs, Pairs]:
    graph = graph_of(lengths)
    joined = join_sides(graph, vertices(graph, sources), vertices(graph, sinks))
    assert isinstance(joined, JoinedSides)
    return pairs(graph, joined.source_edges), pairs(graph, joined.sink_edges)


def pairs(graph: ContractedGraph, edges: npt.NDArray[np.int64]) -> Pairs:
    return {(a, b) for a, b in graph.representatives[edges].tolist()}


def test_one_point_needs_no_path() -> None:
    assert join({(1, 2): 1, (2, 3): 1}, [1], [3]) == (set(), set())


def test_points_are_joined_by_the_edges_of_high_affinity() -> None:
    lengths: Lengths = {(1, 2): 1, (2, 3): 1, (1, 3): 3, (3, 9): 1}
    assert join(lengths, [1, 3], [9]) == ({(1, 2), (2, 3)}, set())


def test_of_parallel_edges_the_best_one_counts() -> None:
    edges = np.array([[1, 2], [2, 1], [1, 3], [3, 2], [2, 9]], np.uint64)
    graph = contract(LocalGraph(edges, np.array([0.1, 0.9, 1.0, 1.0, 1.0])), np.empty(0, np.uint64))
    joined = join_sides(graph, vertices(graph, [1, 2]), vertices(graph, [9]))
    assert isinstance(joined, JoinedSides)
    assert pairs(graph, joined.source_edges) == {(1, 2)}


def test_paths_avoid_the_points_of_the_other_side() -> None:
    lengths: Lengths = {(1, 9): 1, (9, 2): 1, (1, 3): 5, (3, 2): 5}
    assert join(lengths, [1, 2], [9])[0] == {(1, 3), (2, 3)}


def test_points_with_only_the_other_side_between_them_are_separated() -> None:
    graph = graph_of({(1, 9): 1, (9, 2): 1, (2, 3): 1})
    found = join_sides(graph, vertices(graph, [1, 2, 3]), vertices(graph, [9]))
    assert isinstance(found, SeparatedSide)
    assert found.side == "source"
    assert graph.representatives[found.vertices].tolist() == [2, 3]
    found = join_sides(graph, vertices(graph, [9]), vertices(graph, [1, 2, 3]))
    assert isinstance(found, SeparatedSide)
    assert found.side == "sink"


def test_where_paths_cross_shared_vertices_are_free_if_both_sides_hold_together_without_them() -> None:
    around_5: Lengths = {(1, 5): 1, (2, 5): 1, (11, 5): 1, (12, 5): 1}
    triangles: Lengths = {(1, 3): 3, (2, 3): 3, (11, 13): 3, (12, 13): 3}
    assert join(around_5 | triangles, [1, 2, 3], [11, 12, 13]) == ({(1, 3), (2, 3)}, {(11, 13), (12, 13)})


CROSSING: Lengths = {(1, 5): 1, (2, 5): 1, (11, 5): 2, (12, 5): 2}
SOURCES_AROUND: Lengths = {(1, 6): 10, (2, 6): 10}
SINKS_AROUND: Lengths = {(11, 7): 10, (12, 7): 10}


def test_the_side_with_shorter_paths_keeps_them_and_the_other_goes_around() -> None:
    lengths = CROSSING | SOURCES_AROUND | SINKS_AROUND
    assert join(lengths, [1, 2], [11, 12]) == ({(1, 5), (2, 5)}, {(7, 11), (7, 12)})
    assert join(lengths, [11, 12], [1, 2]) == ({(7, 11), (7, 12)}, {(1, 5), (2, 5)})


def test_the_side_with_shorter_paths_goes_around_where_the_other_cannot() -> None:
    assert join(CROSSING | SOURCES_AROUND, [1, 2], [11, 12]) == ({(1, 6), (2, 6)}, {(5, 11), (5, 12)})
    assert join(CROSSING | SOURCES_AROUND, [11, 12], [1, 2]) == ({(5, 11), (5, 12)}, {(1, 6), (2, 6)})


def test_paths_with_no_way_around_cross() -> None:
    graph = graph_of(CROSSING)
    found = join_sides(graph, vertices(graph, [1, 2]), vertices(graph, [11, 12]))
    assert isinstance(found, CrossingPaths)
    assert graph.representatives[found.vertices].tolist() == [5]


def test_lengths_are_compared_by_their_geometric_mean() -> None:
    lengths: Lengths = {(1, 2): 0.01, (1, 5): 10, (3, 5): 10, (1, 8): 50, (3, 8): 50, (11, 5): 2, (12, 5): 2}
    lengths |= SINKS_AROUND
    # Sources: 0.01, 20 and 20.01, geometric mean 1.6 (arithmetic mean 13); sinks: 4.
    assert join(lengths, [1, 2, 3], [11, 12]) == ({(1, 2), (1, 5), (3, 5)}, {(7, 11), (7, 12)})
    # Sources: 20.
    assert join(lengths, [1, 3], [11, 12]) == ({(1, 8), (3, 8)}, {(5, 11), (5, 12)})


@st.composite
def requests(draw: st.DrawFn) -> tuple[Lengths, list[int], list[int]]:
    n = draw(st.integers(4, 12))
    every_pair = [(a, b) for a in range(1, n + 1) for b in range(a + 1, n + 1)]
    chosen = draw(st.lists(st.sampled_from(every_pair), unique=True, min_size=3, max_size=30))
    lengths = {pair: float(draw(st.integers(1, 20))) for pair in chosen}
    ids = sorted({i for pair in chosen for i in pair})
    points = draw(st.lists(st.sampled_from(ids), unique=True, min_size=2, max_size=6))
    middle = draw(st.integers(1, len(points) - 1))
    return lengths, points[:middle], points[middle:]


@examples(250)
@given(request=requests())
def test_sides_hold_together_and_share_no_vertex(request: tuple[Lengths, list[int], list[int]]) -> None:
    lengths, sources, sinks = request
    graph = graph_of(lengths)
    joined = join_sides(graph, vertices(graph, sources), vertices(graph, sinks))
    oracle = nx.Graph(list(lengths))
    if isinstance(joined, SeparatedSide):
        own, other = (sources, sinks) if joined.side == "source" else (sinks, sources)
        oracle.remove_nodes_from(other)
        parts = [component for component in nx.connected_components(oracle) if component & set(own)]
        assert len(parts) > 1
        return
    if isinstance(joined, CrossingPaths):
        assert len(joined.vertices)
        return
    touched = []
    for points, edges in ((sources, joined.source_edges), (sinks, joined.sink_edges)):
        side = nx.Graph(list(pairs(graph, edges)))
        side.add_nodes_from(points)
        assert len({frozenset(nx.node_connected_component(side, point)) for point in points}) == 1
        assert all(pair in lengths for pair in pairs(graph, edges))
        touched.append(set(side))
    assert not touched[0] & touched[1]


@examples(80)
@given(request=requests())
def test_paths_of_one_side_are_as_short_as_those_of_networkx(request: tuple[Lengths, list[int], list[int]]) -> None:
    lengths, sources, sinks = request
    graph = graph_of(lengths)
    joined = join_sides(graph, vertices(graph, sources), vertices(graph, sinks[:1]))
    if not isinstance(joined, JoinedSides):
        return
    oracle = nx.Graph([(a, b, {"weight": length}) for (a, b), length in lengths.items()])
    oracle.remove_nodes_from(sinks[:1])
    paths = oracle.edge_subgraph(pairs(graph, joined.source_edges))
    for a in sources:
        for b in sources:
            if a != b:
                expected = nx.shortest_path_length(oracle, a, b, weight="weight")
                assert nx.shortest_path_length(paths, a, b, weight="weight") == pytest.approx(expected)
