"""Each fault planted in edges, stored or in files, is named by the one check that owns it, with its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.storage import kv
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import DeleteCells
from sv_pipeline_tests.verify.conftest import Planted

AssertNames = Callable[..., None]


def node_with_cross_edges(planted: Planted, layer: int, least: int = 1) -> int:
    """A node of layer 2 with at least so many cross edges at ``layer``."""
    edges = planted.data.hierarchy.cross_edges
    return next(n for n in planted.nodes(2) if len(edges.get(n, {}).get(layer, ())) >= least)


def stored(planted: Planted, node: int, layer: int) -> np.ndarray:
    return np.array(sorted(planted.data.hierarchy.cross_edges[node][layer]), np.uint64)


# -- cross edges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [2, 3, 4])
def test_a_missing_cross_edge_is_named(planted: Planted, assert_names: AssertNames, layer: int) -> None:
    node = node_with_cross_edges(planted, layer, least=2)
    planted.rewrite(node, columns.cross_edges(layer), stored(planted, node, layer)[1:])
    assert_names(planted.verify(), "cross_edges", node)


def test_a_missing_cell_of_cross_edges_is_named(planted: Planted, assert_names: AssertNames) -> None:
    """On a node of layer 3, inherited edges count as well as its own."""
    edges = planted.data.hierarchy.cross_edges
    node = next(n for n in planted.nodes(3) if edges.get(n, {}).get(4) and edges[n].get(3))
    planted.change(keys.node_key(node), DeleteCells(columns.cross_edges(4).key))
    assert_names(planted.verify(), "cross_edges", node)


def test_an_extra_cross_edge_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = node_with_cross_edges(planted, 2)
    there = stored(planted, node, 2)
    other = next(n for n in planted.nodes(2) if n not in there and planted.data.hierarchy.parents[n] >> 56 == 3)
    planted.rewrite(node, columns.cross_edges(2), np.concatenate([there, np.array([[node, other]], np.uint64)]))
    assert_names(planted.verify(), "cross_edges", node)


def test_a_stale_partner_is_named(planted: Planted, assert_names: AssertNames) -> None:
    """The partner was replaced by an edit, but this row still names the old node."""
    node = node_with_cross_edges(planted, 2)
    stale = stored(planted, node, 2)
    chunk = int(planted.data.layout.chunks(stale[0, 1]))
    old = chunk | 300
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(300))
    planted.change(keys.node_key(old), columns.CHILDREN.set(np.array([1], np.uint64), 1000))
    stale[0, 1] = old
    planted.rewrite(node, columns.cross_edges(2), stale)
    report = planted.verify()
    assert_names(report, "cross_edges", node)
    assert any("not in use" in finding.message for finding in report["cross_edges"].errors)


def test_cross_edges_of_another_node_in_a_row_are_named(planted: Planted, assert_names: AssertNames) -> None:
    node = node_with_cross_edges(planted, 2)
    planted.rewrite(node, columns.cross_edges(2), stored(planted, node, 2)[:, ::-1])
    assert_names(planted.verify(["cross_edges", "hierarchy"]), "cross_edges", node)


def test_a_root_with_cross_edges_is_named(planted: Planted, assert_names: AssertNames) -> None:
    root = planted.nodes(planted.data.layout.n_layers)[0]
    planted.rewrite(root, columns.cross_edges(4), np.array([[root, root + 1]], np.uint64))
    assert_names(planted.verify(), "cross_edges", root)


def test_missing_atomic_cross_edges_are_named(planted: Planted, assert_names: AssertNames) -> None:
    node = node_with_cross_edges(planted, 2)
    planted.change(keys.node_key(node), DeleteCells(columns.atomic_cross_edges(2).key))
    assert_names(planted.verify(), "atomic_cross_edges", node)


# -- what edges join ----------------------------------------------------------------------------------------------


def test_a_root_of_two_objects_is_named(planted: Planted, assert_names: AssertNames) -> None:
    hierarchy = planted.data.hierarchy
    # All children one layer below, so that nothing but the connection is wrong.
    first, second = [
        root
        for root in planted.nodes(planted.data.layout.n_layers)
        if all(child >> 56 == planted.data.layout.n_layers - 1 for child in hierarchy.children[root])
    ][:2]
    moved = hierarchy.children[second]
    for child in moved:
        planted.rewrite(child, columns.PARENT, first)
    planted.rewrite(first, columns.CHILDREN, np.array([*hierarchy.children[first], *moved], np.uint64))
    planted.change(keys.node_key(second), DeleteCells())
    assert_names(planted.verify(), "connectivity", first)


def test_two_pieces_in_one_layer_2_node_are_named(planted: Planted, assert_names: AssertNames) -> None:
    """The only edge inside a layer 2 node of two supervoxels is not there."""
    hierarchy, layout, url = planted.data.hierarchy, planted.data.layout, planted.data.config.edges_url
    node = next(n for n in planted.nodes(2) if len(hierarchy.children[n]) == 2)
    coordinate = layout.coordinates(np.uint64(node))
    edges = formats.read_edges(url, coordinate)
    pair = hierarchy.children[node]
    kept = ~(np.isin(edges.in_.node_ids1, pair) & np.isin(edges.in_.node_ids2, pair))
    formats.write_edges(url, coordinate, replace(edges, in_=Edges(*(a[kept] for a in edges.in_.arrays))))
    assert_names(planted.verify(), "connectivity", node)


def put_edge(planted: Planted, a: int, b: int, affinity: float, area: int = 1, kind: str = "between") -> None:
    """Add an edge between supervoxels of two chunks to both files."""
    layout, url = planted.data.layout, planted.data.config.edges_url
    for first, second in ((a, b), (b, a)):
        coordinate = layout.coordinates(np.uint64(first))
        edges = formats.read_edges(url, coordinate)
        old: Edges = getattr(edges, kind)
        new = Edges(
            np.append(old.node_ids1, np.uint64(first)),
            np.append(old.node_ids2, np.uint64(second)),
            np.append(old.affinities, np.float32(affinity)),
            np.append(old.areas, np.uint64(area)),
        )
        formats.write_edges(url, coordinate, replace(edges, **{kind: new}))


def two_roots_in_neighbour_chunks(planted: Planted) -> tuple[int, int]:
    hierarchy, layout = planted.data.hierarchy, planted.data.layout
    supervoxels = sorted(sv for sv in hierarchy.parents if sv >> 56 == 1)
    first = supervoxels[0]
    second = next(
        sv
        for sv in supervoxels
        if int(layout.cross_layers(np.array([first], np.uint64), np.array([sv], np.uint64))[0]) == 2
        and hierarchy.root(sv, layout) != hierarchy.root(first, layout)
    )
    return first, second


def test_two_roots_joined_by_an_inf_edge_are_named(planted: Planted, assert_names: AssertNames) -> None:
    first, second = two_roots_in_neighbour_chunks(planted)
    put_edge(planted, first, second, np.inf, kind="cross")
    assert_names(planted.verify(), "inf_edges", first, second)


def test_two_roots_of_one_component_are_named(planted: Planted, assert_names: AssertNames) -> None:
    """The agglomeration joins them, the graph does not."""
    first, second = two_roots_in_neighbour_chunks(planted)
    put_edge(planted, first, second, 0.5)
    url = planted.data.config.components_url
    for supervoxel in (first, second):
        coordinate = planted.data.layout.coordinates(np.uint64(supervoxel))
        others = [c for c in formats.read_components(url, coordinate) if not np.isin([first, second], c).any()]
        formats.write_components(url, coordinate, [*others, np.array([first, second], np.uint64)])
    assert_names(planted.verify(), "connectivity", first)


# -- edge files ---------------------------------------------------------------------------------------------------


def test_an_edge_file_that_cannot_be_read_is_named_not_a_crash(planted: Planted, assert_names: AssertNames) -> None:
    url = kv.as_url(planted.data.config.edges_url)
    key = formats.edges_key([1, 1, 1])
    kv.write_bytes(url, key, kv.read_bytes(url, key)[:-7])
    report = planted.verify()
    assert_names(report, "edge_files", key)
    assert not report["cross_edges"].passed
    assert "edge_files" in str(report["cross_edges"].skipped)


def test_a_component_file_that_cannot_be_read_is_named(planted: Planted, assert_names: AssertNames) -> None:
    key = formats.components_key([1, 1, 1])
    kv.write_bytes(planted.data.config.components_url, key, b"\x0a\xff\xff")
    assert_names(planted.verify(), "edge_files", key)


def chunk_with(planted: Planted, kind: str) -> tuple[np.ndarray, formats.ChunkEdges]:
    for coordinate in planted.data.grid.coordinates(2):
        edges = formats.read_edges(planted.data.config.edges_url, coordinate)
        if len(getattr(edges, kind)) > 1:
            return coordinate, edges
    raise AssertionError(f"no chunk has {kind} edges")


def rewrite_edges(planted: Planted, kind: str, change: Callable[[Edges], Edges]) -> tuple[int, int]:
    """Change one kind of edges of a chunk; the first edge that it had."""
    coordinate, edges = chunk_with(planted, kind)
    old: Edges = getattr(edges, kind)
    formats.write_edges(planted.data.config.edges_url, coordinate, replace(edges, **{kind: change(old)}))
    return int(old.node_ids1[0]), int(old.node_ids2[0])


def test_an_edge_that_the_neighbour_file_lacks_is_named(planted: Planted, assert_names: AssertNames) -> None:
    a, b = rewrite_edges(planted, "between", lambda e: Edges(*(array[1:] for array in e.arrays)))
    assert_names(planted.verify(), "edge_files", f"edge {b} - {a}")


def test_an_affinity_that_differs_from_the_neighbours_is_named(planted: Planted, assert_names: AssertNames) -> None:
    def change(edges: Edges) -> Edges:
        affinities = edges.affinities.copy()
        affinities[0] += 0.25
        return replace(edges, affinities=affinities)

    a, _ = rewrite_edges(planted, "between", change)
    assert_names(planted.verify(), "edge_files", f"{a}")


def test_an_in_edge_listed_twice_is_named(planted: Planted, assert_names: AssertNames) -> None:
    def change(edges: Edges) -> Edges:
        # The second time in the other direction.
        return Edges(
            np.append(edges.node_ids1, edges.node_ids2[:1]),
            np.append(edges.node_ids2, edges.node_ids1[:1]),
            np.append(edges.affinities, edges.affinities[:1]),
            np.append(edges.areas, edges.areas[:1]),
        )

    a, _ = rewrite_edges(planted, "in_", change)
    assert_names(planted.verify(), "edge_files", a)


def test_an_edge_of_an_unknown_supervoxel_is_named(planted: Planted, assert_names: AssertNames) -> None:
    def change(edges: Edges) -> Edges:
        return replace(edges, node_ids2=np.append(edges.node_ids2[:-1], edges.node_ids1[0] | np.uint64(1 << 20)))

    rewrite_edges(planted, "in_", change)
    assert "edge_files" in planted.verify().failed


def test_an_edge_in_the_wrong_file_is_named(planted: Planted, assert_names: AssertNames) -> None:
    coordinate, edges = chunk_with(planted, "in_")
    other, foreign = next(
        (c, e)
        for c in planted.data.grid.coordinates(2)
        if len((e := formats.read_edges(planted.data.config.edges_url, c)).in_) and (c != coordinate).any()
    )
    moved = edges.in_
    formats.write_edges(planted.data.config.edges_url, coordinate, replace(edges, in_=Edges()))
    both = Edges(*(np.concatenate(pair) for pair in zip(foreign.in_.arrays, moved.arrays, strict=True)))
    formats.write_edges(planted.data.config.edges_url, other, replace(foreign, in_=both))
    # Which edges are active is read per file, so the components of the wrong file do not join them either.
    assert_names(planted.verify(["edge_files"]), "edge_files", int(moved.node_ids1[0]))
