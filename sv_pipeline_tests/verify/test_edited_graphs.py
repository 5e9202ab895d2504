"""Graphs that edits have changed are sound as well: merges, splits, and supervoxel splits, as rows and voxels."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import networkx
import numpy as np
import pytest

from sv_pipeline.graph import edge_files as formats
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import DeleteCells, RowMutation, SetCell
from sv_pipeline.verify.run import CHECKS
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy
from sv_pipeline_tests.reference_data import contacts
from sv_pipeline_tests.verify.conftest import Planted

AssertNames = Callable[..., None]
SEGMENTS_OF_EDITS = 10_000


@dataclass
class Editor:
    """Rebuilds whole objects, with new ids, the way an edit's rows look afterwards."""

    planted: Planted
    active: set[tuple[int, int]] = field(default_factory=set)
    replaced: dict[int, list[int]] = field(default_factory=dict)
    operations: int = 0
    time: int = field(default_factory=lambda: int(time.time() * 1000))

    def __post_init__(self) -> None:
        self.active = {tuple(sorted(edge)) for edge in self.planted.data.active_edges}

    @property
    def hierarchy(self) -> ReferenceHierarchy:
        return self.planted.data.hierarchy

    def rebuild(self, old_roots: Iterable[int], leaves: Iterable[int]) -> set[int]:
        """Replace roots by those of the active edges over ``leaves``; the new roots."""
        leaves, old_roots = set(leaves), sorted(set(old_roots))
        layout = self.planted.data.layout
        self.operations += 1
        self.time += 1000
        inside = [(a, b) for a, b in self.active if a in leaves and b in leaves]
        new = renumbered(expected_hierarchy(inside, leaves, layout), self.operations * SEGMENTS_OF_EDITS)
        mutations: list[RowMutation] = []

        def put(node: int, *changes: SetCell) -> None:
            mutations.append(RowMutation(keys.node_key(node), changes))

        for child, parent in new.parents.items():
            put(child, columns.PARENT.set(parent, self.time))
        for node, children in new.children.items():
            put(node, columns.CHILDREN.set(np.array(children, np.uint64), self.time))
            for layer, edges in new.cross_edges.get(node, {}).items():
                put(node, columns.cross_edges(layer).set(np.array(sorted(edges), np.uint64), self.time))
            counter = keys.counter_key(int(layout.chunks(np.uint64(node))))
            mutations.append(RowMutation(counter, [columns.COUNTER.set(SEGMENTS_OF_EDITS * (self.operations + 1))]))
        roots = {new.root(leaf, layout) for leaf in leaves}
        for root in roots:
            put(root, columns.FORMER_PARENTS.set(np.array(old_roots, np.uint64), self.time))
        for root in old_roots:
            put(root, columns.NEW_PARENTS.set(np.array(sorted(roots), np.uint64), self.time))
        put(
            self.operations,
            columns.OPERATION_STATUS.set(0),
            columns.ROOTS.set(np.array(sorted(roots), np.uint64), self.time),
        )
        mutations.append(RowMutation(keys.OPERATION_COUNTER, [columns.COUNTER.set(self.operations)]))
        self.planted.table.mutate(mutations)
        self.hierarchy.parents.update(new.parents)
        self.hierarchy.children.update(new.children)
        self.hierarchy.cross_edges.update(new.cross_edges)
        return roots

    def edit_edges(self, edges: Iterable[tuple[int, int]], *, fake: bool) -> None:
        """Put both directions of edges into the rows of edits."""
        layout = self.planted.data.layout
        for a, b in edges:
            for pair in ((a, b), (b, a)):
                # One cell per time, so each edge gets its own.
                self.time += 1
                value = np.array([pair], np.uint64)
                changes = (
                    [columns.FAKE_EDGES.set(value, self.time)]
                    if fake
                    else [
                        columns.SPLIT_EDGES.set(value, self.time),
                        columns.AFFINITIES.set(np.array([0.001], np.float32), self.time),
                        columns.AREAS.set(np.array([0], np.uint64), self.time),
                    ]
                )
                chunk = int(layout.chunk_ids(2, layout.coordinates(np.uint64(pair[0]))))
                self.planted.change(keys.edit_edge_key(chunk), *changes)

    def root(self, leaf: int) -> int:
        return self.hierarchy.root(leaf, self.planted.data.layout)


