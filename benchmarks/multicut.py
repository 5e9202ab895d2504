"""How long the cut of a split request takes, by the size of the local graph, and how that compares to networkx.

    python benchmarks/multicut.py --edges 1000 10000 100000 --networkx-up-to 10000

The graphs are two elongated clouds of supervoxels that touch in a thin sheet; neighbours in space are joined, one in
ten supervoxels is in two pieces (affinity inf). Affinities are high inside a cloud (0.3 .. 1) and low between them
(0 .. 0.3), except for ``--hard``, where they say nothing (0 .. 1 everywhere). Prints one line of JSON per graph: the
seconds of ``multicut`` with three points a side, of its bare minimum cut, and of the same cut by networkx.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from sv_pipeline.algorithms.components import components
from sv_pipeline.algorithms.multicut.cut import Cut, LocalGraph, multicut
from sv_pipeline.algorithms.multicut.flow import minimum_cut
from sv_pipeline.algorithms.multicut.graph import contract

NEIGHBOURS = 6


def touching_clouds(n_edges: int, seed: int, hard: bool) -> tuple[LocalGraph, list[int], list[int]]:
    """A local graph with about ``n_edges`` edges, and three points in each of its two halves."""
    rng = np.random.default_rng(seed)
    n = max(20, int(n_edges / 3.7))
    places = rng.random((n, 3)) * (4, 1, 1)
    _, neighbours = cKDTree(places).query(places, k=NEIGHBOURS + 1)
    pairs = np.stack([np.repeat(np.arange(n), NEIGHBOURS), neighbours[:, 1:].ravel()], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)[:n_edges]
    half = places[:, 0] < 2
    across = half[pairs[:, 0]] != half[pairs[:, 1]]
    strong, weak = 0.3 + 0.7 * rng.random(len(pairs)), 0.3 * rng.random(len(pairs))
    affinities = rng.random(len(pairs)) if hard else np.where(across, weak, strong)
    # One partner each: pieces of a supervoxel, which never join the halves.
    once = np.isin(np.arange(len(pairs)), np.unique(pairs[:, 0], return_index=True)[1])
    affinities[once & ~across & (pairs[:, 0] % 10 == 0)] = np.inf
    order = np.argsort(places[:, 0])
    ids = np.arange(1, n + 1, dtype=np.uint64) << np.uint64(20)
    main = components(n, pairs)
    inside = order[main[order] == np.bincount(main).argmax()]
    tenth = max(3, len(inside) // 10)
    sources, sinks = inside[: tenth * 3 : tenth], inside[-1 : -tenth * 3 : -tenth]
    graph = LocalGraph(ids[pairs], affinities.astype(np.float32))
    return graph, ids[sources].tolist(), ids[sinks].tolist()


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Best of three runs, and the result; ``time.process_time`` leaves out the time of other processes."""
    best, result = float("inf"), None
    for _ in range(3):
        started = clock()
        result = function()
        best = min(best, clock() - started)
    return best, result


def networkx_cut(ends: npt.NDArray[np.int64], capacities: npt.NDArray[np.float64], source: int, sink: int) -> float:
    """The weight of the minimum cut, with the graph already summed up but its construction included."""
    graph: nx.Graph[int] = nx.Graph()
    for (a, b), capacity in zip(ends.tolist(), capacities.tolist(), strict=True):
        if a != b:
            known = graph.get_edge_data(a, b, {"capacity": 0.0})["capacity"]
            graph.add_edge(a, b, capacity=known + capacity)
    return float(nx.minimum_cut_value(graph, source, sink))


def main() -> None:
    """Time graphs of all sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--networkx-up-to", type=int, default=10_000, help="number of edges")
    parser.add_argument("--hard", action="store_true", help="affinities say nothing about the two halves")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for n_edges in options.edges:
        graph, sources, sinks = touching_clouds(n_edges, options.seed, options.hard)
        whole, outcome = seconds(lambda g=graph, s=sources, t=sinks: multicut(g, s, t, disallow_isolating_cut=False))
        # The bare cut: each side's points are one vertex, as networkx gets them too.
        contracted = contract(graph, np.array(sources + sinks, np.uint64))
        group = np.arange(contracted.n_vertices)
        terminals = []
        for points in (sources, sinks):
            vertices = contracted.vertices(np.array(points, np.uint64))
            group[vertices] = vertices[0]
            terminals.append(int(vertices[0]))
        arguments = (group[contracted.ends], contracted.capacities)
        bare, found = seconds(lambda a=arguments, c=contracted, t=terminals: minimum_cut(c.n_vertices, *a, *t))
        line = {
            "edges": len(graph.edges),
            "supervoxels": len(contracted.supervoxels),
            "outcome": type(outcome).__name__,
            "removed": len(outcome.removed_edges) if isinstance(outcome, Cut) else outcome.reason,
            "multicut_s": round(whole, 4),
            "minimum_cut_s": round(bare, 4),
        }
        if n_edges <= options.networkx_up_to:
            theirs, weight = seconds(lambda a=arguments, t=terminals: networkx_cut(*a, *t))
            assert abs(weight - found.weight) < 1e-6 * max(weight, 1)
            line |= {"networkx_s": round(theirs, 4), "networkx_over_ours": round(theirs / bare, 1)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
