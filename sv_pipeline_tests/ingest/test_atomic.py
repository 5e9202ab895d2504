"""Layer 2: what an ingest reads, refuses, and writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import ConflictError, InputError
from sv_pipeline.graph import queries
from sv_pipeline.graph.chunked_graph import ChunkedGraph, create_chunked_graph
from sv_pipeline.graph.edge_files import ChunkEdges, read_edges, write_edges
from sv_pipeline.ingest.atomic import active_edges, build_atomic_chunks
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.table import counters, keys
from sv_pipeline.table.columns import CHILDREN
from sv_pipeline.table.interface import RowMutation, Table
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline_tests.graph.worlds import build_all, random_world, write_world

WORLD = random_world((3, 2, 1), 4, per_chunk=4)


@pytest.fixture
def graph(new_table: Table, tmp_path: Path) -> ChunkedGraph:
    return create_chunked_graph(new_table, write_world(WORLD, tmp_path))


def make(first: list[int], second: list[int], affinity: float = 0.5) -> Edges:
    n = len(first)
    ids = (np.array(first, np.uint64), np.array(second, np.uint64))
    return Edges(*ids, np.full(n, affinity, np.float32), np.ones(n, np.uint64))


def test_edges_are_active_inside_a_component_and_between_pieces_of_one_label() -> None:
    edges = ChunkEdges(make([1, 1, 3, 5], [2, 3, 4, 6]), make([1, 2], [11, 12]), make([5], [13], np.inf))
    components = [np.array(ids, np.uint64) for ids in ([1, 2, 11], [3, 4], [12], [13])]
    active = active_edges(edges, components)
    assert active.in_.node_ids1.tolist() == [1, 3]  # 1-3: two components; 5-6: in no component
    assert active.between.node_ids1.tolist() == [1]
    assert active.cross.node_ids2.tolist() == [13]


def test_a_batch_costs_a_handful_of_requests_beside_three_per_chunk(graph: ChunkedGraph) -> None:
    before = graph.table.round_trips
    build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)
    scans = graph.grid.count(2) if isinstance(graph.table, SqliteTable) else 1
    assert graph.table.round_trips - before <= 5 + scans + 3 * graph.grid.count(2)


def test_chunks_that_are_done_are_skipped(graph: ChunkedGraph) -> None:
    some = graph.grid.coordinates(2)[:4]
    first = build_atomic_chunks(graph, some, read_isolated_supervoxels=False)
    second = build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)
    assert not any(report.skipped for report in first)
    assert [report.skipped for report in second] == [True] * 4 + [False] * 2
    assert [report.nodes for report in second[:4]] == [report.nodes for report in first]
    before = graph.table.round_trips
    build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)
    assert graph.table.round_trips - before == 1


def test_counters_of_supervoxels_are_ahead_of_all_of_them(graph: ChunkedGraph) -> None:
    build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)
    for chunk in np.unique(graph.layout.chunks(WORLD.supervoxels)):
        inside = WORLD.supervoxels[graph.layout.chunks(WORLD.supervoxels) == chunk]
        assert counters.max_segment(graph.table, graph.layout, int(chunk)) == graph.layout.segments(inside).max()


def test_a_supervoxel_that_only_the_voxels_show_gets_a_node(new_table: Table, tmp_path: Path) -> None:
    config = write_world(WORLD, tmp_path)
    graph = create_chunked_graph(new_table, config)
    lonely = int(graph.layout.chunk_ids(1, (1, 1, 0))) | 777
    volume = open_volume(graph.watershed_url, writable=True)
    for coordinate in graph.grid.coordinates(2):
        show(graph, volume, coordinate, [lonely] if tuple(coordinate) == (1, 1, 0) else [])
    build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=True)
    build_all(graph, config)
    root = queries.roots(graph, [lonely])
    assert graph.layout.layers(root).tolist() == [graph.n_layers]
    assert queries.leaves(graph, root).values.tolist() == [lonely]
    assert counters.max_segment(graph.table, graph.layout, int(graph.layout.chunk_ids(1, (1, 1, 0)))) == 777


def show(graph: ChunkedGraph, volume: Any, coordinate: Any, more: list[int]) -> None:
    """Give a voxel to each supervoxel of the world in a chunk, and to some more."""
    here = graph.layout.chunks(WORLD.supervoxels) == graph.layout.chunk_ids(1, coordinate)
    box = graph.grid.box(2, coordinate)
    voxels = np.zeros(box.volume, np.uint64)
    ids = [*WORLD.supervoxels[here].tolist(), *more]
    voxels[: len(ids)] = ids
    volume[box.slices].write(voxels.reshape(box.shape)).result()


def test_files_that_name_strangers_are_refused(graph: ChunkedGraph) -> None:
    coordinate = next(c for c in graph.grid.coordinates(2) if len(read_edges(graph.edges_url, c).in_))
    with pytest.raises(InputError, match=r"edges_.*supervoxel \d+ of edge \d+ - \d+ is not in the voxels of chunk"):
        build_atomic_chunks(graph, [coordinate], read_isolated_supervoxels=True)
    here, far = graph.layout.chunk_ids(1, coordinate) | 1, graph.layout.chunk_ids(1, (90, 1, 0)) | 1
    ids = np.array([[here], [far]], np.uint64)
    outside = Edges(ids[0], ids[1], np.ones(1, np.float32), np.ones(1, np.uint64))
    write_edges(graph.edges_url, coordinate, ChunkEdges(between=outside))
    with pytest.raises(InputError, match=rf"supervoxel {far} of edge {here} - {far} is outside the volume"):
        build_atomic_chunks(graph, [coordinate], read_isolated_supervoxels=False)


def test_an_id_in_the_voxels_of_another_chunk_is_refused(graph: ChunkedGraph) -> None:
    stranger = int(graph.layout.chunk_ids(1, (0, 0, 0))) | 5
    volume = open_volume(graph.watershed_url, writable=True)
    corner = graph.grid.box(2, (2, 1, 0)).start
    volume[tuple(slice(c, c + 2) for c in corner)].write(np.full((2, 2, 2), stranger, np.uint64)).result()
    with pytest.raises(InputError, match=rf"id {stranger} .* chunk \(2, 1, 0\)"):
        build_atomic_chunks(graph, [(2, 1, 0)], read_isolated_supervoxels=True)


def test_edges_of_another_chunk_are_refused_by_the_name_of_their_file(graph: ChunkedGraph) -> None:
    inside = next(c for c in graph.grid.coordinates(2) if len(read_edges(graph.edges_url, c).in_))
    write_edges(graph.edges_url, (2, 1, 0), read_edges(graph.edges_url, inside))
    with pytest.raises(InputError, match=r"edges_2_1_0\.proto\.zst"):
        build_atomic_chunks(graph, [(2, 1, 0)], read_isolated_supervoxels=False)


def test_a_chunk_without_any_file_is_done_at_once(graph: ChunkedGraph) -> None:
    for url in (graph.edges_url, graph.components_url):
        shutil.rmtree(url.removeprefix("file://"))
    reports = build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=True)
    assert [report.nodes for report in reports] == [0] * graph.grid.count(2)


def test_input_that_changed_after_a_crash_is_refused(graph: ChunkedGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinate = next(c for c in graph.grid.coordinates(2) if len(read_edges(graph.edges_url, c).in_))

    class CrashError(Exception):
        pass

    def crash(_: object) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(graph.table, "mutate", crash)
        with pytest.raises(CrashError):
            build_atomic_chunks(graph, [coordinate], read_isolated_supervoxels=False)
    edges = read_edges(graph.edges_url, coordinate)
    write_edges(graph.edges_url, coordinate, ChunkEdges(edges.in_, Edges(), Edges()))
    if len(edges.between) + len(edges.cross):
        with pytest.raises(ConflictError, match=r"another input.*purge-layer"):
            build_atomic_chunks(graph, [coordinate], read_isolated_supervoxels=False)


def test_a_chunk_that_other_software_built_is_not_built_again(graph: ChunkedGraph) -> None:
    node = int(graph.layout.chunk_ids(2, (1, 0, 0))) | 1
    cell = CHILDREN.set(np.array([int(graph.layout.chunk_ids(1, (1, 0, 0))) | 1], np.uint64))
    graph.table.mutate([RowMutation(keys.node_key(node), [cell])])
    with pytest.raises(ConflictError, match=r"chunk \(1, 0, 0\) of layer 2 has nodes already"):
        build_atomic_chunks(graph, graph.grid.coordinates(2), read_isolated_supervoxels=False)


def test_a_coordinate_outside_the_grid_is_a_mistake_of_the_caller(graph: ChunkedGraph) -> None:
    with pytest.raises(ValueError, match="outside the grid"):
        build_atomic_chunks(graph, [(3, 0, 0)])
