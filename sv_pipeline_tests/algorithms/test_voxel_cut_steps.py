"""The costs of ways through cells: compared with their definition, way by way."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.algorithms.voxel_cut.cells import CellGraph
from sv_pipeline.algorithms.voxel_cut.steps import NARROWEST, TURN, arrivals_of, consecutive_steps
from sv_pipeline_tests.properties import examples

Way = tuple[int, ...]


def random_graph(n: int, rng: np.random.Generator) -> CellGraph:
    pairs = [pair for pair in itertools.combinations(range(n), 2) if rng.random() < 0.6]
    lower, upper = (np.array([pair[end] for pair in pairs], np.int64) for end in (0, 1))
    normals = rng.normal(size=(len(pairs), 3))
    normals /= np.linalg.norm(normals, axis=1)[:, None]
    radii, necks = rng.uniform(20, 200, n), rng.uniform(5, 200, len(pairs))
    return CellGraph(rng.uniform(0, 2000, (n, 3)), radii, lower, upper, necks, normals)


def cost_of_way(graph: CellGraph, way: Way) -> float:
    """The cost of a way, cell by cell, as the module's docstring defines it."""
    contacts = {}
    for lower, upper, neck, normal in zip(graph.lower, graph.upper, graph.necks, graph.normals, strict=True):
        contacts[lower, upper], contacts[upper, lower] = (neck, normal), (neck, -normal)
    neighbours = {cell: [other for one, other in contacts if one == cell] for cell in range(len(graph))}

    def length(a: int, b: int) -> float:
        open_ = min(contacts[a, b][0] / np.sqrt(graph.radii[a] * graph.radii[b]), 1)
        return float(np.linalg.norm(graph.centres[a] - graph.centres[b]) / max(open_, NARROWEST) ** 2)

    def turn(a: int, b: int, c: int) -> float:
        return float(TURN * graph.radii[b] * (1 - contacts[a, b][1] @ contacts[b, c][1]) ** 2)

    total = length(*way[:2])
    for a, b, c in zip(way, way[1:], way[2:], strict=False):
        on = min(length(b, other) + turn(a, b, other) for other in neighbours[b] if other != a)
        to = min(length(other, b) + turn(other, b, c) for other in neighbours[b] if other != c)
        total += 3 * turn(a, b, c) + 2 * length(b, c) + length(a, b) - on - to
    return total


@examples(60)
@given(n=st.integers(2, 5), seed=st.integers(0, 2**32 - 1))
def test_cells_are_reached_at_the_cost_of_the_cheapest_way(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(n, rng)
    allowed = rng.random(n) < 0.8
    allowed[0] = True
    joined = {(a, b) for pair in zip(graph.lower, graph.upper, strict=True) for a, b in (pair, pair[::-1])}
    expected = np.full(n, np.inf)
    expected[0] = 0
    # A cheapest way may visit a cell twice, to enter another from a better direction, but no contact.
    ways: list[Way] = [(0, b) for a, b in joined if a == 0 and allowed[b]]
    while ways:
        way = ways.pop()
        expected[way[-1]] = min(expected[way[-1]], cost_of_way(graph, way))
        taken = set(itertools.pairwise(way))
        onward = (b for a, b in joined if a == way[-1] and allowed[b] and b != way[-2] and (a, b) not in taken)
        ways += [(*way, b) for b in onward if len(way) < 7]
    found = arrivals_of(graph, consecutive_steps(graph), np.array([0]), allowed)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    assert (found[np.isfinite(found)] <= expected[np.isfinite(found)] * (1 + 1e-9) + 1e-3).all()
    if n <= 4:  # with up to seven cells, all ways are among those that were tried
        np.testing.assert_allclose(found, expected, atol=1e-3)


@examples(60)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**32 - 1))
def test_the_numbers_of_cells_do_not_matter(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(n, rng)
    number = rng.permutation(n)
    ends = number[graph.lower], number[graph.upper]
    other = CellGraph(
        graph.centres[np.argsort(number)],
        graph.radii[np.argsort(number)],
        np.minimum(*ends),
        np.maximum(*ends),
        graph.necks,
        np.where((ends[0] < ends[1])[:, None], graph.normals, -graph.normals),
    )
    before = arrivals_of(graph, consecutive_steps(graph), np.array([0]))
    after = arrivals_of(other, consecutive_steps(other), number[:1])
    np.testing.assert_allclose(after[number], before)
