from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.components import FEW_EDGES, component_labels, components, find, same_rows, unique_rows

ids = st.integers(1, 2**64 - 1)


@given(st.sets(ids, min_size=1, max_size=30), st.data())
def test_components_are_those_of_networkx_numbered_by_their_smallest_member(vertices: set[int], data) -> None:  # type: ignore[no-untyped-def]
    vertex = st.sampled_from(sorted(vertices))
    edges = data.draw(st.lists(st.tuples(vertex, vertex), max_size=40))
    graph = networkx.Graph(edges)
    graph.add_nodes_from(vertices)
    pieces = sorted(networkx.connected_components(graph), key=min)
    expected = {v: number for number, piece in enumerate(pieces) for v in piece}
    labels = component_labels(np.array(sorted(vertices), np.uint64), np.array(edges, np.uint64).reshape(-1, 2))
    assert labels.tolist() == [expected[v] for v in sorted(vertices)]


@pytest.mark.parametrize("n_edges", [FEW_EDGES, FEW_EDGES + 1])
def test_components_of_few_and_of_many_edges_are_numbered_alike(n_edges: int) -> None:
    ends = np.random.default_rng(0).integers(0, 2 * n_edges, (n_edges, 2))
    graph = networkx.Graph(ends.tolist())
    graph.add_nodes_from(range(2 * n_edges))
    expected = np.empty(2 * n_edges, np.int64)
    for number, piece in enumerate(sorted(networkx.connected_components(graph), key=min)):
        expected[list(piece)] = number
    assert np.array_equal(components(2 * n_edges, ends), expected)


def test_an_edge_to_an_unknown_id_is_refused() -> None:
    with pytest.raises(ValueError, match="not among the vertices"):
        component_labels(np.array([1, 2], np.uint64), [[1, 3]])


@given(st.sets(ids, max_size=20), st.lists(ids, max_size=20))
def test_find_gives_the_index_or_minus_one(known: set[int], wanted: list[int]) -> None:
    array = np.array(sorted(known), np.uint64)
    index = find(array, np.array(wanted, np.uint64))
    assert [int(array[i]) if i >= 0 else None for i in index] == [w if w in known else None for w in wanted]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_unique_rows_are_the_distinct_rows_in_order(rows: list[tuple[int, int]]) -> None:
    a, b = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    keep = unique_rows(a, b)
    assert list(zip(a[keep].tolist(), b[keep].tolist(), strict=True)) == sorted(set(rows))
    assert all(rows.index(rows[i]) == i for i in keep.tolist())


@given(*[st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12)] * 2)
def test_same_rows_are_those_that_the_other_array_has(
    rows: list[tuple[int, int]], among: list[tuple[int, int]]
) -> None:
    one, other = (np.array(pairs, np.uint64).reshape(-1, 2) for pairs in (rows, among))
    assert same_rows(one, other).tolist() == [row in among for row in rows]
