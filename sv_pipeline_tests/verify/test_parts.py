"""The parts that verification is made of: the reference, the report, the blocks, the snapshot."""

from __future__ import annotations

import json
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.table.sqlite.table import SqliteTable
from sv_pipeline.verify import snapshot
from sv_pipeline.verify.blocks import BLOCK_VOXELS, aligned_boxes, chunk_groups, in_order, sampled
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.table_checks import check_hierarchy, check_ids
from sv_pipeline_tests.properties import examples
from sv_pipeline_tests.reference import counters_of, cross_layer, expected_hierarchy, write_reference_graph
from sv_pipeline_tests.verify.conftest import Planted

LAYOUT = IdLayout(n_layers=5)


def supervoxel(chunk: tuple[int, int, int], segment: int) -> int:
    return int(LAYOUT.chunk_ids(1, np.array(chunk))) | segment


def node(layer: int, chunk: tuple[int, int, int], segment: int) -> int:
    return int(LAYOUT.chunk_ids(layer, np.array(chunk))) | segment


# -- the reference ------------------------------------------------------------------------------------------------


def test_an_isolated_supervoxel_hangs_directly_below_a_root() -> None:
    alone = supervoxel((1, 0, 0), 7)
    hierarchy = expected_hierarchy([], [alone], LAYOUT)
    middle, root = node(2, (1, 0, 0), 1), node(5, (0, 0, 0), 1)
    assert hierarchy.parents == {alone: middle, middle: root}
    assert not hierarchy.cross_edges


def test_an_edge_to_a_far_chunk_skips_the_layers_in_between() -> None:
    """Chunks 1 and 2 meet only at layer 4: their nodes have parents at layer 3, because they have edges there."""
    a, b = supervoxel((1, 0, 0), 1), supervoxel((2, 0, 0), 1)
    assert cross_layer(a, b, LAYOUT) == 3
    hierarchy = expected_hierarchy([(a, b)], [a, b], LAYOUT)
    low_a, low_b = node(2, (1, 0, 0), 1), node(2, (2, 0, 0), 1)
    mid_a, mid_b = node(3, (0, 0, 0), 1), node(3, (1, 0, 0), 1)
    top, root = node(4, (0, 0, 0), 1), node(5, (0, 0, 0), 1)
    assert hierarchy.parents == {a: low_a, b: low_b, low_a: mid_a, low_b: mid_b, mid_a: top, mid_b: top, top: root}
    assert hierarchy.cross_edges == {
        low_a: {3: {(low_a, low_b)}},
        low_b: {3: {(low_b, low_a)}},
        mid_a: {3: {(mid_a, mid_b)}},
        mid_b: {3: {(mid_b, mid_a)}},
    }
    assert hierarchy.atomic_cross_edges == {low_a: {3: {(a, b)}}, low_b: {3: {(b, a)}}}


def test_a_partner_that_skips_layers_is_named_by_its_highest_ancestor_so_far() -> None:
    """One end has a layer 3 node because of its neighbour, the other end skips from layer 2 to 4."""
    a, beside, far = supervoxel((2, 0, 0), 1), supervoxel((3, 0, 0), 1), supervoxel((4, 0, 0), 1)
    hierarchy = expected_hierarchy([(a, beside), (beside, far)], [a, beside, far], LAYOUT)
    assert cross_layer(beside, far, LAYOUT) == 4
    low_far = node(2, (4, 0, 0), 1)
    assert hierarchy.parents[low_far] >> 56 == 4
    joined = node(3, (1, 0, 0), 1)
    assert hierarchy.cross_edges[joined] == {4: {(joined, low_far)}}


