from __future__ import annotations

import itertools
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.multicut.flow import minimum_cut
from sv_pipeline_tests.properties import examples

Edge = tuple[int, int, float]

N_VERTICES = 6
SMALL_NUMBERS = st.integers(0, 4).map(float)
AFFINITIES = st.floats(0, 1, width=32)
FAKE_AFFINITY = float(np.finfo(np.float32).tiny)


def edges_of(capacities: st.SearchStrategy[float]) -> st.SearchStrategy[list[Edge]]:
    vertex = st.integers(0, N_VERTICES - 1)
    return st.lists(st.tuples(vertex, vertex, capacities), max_size=16)


def cut(edges: list[Edge], source: int, sink: int, n_vertices: int = N_VERTICES) -> tuple[set[int], float]:
    ends = np.array([edge[:2] for edge in edges], np.int64).reshape(-1, 2)
    found = minimum_cut(n_vertices, ends, np.array([edge[2] for edge in edges], float), source, sink)
    return set(np.flatnonzero(found.on_source_side).tolist()), found.weight


def weight_of(edges: list[Edge], side: set[int]) -> Fraction:
    return sum((Fraction(c) for a, b, c in edges if (a in side) != (b in side)), Fraction(0))


def every_cut(edges: list[Edge], source: int, sink: int) -> list[tuple[Fraction, set[int]]]:
    others = [v for v in range(N_VERTICES) if v not in (source, sink)]
    sides = ({source, *extra} for n in range(len(others) + 1) for extra in itertools.combinations(others, n))
    return [(weight_of(edges, side), side) for side in sides]


@examples(150)
@given(edges=st.one_of(edges_of(SMALL_NUMBERS), edges_of(AFFINITIES)))
def test_the_cut_is_the_smallest_source_side_among_all_cheapest_cuts(edges: list[Edge]) -> None:
    # Denormal numbers next to ordinary ones differ by more than the fixed point resolves: see the tests below.
    edges = [(a, b, c) for a, b, c in edges if c == 0 or c > 2.0**-30]
    side, weight = cut(edges, 0, 1)
    cuts = every_cut(edges, 0, 1)
    lowest = min(weight for weight, _ in cuts)
    assert weight_of(edges, side) == lowest
    assert weight == pytest.approx(float(lowest))
    assert side == set.intersection(*(other for weight, other in cuts if weight == lowest))


@examples(80)
@given(edges=edges_of(st.one_of(st.just(FAKE_AFFINITY), st.floats(2.0**-20, 1, width=32), st.just(3e38))))
def test_capacities_of_very_different_magnitude_give_a_cheapest_cut(edges: list[Edge]) -> None:
    side, weight = cut(edges, 0, 1)
    lowest = min(weight for weight, _ in every_cut(edges, 0, 1))
    assert float(weight_of(edges, side)) == pytest.approx(float(lowest), rel=1e-12)
    assert weight == pytest.approx(float(lowest), rel=1e-12)


@examples(40)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), degree=st.integers(1, 6))
def test_weight_is_that_of_networkx_on_larger_graphs(seed: int, n: int, degree: int) -> None:
    rng = np.random.default_rng(seed)
    ends, capacities = rng.integers(0, n, (n * degree, 2)), rng.random(n * degree)
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(n))
    for (a, b), capacity in zip(ends.tolist(), capacities.tolist(), strict=True):
        known = graph.get_edge_data(a, b, {"capacity": 0.0})["capacity"]
        graph.add_edge(a, b, capacity=known + capacity)
    found = minimum_cut(n, ends, capacities, 0, n - 1)
    assert found.weight == pytest.approx(nx.minimum_cut_value(graph, 0, n - 1))
    assert found.on_source_side[0]
    assert not found.on_source_side[n - 1]


@examples(25)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 4), strong_every=st.integers(1, 5))
def test_long_thin_graphs_are_cut_as_by_networkx(seed: int, width: int, strong_every: int) -> None:
    rng = np.random.default_rng(seed)
    graph: nx.Graph[int] = nx.convert_node_labels_to_integers(nx.grid_2d_graph(40, width))
    n = graph.number_of_nodes()
    for i, (a, b) in enumerate(graph.edges):
        graph.edges[a, b]["capacity"] = float(rng.random() + (i % strong_every))
    edges = [(a, b, capacity) for a, b, capacity in graph.edges(data="capacity")]
    side, weight = cut(edges, 0, n - 1, n)
    assert weight == pytest.approx(nx.minimum_cut_value(graph, 0, n - 1))
    assert float(weight_of(edges, side)) == pytest.approx(weight)


def test_capacities_that_differ_in_the_last_bit_of_a_double_are_told_apart() -> None:
    above = float(np.nextafter(0.3, 1))
    assert cut([(0, 2, 0.3), (2, 1, above)], 0, 1) == ({0}, 0.3)
    assert cut([(0, 2, above), (2, 1, 0.3)], 0, 1) == ({0, 2}, 0.3)


def test_a_tie_goes_to_the_smaller_source_side() -> None:
    assert cut([(0, 2, 0.5), (2, 3, 0.5), (3, 1, 0.5)], 0, 1)[0] == {0}


def test_between_huge_capacities_the_smallest_counts() -> None:
    huge = float(np.finfo(np.float32).max)
    assert cut([(0, 2, huge), (2, 3, FAKE_AFFINITY), (3, 1, huge)], 0, 1) == ({0, 2}, FAKE_AFFINITY)


def test_many_parallel_edges_far_above_the_bound_do_not_overflow() -> None:
    edges = [(0, 2, 1e-6)] + [(2, 3, 1.0)] * 500 + [(3, 1, 2e-6)]
    assert cut(edges, 0, 1) == ({0}, 1e-6)
    edges = [(0, 2, 2e-6)] + [(2, 3, 1.0)] * 500 + [(3, 1, 1e-6)]
    assert cut(edges, 0, 1) == ({0, 2, 3}, 1e-6)


def test_without_a_way_to_the_sink_the_source_keeps_what_it_reaches() -> None:
    edges = [(0, 2, 1.0), (2, 3, 1.0), (3, 4, 0.0), (4, 1, 1.0)]
    assert cut(edges, 0, 1) == ({0, 2, 3}, 0.0)
    assert cut(edges[:2], 0, 1) == ({0, 2, 3}, 0.0)
    assert cut([], 0, 1) == ({0}, 0.0)


def test_one_vertex_cannot_be_both_ends() -> None:
    with pytest.raises(ValueError, match="same vertex"):
        cut([(0, 1, 1.0)], 1, 1)