def renumbered(hierarchy: ReferenceHierarchy, offset: int) -> ReferenceHierarchy:
    """The same hierarchy with ids that no node had before."""

    def new(node: int) -> int:
        return node if node >> 56 == 1 else node + offset

    def moved(edges: dict) -> dict:
        return {
            new(n): {layer: {(new(a), new(b)) for a, b in pairs} for layer, pairs in by_layer.items()}
            for n, by_layer in edges.items()
        }

    return ReferenceHierarchy(
        hierarchy.n_layers,
        parents={new(child): new(parent) for child, parent in hierarchy.parents.items()},
        children={new(node): [new(child) for child in children] for node, children in hierarchy.children.items()},
        cross_edges=moved(hierarchy.cross_edges),
    )


@pytest.fixture
def editor(planted: Planted) -> Editor:
    data = planted.data
    # A copy: the sound graph is shared by all tests.
    data.hierarchy = ReferenceHierarchy(
        data.hierarchy.n_layers,
        dict(data.hierarchy.parents),
        dict(data.hierarchy.children),
        dict(data.hierarchy.cross_edges),
        dict(data.hierarchy.atomic_cross_edges),
    )
    return Editor(planted)


def merge(editor: Editor, *, touching: bool = False) -> tuple[int, int]:
    """Join two roots: by the inactive edges between them, or by an edge of the user where there are none."""
    roots = editor.planted.nodes(editor.planted.data.layout.n_layers)
    roots = [root for root in roots if editor.root(min(editor.hierarchy.leaves(root))) == root]
    pairs = contacts(editor.planted.data.voxels)
    by_roots: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for a, b in pairs:
        if a not in editor.replaced and b not in editor.replaced:
            by_roots[min(editor.root(a), editor.root(b)), max(editor.root(a), editor.root(b))].add((a, b))
    first, second = next(
        (a, b) for i, a in enumerate(roots) for b in roots[i + 1 :] if bool(by_roots[a, b]) is touching
    )
    leaves = editor.hierarchy.leaves(first), editor.hierarchy.leaves(second)
    if touching:
        editor.active |= by_roots[first, second]
    else:
        ends = min(leaves[0]), max(leaves[1])
        editor.active.add((min(ends), max(ends)))
        editor.edit_edges([ends], fake=True)
    editor.rebuild([first, second], leaves[0] | leaves[1])
    return min(leaves[0]), max(leaves[1])


def merge_touching(editor: Editor) -> None:
    merge(editor, touching=True)


def split(editor: Editor) -> int:
    """Take what inf edges hold together, the smallest such piece of an object of several, out of its object."""
    url = editor.planted.data.config.edges_url
    graph = networkx.Graph()
    graph.add_nodes_from(leaf for leaf in editor.hierarchy.parents if leaf >> 56 == 1)
    for coordinate in editor.planted.data.grid.coordinates(2):
        cross = formats.read_edges(url, coordinate).cross
        graph.add_edges_from(np.stack([cross.node_ids1, cross.node_ids2], axis=-1).tolist())
    graph.remove_nodes_from(editor.replaced)
    pieces = sorted(networkx.connected_components(graph), key=lambda piece: (len(piece), min(piece)))
    piece = next(p for p in pieces if len(p) < len(editor.hierarchy.leaves(editor.root(min(p)))))
    root = editor.root(min(piece))
    editor.active -= {edge for edge in editor.active if (edge[0] in piece) != (edge[1] in piece)}
    editor.rebuild([root], editor.hierarchy.leaves(root))
    return min(piece)


