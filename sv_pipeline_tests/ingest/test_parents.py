"""Layers 3 and above: what they need, refuse, and how little they ask the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import InputError, NotReadyError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.graph.edge_files import ChunkEdges, read_edges, write_edges
from sv_pipeline.ingest.atomic import build_atomic_chunks
from sv_pipeline.ingest.parents import build_parent_chunks
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, PARENT
from sv_pipeline.table.interface import RowMutation, SetCell, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.compare import expected_shape, stored_shape
from sv_pipeline_tests.graph.worlds import build, build_all, random_world, write_world

WORLD = random_world((5, 4, 2), 8, per_chunk=4, objects=0.3, cross=0.2)


@pytest.fixture
def graph(new_table: Table, tmp_path: Path) -> ChunkedGraph:
    graph = create_chunked_graph(new_table, write_world(WORLD, tmp_path))
    build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)
    return graph


def test_a_layer_waits_for_the_chunks_below_and_around(graph: ChunkedGraph) -> None:
    with pytest.raises(NotReadyError, match=r"layer 3 has .* chunks unfinished.*Run layer 3 first"):
        build_parent_chunks(graph, 4, [(0, 0, 0)])
    build_parent_chunks(graph, 3, [c for c in graph.grid.coordinates(3).tolist() if c != [2, 0, 0]])
    with pytest.raises(NotReadyError, match=r"1 of 6 chunks unfinished, first \(2, 0, 0\)"):
        build_parent_chunks(graph, 4, [(0, 0, 0)])
    build_parent_chunks(graph, 3, [(2, 0, 0)])
    build_parent_chunks(graph, 4, [(0, 0, 0)])


@pytest.mark.parametrize("layer", [3, 4])
def test_the_number_of_requests_does_not_grow_with_the_nodes(graph: ChunkedGraph, layer: int) -> None:
    for below in range(3, layer):
        build_parent_chunks(graph, below, graph.grid.coordinates(below))
    before = graph.table.round_trips
    reports = build_parent_chunks(graph, layer, graph.grid.coordinates(layer))
    assert sum(report.nodes for report in reports) > 5
    # Two for each chunk to reserve ids, and one more for each layer that nodes skip to; two for the kept counts of the
    # batch. SQLite scans each child chunk.
    scans = graph.grid.count(layer - 1) if isinstance(graph.table, SqliteTable) else 1
    per_chunk = 2 + graph.n_layers - layer
    assert graph.table.round_trips - before <= 8 + 2 + scans + per_chunk * graph.grid.count(layer)


def test_the_order_of_batches_does_not_matter(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    graph = create_chunked_graph(new_table, config)
    rng = np.random.default_rng(0)
    for layer in range(2, graph.n_layers + 1):
        for coordinate in rng.permutation(graph.grid.coordinates(layer)):
            build(graph, config, layer, coordinate[None])
    assert stored_shape(graph) == expected_shape(WORLD)


def test_what_a_rerun_of_other_software_left_behind_is_not_joined(new_table: Table, tmp_path: Path) -> None:
    """An earlier set of layer 2 nodes, with lower ids and the same children; the supervoxels point to the later one."""
    config = write_world(WORLD, tmp_path)
    graph = create_chunked_graph(new_table, config)
    build(graph, config, 2, graph.grid.coordinates(2))
    later = dict(new_table.scan([keys.layer_range(2)]))
    chunk = max(keys.node_ids(later)) & ~np.uint64(0xFFFF)
    in_chunk = [key for key in later if graph.layout.chunks(np.uint64(int(key))) == graph.layout.chunks(chunk)]
    moved = []
    for key in in_chunk:  # the later set gets new, higher ids; what is there becomes the earlier one
        row = later[key]
        node = int(key) + 1000
        cells = [(column, row[column][0]) for column in row]
        moved.append(RowMutation(keys.node_key(node), [SetCell(c, cell.value, cell.timestamp) for c, cell in cells]))
        for supervoxel in CHILDREN.newest(row).tolist():  # type: ignore[union-attr]
            moved.append(RowMutation(keys.node_key(supervoxel), [PARENT.set(node)]))
    new_table.mutate(moved)
    build_all(graph, config)
    roots = queries.roots(graph, WORLD.supervoxels)
    assert sorted(queries.leaves(graph, np.unique(roots)).values.tolist()) == sorted(WORLD.supervoxels.tolist())
    assert (queries.parents(graph, keys.node_ids(in_chunk)) == 0).all()


@pytest.mark.parametrize("silent", [0, 1])
def test_an_edge_that_only_one_side_lists_is_refused(new_table: Table, tmp_path: Path, silent: int) -> None:
    world = random_world((2, 1, 1), 1, per_chunk=4, edges_per_supervoxel=3, cross=1.0)
    config = write_world(world, tmp_path)
    graph = create_chunked_graph(new_table, config)
    edges = read_edges(graph.edges_url, (silent, 0, 0))
    assert len(edges.cross)
    write_edges(graph.edges_url, (silent, 0, 0), ChunkEdges(edges.in_, Edges(), Edges()))
    with pytest.raises(InputError, match="on the first side only"):
        build_all(graph, config)


def test_layer_numbers_outside_the_graph_are_a_mistake_of_the_caller(graph: ChunkedGraph) -> None:
    for layer in (2, graph.n_layers + 1):
        with pytest.raises(ValueError, match="outside 3"):
            build_parent_chunks(graph, layer, [(0, 0, 0)])
