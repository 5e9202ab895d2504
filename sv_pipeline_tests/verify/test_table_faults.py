"""Each fault planted in the rows of a sound graph is named by the one check that owns it, with its place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import DeleteCells
from sv_pipeline_tests.verify.conftest import Planted

AssertNames = Callable[..., None]


def test_a_sound_graph_passes_every_check(planted: Planted) -> None:
    report = planted.verify()
    assert report.ok, report.summary()
    assert not report.findings, report.summary()
    assert all(result.skipped is None for result in report.results)


# -- ids ----------------------------------------------------------------------------------------------------------


def test_a_counter_behind_its_nodes_is_named(planted: Planted, assert_names: AssertNames) -> None:
    supervoxel = min(planted.data.hierarchy.parents)
    chunk = int(planted.data.layout.chunks(np.uint64(supervoxel)))
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(0))
    assert_names(planted.verify(), "ids", supervoxel)


def test_a_root_counter_behind_is_named(planted: Planted, assert_names: AssertNames) -> None:
    roots = planted.nodes(planted.data.layout.n_layers)
    chunk = int(planted.data.layout.chunks(np.uint64(roots[0])))
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(len(roots) - 1))
    assert_names(planted.verify(), "ids", roots[-1])


@pytest.mark.parametrize(("shard", "is_given"), [(7, True), (8, False)])
def test_root_ids_of_a_shard_are_measured_with_its_own_counter(planted: Planted, shard: int, is_given: bool) -> None:
    chunk = int(planted.data.layout.chunk_ids(planted.data.layout.n_layers, [0, 0, 0]))
    root = chunk | (256 * 1 + 7)
    planted.change(keys.node_key(root), columns.CHILDREN.set(np.array([], np.uint64), 1000))
    planted.change(keys.root_counter_key(chunk, shard), columns.COUNTER.set(1))
    assert planted.verify(["ids"]).ok is is_given


def test_a_node_outside_the_grid_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = int(planted.data.layout.chunk_ids(2, [100, 0, 0])) | 1
    planted.change(keys.node_key(node), columns.CHILDREN.set(np.array([], np.uint64), 1000))
    assert_names(planted.verify(), "ids", node)


def test_a_node_of_a_layer_above_the_roots_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = (9 << 56) | 1
    planted.change(keys.node_key(node), columns.CHILDREN.set(np.array([], np.uint64), 1000))
    assert_names(planted.verify(["ids", "hierarchy"]), "ids", node)


def test_segment_0_is_named(planted: Planted, assert_names: AssertNames) -> None:
    chunk = int(planted.data.layout.chunk_ids(2, [0, 0, 0]))
    planted.change(keys.node_key(chunk), columns.CHILDREN.set(np.array([], np.uint64), 1000))
    assert_names(planted.verify(["ids", "hierarchy"]), "ids", chunk)


# -- parents and children -----------------------------------------------------------------------------------------


def some_node(planted: Planted, layer: int, n_children: int = 2) -> int:
    return next(n for n in planted.nodes(layer) if len(planted.data.hierarchy.children[n]) >= n_children)


def test_a_parent_without_its_children_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = some_node(planted, 2)
    planted.change(keys.node_key(node), DeleteCells(columns.CHILDREN.key))
    assert_names(planted.verify(), "hierarchy", node)


def test_a_child_with_a_wrong_parent_is_named(planted: Planted, assert_names: AssertNames) -> None:
    hierarchy = planted.data.hierarchy
    child = next(n for n in planted.nodes(2) if hierarchy.parents[n] >> 56 == 3)
    chunk = hierarchy.parents[child] & ~0xFFFF
    wrong = next(n for n in planted.nodes(3) if n & ~0xFFFF == chunk and n != hierarchy.parents[child])
    planted.rewrite(child, columns.PARENT, wrong)
    assert_names(planted.verify(), "hierarchy", child)


def test_two_parents_that_list_one_child_are_named(planted: Planted, assert_names: AssertNames) -> None:
    first, second = planted.nodes(2)[:2]
    child = planted.data.hierarchy.children[first][0]
    both = [*planted.data.hierarchy.children[second], child]
    planted.rewrite(second, columns.CHILDREN, np.array(both, np.uint64))
    assert_names(planted.verify(), "hierarchy", child)


def test_a_listed_child_without_row_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = planted.nodes(2)[0]
    ghost = int(planted.data.layout.chunks(np.uint64(planted.data.hierarchy.children[node][0]))) | 9999
    children = [*planted.data.hierarchy.children[node], ghost]
    planted.rewrite(node, columns.CHILDREN, np.array(children, np.uint64))
    assert_names(planted.verify(), "hierarchy", node)


def test_a_parent_without_row_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = planted.nodes(3)[0]
    planted.change(keys.node_key(node), DeleteCells())
    assert_names(planted.verify(), "hierarchy", planted.data.hierarchy.children[node][0])


def test_a_node_without_parent_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = planted.nodes(3)[0]
    planted.change(keys.node_key(node), DeleteCells(columns.PARENT.key))
    assert_names(planted.verify(), "hierarchy", node)


def test_supervoxels_under_a_replaced_root_are_named(planted: Planted, assert_names: AssertNames) -> None:
    root = planted.nodes(planted.data.layout.n_layers)[0]
    planted.change(keys.node_key(root), columns.NEW_PARENTS.set(np.array([root + 1], np.uint64)))
    assert_names(planted.verify(), "hierarchy", min(planted.data.hierarchy.leaves(root)))


def test_a_child_newer_than_its_parent_is_named(planted: Planted, assert_names: AssertNames) -> None:
    node = planted.nodes(2)[0]
    cell = planted.row(node)[columns.CHILDREN.key][0]
    planted.change(keys.node_key(node), DeleteCells(columns.CHILDREN.key))
    children = columns.CHILDREN.decode(cell.value)
    planted.change(keys.node_key(node), columns.CHILDREN.set(children, cell.timestamp + 3_000_000))
    assert_names(planted.verify(), "hierarchy", node)


def test_a_parent_in_another_chunk_is_named(planted: Planted, assert_names: AssertNames) -> None:
    hierarchy = planted.data.hierarchy
    child = next(n for n in planted.nodes(2) if hierarchy.parents[n] >> 56 == 3)
    old = hierarchy.parents[child]
    chunk = int(planted.data.layout.chunks(np.uint64(old)))
    new = next(n for n in planted.nodes(3) if int(planted.data.layout.chunks(np.uint64(n))) != chunk)
    planted.rewrite(child, columns.PARENT, new)
    planted.rewrite(old, columns.CHILDREN, np.setdiff1d(hierarchy.children[old], [child]).astype(np.uint64))
    planted.rewrite(new, columns.CHILDREN, np.array([*hierarchy.children[new], child], np.uint64))
    assert_names(planted.verify(), "hierarchy", child)


def test_checks_that_need_ancestors_are_blocked_not_confused(planted: Planted) -> None:
    planted.change(keys.node_key(planted.nodes(3)[0]), DeleteCells(columns.PARENT.key))
    result = planted.verify(["cross_edges"])["cross_edges"]
    assert not result.passed
    assert not result.findings
    assert "hierarchy" in str(result.skipped)


def test_leftovers_of_a_repeated_ingest_are_a_warning(planted: Planted) -> None:
    original = planted.nodes(2)[0]
    chunk = int(planted.data.layout.chunks(np.uint64(original)))
    orphan = chunk | 200
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(200))
    children = np.array(planted.data.hierarchy.children[original], np.uint64)
    planted.change(keys.node_key(orphan), columns.CHILDREN.set(children, 1000))
    report = planted.verify()
    assert report.ok, report.summary()
    assert [(f.severity, f.place) for f in report.findings] == [("warning", str(orphan))]


def test_a_cell_that_cannot_be_read_is_named_once(planted: Planted, assert_names: AssertNames) -> None:
    node = planted.nodes(2)[0]
    broken = columns.CHILDREN.set(np.array([1], np.uint64), planted.row(node)[columns.CHILDREN.key][0].timestamp)
    planted.change(keys.node_key(node), type(broken)(broken.column, b"\x28\xb5\x2f\xfdnonsense", broken.timestamp))
    report = planted.verify()
    assert_names(report, "ids")
    assert str(node) in report["ids"].errors[0].message


def test_a_skip_over_the_wrong_layer_is_named(planted: Planted, assert_names: AssertNames) -> None:
    """An only child whose parent is a layer too low: an extra node in between."""
    data = planted.data
    child = next(
        n
        for n in planted.nodes(2)
        if data.hierarchy.parents[n] >> 56 == 5 and len(data.hierarchy.children[data.hierarchy.parents[n]]) == 1
    )
    root = data.hierarchy.parents[child]
    coordinate = data.layout.coordinates(np.uint64(child)) // 2
    chunk = int(data.layout.chunk_ids(3, coordinate))
    extra = chunk | 500
    time = planted.row(root)[columns.CHILDREN.key][0].timestamp
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(500))
    planted.change(
        keys.node_key(extra), columns.CHILDREN.set(np.array([child], np.uint64), time), columns.PARENT.set(root, time)
    )
    planted.rewrite(child, columns.PARENT, extra)
    planted.rewrite(root, columns.CHILDREN, np.array([extra], np.uint64))
    assert_names(planted.verify(), "skip_connections", child)