@st.composite
def active_edges(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Supervoxels in a grid of 7 x 3 x 2 chunks, and edges between any two of them."""
    chunks = st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 1))
    ids = draw(st.lists(st.builds(supervoxel, chunks, st.integers(1, 3)), min_size=1, max_size=30, unique=True))
    ends = st.integers(0, len(ids) - 1)
    pairs = draw(st.lists(st.tuples(ends, ends).filter(lambda p: p[0] != p[1]), max_size=40))
    return ids, [(ids[i], ids[j]) for i, j in pairs]


@given(active_edges())
@examples(60, suppress_health_check=[HealthCheck.too_slow])
def test_roots_of_the_reference_are_the_components(given_edges: tuple[list[int], list[tuple[int, int]]]) -> None:
    ids, edges = given_edges
    hierarchy = expected_hierarchy(edges, ids, LAYOUT)
    graph = networkx.Graph(edges)
    graph.add_nodes_from(ids)
    roots = {n for n in hierarchy.children if n >> 56 == 5}
    assert {frozenset(hierarchy.leaves(root)) for root in roots} == set(
        map(frozenset, networkx.connected_components(graph))
    )


@given(active_edges())
@examples(25, suppress_health_check=[HealthCheck.too_slow])
def test_rows_of_any_reference_graph_pass(
    tmp_path_factory: pytest.TempPathFactory, given_edges: tuple[list[int], list[tuple[int, int]]]
) -> None:
    ids, edges = given_edges
    hierarchy = expected_hierarchy(edges, ids, LAYOUT)
    table = SqliteTable("any", str(tmp_path_factory.mktemp("any")))
    table.create()
    grid = ChunkGrid(Box((0, 0, 0), (70, 30, 20)), (10, 10, 10))
    assert grid.n_layers == LAYOUT.n_layers
    write_reference_graph(table, hierarchy, LAYOUT, grid)
    nodes = snapshot.read_snapshot(table, LAYOUT)
    outcome = Outcome("any")
    check_ids(outcome, nodes, grid, counters_of(hierarchy, LAYOUT), np.zeros(256, np.int64))
    check_hierarchy(outcome, nodes)
    assert not outcome.findings
    assert nodes.ids[nodes.leaves].tolist() == sorted(ids)
    table.close()


# -- the snapshot -------------------------------------------------------------------------------------------------


def test_a_snapshot_read_in_batches_is_the_same(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = snapshot.read_snapshot(planted.table, planted.data.layout)
    monkeypatch.setattr(snapshot, "ROWS_AT_A_TIME", 97)
    pieces = snapshot.read_snapshot(planted.table, planted.data.layout)
    for name in ("ids", "parents", "parent_times", "children", "child_starts", "created", "retired", "edited"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))
    for name in ("cross_edges", "atomic_cross_edges"):
        assert getattr(whole, name).keys() == getattr(pieces, name).keys()
        for layer, cells in getattr(whole, name).items():
            np.testing.assert_array_equal(cells.owners, getattr(pieces, name)[layer].owners)
            np.testing.assert_array_equal(cells.edges, getattr(pieces, name)[layer].edges)


def test_an_empty_table_is_an_empty_snapshot(tmp_path: Path) -> None:
    table = SqliteTable("empty", str(tmp_path))
    table.create()
    nodes = snapshot.read_snapshot(table, LAYOUT)
    outcome = Outcome("hierarchy")
    check_hierarchy(outcome, nodes)
    assert not outcome.findings
    assert len(nodes.leaves) == 0


# -- blocks -------------------------------------------------------------------------------------------------------


@given(
    start=st.tuples(*[st.integers(-50, 50)] * 3),
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    chunk=st.tuples(*[st.integers(1, 9)] * 3),
    limit=st.integers(50, 5_000),
)
@examples(60)
def test_boxes_cover_a_volume_once_in_whole_storage_chunks(start, shape, chunk, limit) -> None:  # type: ignore[no-untyped-def]
    bounds = Box.of(start, np.add(start, shape))
    boxes = aligned_boxes(bounds, chunk, limit)
    seen = np.zeros(shape, np.int64)
    for box in boxes:
        assert box.volume <= max(limit, int(np.prod(chunk)))
        assert not (np.subtract(box.start, start) % chunk).any()
        seen[box.shifted(np.negative(start)).slices] += 1
    assert (seen == 1).all()


def test_groups_of_chunks_are_all_chunks_and_fit_in_memory() -> None:
    grid = ChunkGrid(Box((3, 4, 5), (1000, 900, 700)), (64, 64, 64))
    groups = list(chunk_groups(grid, None, 0))
    together = np.concatenate(groups)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, grid.coordinates(2).tolist()))
    for group in groups:
        extent = (group.max(axis=0) - group.min(axis=0) + 1) * 64
        assert np.prod(extent) <= BLOCK_VOXELS


def test_a_sample_of_chunks_is_the_same_for_the_same_seed() -> None:
    grid = ChunkGrid(Box((0, 0, 0), (640, 640, 640)), (64, 64, 64))
    first, again, other = (np.concatenate(list(chunk_groups(grid, 9, seed))) for seed in (1, 1, 2))
    assert len(np.unique(first, axis=0)) == 9
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_blocks_of_a_petavoxel_volume_are_sampled_without_listing_them() -> None:
    bounds = Box((0, 0, 0), (1_000_000, 1_000_000, 100_000))
    boxes = aligned_boxes(bounds, (64, 64, 64))
    assert len(boxes) > 1_000_000
    assert len(sampled(boxes, 5, 0)) == 5
    chunks = np.concatenate(list(chunk_groups(ChunkGrid(bounds, (256, 256, 512)), 5, 0)))
    assert chunks.shape == (5, 3)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(in_order(lambda n: n * n, range(20), workers)) == [n * n for n in range(20)]


# -- the report ---------------------------------------------------------------------------------------------------


def test_the_report_is_json_and_text(planted: Planted) -> None:
    planted.change(b"meta")
    report = planted.verify(["meta", "hierarchy"])
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is True
    assert [result["name"] for result in plain["results"]] == ["meta", "hierarchy"]
    assert "2 of 2 checks passed" in report.summary()


def test_equal_faults_are_one_finding_with_the_first_place() -> None:
    outcome = Outcome("ids")
    outcome.error("is wrong.", 17)
    outcome.error("is wrong.", 18, 4)
    outcome.warning("is odd.", 19)
    assert [(f.place, f.count, f.severity) for f in outcome.findings] == [("17", 5, "error"), ("19", 1, "warning")]
    assert str(outcome.findings[0]) == "17: is wrong. (and 4 more)"