def split_supervoxel(editor: Editor) -> tuple[int, list[int]]:
    """Cut one voxel off a supervoxel: rows, edges and voxels; the old id and the new ones."""
    planted, hierarchy, layout = editor.planted, editor.hierarchy, editor.planted.data.layout
    ids, counts = np.unique(planted.data.voxels[planted.data.voxels > 0], return_counts=True)
    old = int(ids[np.argmax(counts)])
    chunk, parent, root = int(layout.chunks(np.uint64(old))), hierarchy.parents[old], editor.root(old)
    new = [chunk | 5000, chunk | 5001]
    made = planted.row(old)[columns.PARENT.key][0].timestamp
    leaves = hierarchy.leaves(root) - {old} | set(new)
    editor.replaced[old] = new

    planted.change(keys.node_key(old), columns.NEW_IDS.set(np.array(new, np.uint64)))
    for fragment in new:
        former = columns.FORMER_IDS.set(np.array([old], np.uint64))
        planted.change(keys.node_key(fragment), former, columns.PARENT.set(parent, made))
        hierarchy.parents[fragment] = parent
    hierarchy.children[parent] = [child for child in hierarchy.children[parent] if child != old] + new
    planted.rewrite(parent, columns.CHILDREN, np.array(hierarchy.children[parent], np.uint64))
    planted.change(keys.counter_key(chunk), columns.COUNTER.set(5001))

    partners = {a if b == old else b for a, b in editor.active if old in (a, b)}
    rerouted = {(min(new[0], p), max(new[0], p)) for p in partners} | {(new[0], new[1])}
    editor.active = {edge for edge in editor.active if old not in edge} | rerouted
    editor.edit_edges(sorted(rerouted), fake=False)
    editor.rebuild([root], leaves)

    store = planted.data.fork.store()
    for mip in range(2):
        # Mip 1 as the downsample job leaves it: the cut-off voxel is in no majority.
        array = store.array(mip)
        domain = tuple(slice(a, b) for a, b in zip(array.domain.inclusive_min, array.domain.exclusive_max, strict=True))
        voxels = np.array(array[domain].read().result())
        voxels[voxels == old] = new[0]
        if mip == 0:
            voxels[tuple(planted.voxels_of(old)[0] - planted.data.grid.bounds.start)] = new[1]
        array[domain].write(voxels).result()
    return old, new


def graph_checks(planted: Planted) -> list[str]:
    """All checks but those of coarser mips, which these edits leave alone."""
    return [name for name in CHECKS if name != "pyramid"]


EDITS = [
    [merge],
    [merge_touching],
    [split],
    [split_supervoxel],
    [merge, split, merge_touching, split_supervoxel, split],
]


@pytest.mark.parametrize("edits", EDITS, ids=lambda edits: "-".join(edit.__name__ for edit in edits))
def test_an_edited_graph_passes(editor: Editor, edits: list[Callable[[Editor], object]]) -> None:
    for edit in edits:
        edit(editor)
    report = editor.planted.verify(graph_checks(editor.planted))
    assert report.ok, report.summary()
    assert not report.findings, report.summary()


def test_history_is_not_taken_for_leftovers(editor: Editor) -> None:
    """The old nodes of a merge still list their children, which have other parents now."""
    merge(editor)
    assert not editor.planted.verify(["hierarchy"]).findings


def test_a_missing_cross_edge_of_an_edited_node_is_named(editor: Editor, assert_names: AssertNames) -> None:
    merge(editor)
    planted = editor.planted
    fresh = [n for n in planted.nodes(2) if (n & 0xFFFF) > SEGMENTS_OF_EDITS and n in editor.hierarchy.cross_edges]
    node, layer = next((n, layer) for n in fresh for layer in editor.hierarchy.cross_edges[n])
    edges = np.array(sorted(editor.hierarchy.cross_edges[node][layer]), np.uint64)
    planted.rewrite(node, columns.cross_edges(layer), edges[1:])
    assert_names(planted.verify(graph_checks(planted)), "cross_edges", node)


def test_an_edited_root_in_two_pieces_is_named(editor: Editor, assert_names: AssertNames) -> None:
    """The user's edge that holds a merged root together is gone."""
    first, _ = merge(editor)
    planted = editor.planted
    for key, row in list(planted.table.scan([keys.prefix_range(b"f")])):
        planted.change(key, *(DeleteCells(column) for column in row))
    report = planted.verify(["hierarchy", "connectivity"])
    assert_names(report, "connectivity", editor.root(first))


def test_a_split_that_left_an_inf_edge_is_named(editor: Editor, assert_names: AssertNames) -> None:
    url = editor.planted.data.config.edges_url
    coordinate = next(c for c in editor.planted.data.grid.coordinates(2) if len(formats.read_edges(url, c).cross))
    cross = formats.read_edges(url, coordinate).cross
    alone = int(cross.node_ids1[0])
    root = editor.root(alone)
    editor.active -= {edge for edge in editor.active if alone in edge}
    editor.rebuild([root], editor.hierarchy.leaves(root))
    assert_names(editor.planted.verify(graph_checks(editor.planted)), "inf_edges", alone)


def test_a_voxel_that_a_split_forgot_is_named(editor: Editor, assert_names: AssertNames) -> None:
    old, _ = split_supervoxel(editor)
    planted = editor.planted
    voxel = planted.voxels_of(old)[1]
    planted.write_voxels(voxel, old)
    report = planted.verify(graph_checks(planted))
    assert_names(report, "voxels", f"voxel {','.join(map(str, voxel))} (id {old})")
