"""Atomic edges of a part of a graph: those of files, and those that edits of any software made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sv_pipeline.edits.plan.node_cache import NodeCache
from sv_pipeline.edits.plan.region import Region, read_region
from sv_pipeline.errors import CorruptionError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edges import FAKE_AFFINITY, read_timed_edges_of_edits
from sv_pipeline.grid import Box
from sv_pipeline.table import keys
from sv_pipeline.table.columns import (
    AFFINITIES,
    AREAS,
    CHILDREN,
    COMPACTED_AFFINITIES,
    COMPACTED_AREAS,
    COMPACTED_SPLIT_EDGES,
    FAKE_EDGES,
    NEW_IDS,
    PARENT,
    SPLIT_EDGES,
)
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline_tests.graph.worlds import CHUNK_SIZE, ingest, random_world

WORLD = random_world((3, 2, 2), 9, per_chunk=6, objects=0.5, cross=0.1, edges_per_supervoxel=3)
PAIRS = {frozenset((a, b)): kind for a, b, kind in WORLD.edges}
ACTIVE = {frozenset(pair) for pair in WORLD.active}


@pytest.fixture
def graph(new_table: Table, tmp_path: Path) -> ChunkedGraph:
    return ingest(WORLD, new_table, tmp_path)[0]


def region_of(graph: ChunkedGraph, roots: npt.ArrayLike, box: Box | None = None) -> Region:
    return read_region(graph, NodeCache(graph), np.asarray(roots, np.uint64), box or graph.grid.bounds)


def pairs_of(found: Region) -> list[frozenset[int]]:
    return [
        frozenset(pair) for pair in zip(found.edges.node_ids1.tolist(), found.edges.node_ids2.tolist(), strict=True)
    ]


def test_all_roots_together_have_all_edges_once(graph: ChunkedGraph) -> None:
    found = region_of(graph, np.unique(queries.roots(graph, WORLD.supervoxels)))
    assert sorted(map(sorted, pairs_of(found))) == sorted(map(sorted, PAIRS))
    assert found.inside.all()
    assert found.supervoxels.tolist() == WORLD.supervoxels.tolist()
    assert {pair for pair, active in zip(pairs_of(found), found.active, strict=True) if active} >= ACTIVE


def test_active_edges_are_those_whose_ends_meet_one_layer_up(graph: ChunkedGraph) -> None:
    """Edges that no component activates are active all the same where other edges join their ends that low."""
    found = region_of(graph, np.unique(queries.roots(graph, WORLD.supervoxels)))
    one, other = found.edges.node_ids1, found.edges.node_ids2
    for layer in np.unique(found.layers).tolist():
        here = found.layers == layer
        above = [queries.roots(graph, ends[here], stop_layer=layer + 1) for ends in (one, other)]
        assert found.active[here].tolist() == (above[0] == above[1]).tolist()


def test_a_root_has_the_edges_of_its_supervoxels(graph: ChunkedGraph) -> None:
    supervoxel_roots = queries.roots(graph, WORLD.supervoxels)
    root = np.unique(supervoxel_roots, return_counts=True)
    largest = root[0][np.argmax(root[1])]
    mine = set(WORLD.supervoxels[supervoxel_roots == largest].tolist())
    found = region_of(graph, [largest])
    assert set(pairs_of(found)) == {pair for pair in PAIRS if pair & mine}
    assert found.inside.tolist() == [pair <= mine for pair in pairs_of(found)]
    assert found.inside[found.active].all()


def test_a_box_leaves_out_supervoxels_of_other_chunks_not_their_edges(graph: ChunkedGraph) -> None:
    start = np.asarray(graph.grid.bounds.start)
    box = Box.of(start, start + CHUNK_SIZE)
    found = region_of(graph, np.unique(queries.roots(graph, WORLD.supervoxels)), box)
    mine = set(WORLD.supervoxels[(graph.layout.coordinates(WORLD.supervoxels) == 0).all(axis=1)].tolist())
    assert set(found.supervoxels.tolist()) == mine
    assert set(pairs_of(found)) == {pair for pair in PAIRS if pair & mine}


def test_requests_do_not_grow_with_the_graph(graph: ChunkedGraph) -> None:
    roots = np.unique(queries.roots(graph, WORLD.supervoxels))
    before = graph.table.round_trips
    region_of(graph, roots)
    assert graph.table.round_trips - before <= 2 * graph.n_layers


# -- edits ------------------------------------------------------------------------------------------------------------


def edit_row(graph: ChunkedGraph, supervoxel: int) -> bytes:
    chunk = graph.layout.chunk_ids(2, graph.layout.coordinates(np.uint64(supervoxel)))
    return keys.edit_edge_key(int(chunk))


def split_cells(pairs: list[tuple[int, int]], time: int, *, compacted: bool = False) -> list:  # type: ignore[type-arg]
    edges, affinities, areas = (
        (COMPACTED_SPLIT_EDGES, COMPACTED_AFFINITIES, COMPACTED_AREAS)
        if compacted
        else (SPLIT_EDGES, AFFINITIES, AREAS)
    )
    n = len(pairs)
    return [
        edges.set(np.array(pairs, np.uint64), time),
        affinities.set(np.full(n, 0.25, np.float32), time),
        areas.set(np.full(n, 3, np.uint64), time),
    ]


def test_a_users_edge_counts_with_the_lowest_affinity(graph: ChunkedGraph) -> None:
    a, b = WORLD.supervoxels[[0, -1]].tolist()
    graph.table.mutate(
        [
            RowMutation(edit_row(graph, a), [FAKE_EDGES.set([[a, b]], 10)]),
            RowMutation(edit_row(graph, b), [FAKE_EDGES.set([[b, a]], 10)]),
        ]
    )
    found = region_of(graph, queries.roots(graph, [a]))
    at = pairs_of(found).index(frozenset((a, b)))
    assert found.edges.affinities[at] == FAKE_AFFINITY
    assert pairs_of(found).count(frozenset((a, b))) == 1


def test_a_replaced_supervoxel_has_no_edges_and_its_pieces_have_theirs(graph: ChunkedGraph) -> None:
    """One supervoxel in two; PyChunkedGraph's newest compacted cell lacks edges that the older one has."""
    old = max(WORLD.supervoxels.tolist(), key=lambda sv: sum(sv in pair for pair in PAIRS))
    partners = sorted(other for pair in PAIRS if old in pair for other in pair - {old})
    pieces = [old + 10_000, old + 10_001]
    (node,) = queries.parents(graph, [old]).tolist()
    time = int(queries.node_timestamps(graph, [node])[0])
    children = sorted({*queries.children(graph, [node]).values.tolist(), *pieces} - {old})
    row = edit_row(graph, old)
    first = split_cells([(pieces[0], pieces[1]), (pieces[0], partners[0])], time + 5, compacted=True)
    later = split_cells([(pieces[1], partners[-1])], time + 6, compacted=True)
    graph.table.mutate(
        [
            RowMutation(keys.node_key(old), [NEW_IDS.set(pieces, time + 5)]),
            RowMutation(keys.node_key(node), [CHILDREN.set(children, time)]),
            *(RowMutation(keys.node_key(piece), [PARENT.set(node, time)]) for piece in pieces),
            RowMutation(row, [*first, *later, *split_cells([(pieces[1], pieces[0])], time + 5)]),
        ]
    )
    found = region_of(graph, np.unique(queries.roots(graph, WORLD.supervoxels[WORLD.supervoxels != old])))
    pairs = pairs_of(found)
    inside = [pair for pair, both in zip(pairs, found.inside, strict=True) if both]
    assert not any(old in pair for pair in inside)
    expected = [(pieces[0], pieces[1]), (pieces[0], partners[0]), (pieces[1], partners[-1])]
    assert [inside.count(frozenset(pair)) for pair in expected] == [1, 1, 1]
    at = pairs.index(frozenset(pieces))
    assert (found.edges.affinities[at], found.edges.areas[at], found.active[at]) == (0.25, 3, True)


def test_edges_without_their_affinities_are_named(graph: ChunkedGraph) -> None:
    sv = int(WORLD.supervoxels[0])
    graph.table.mutate([RowMutation(edit_row(graph, sv), split_cells([(sv, sv + 1)], 7)[:2])])
    with pytest.raises(CorruptionError, match=r"row 'f\d{20}' has split_edges, but not as many"):
        read_timed_edges_of_edits(graph, graph.grid.coordinates(2))
