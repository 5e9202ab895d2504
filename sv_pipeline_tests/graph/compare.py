"""A stored graph and the reference in one form that does not depend on ids: a node is (layer, smallest leaf)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import IdLayout
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, PARENT, atomic_cross_edges, cross_edges
from sv_pipeline.table.interface import RowKeyRange, Table
from sv_pipeline_tests.graph.worlds import World
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy

__all__ = ["Rows", "dump", "expected_shape", "read_rows", "stored_shape"]

Name = tuple[int, int]


@dataclass
class Rows:
    """Node rows as plain dictionaries."""

    parents: dict[int, int] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    cross_edges: dict[int, dict[int, set[tuple[int, int]]]] = field(default_factory=dict)
    atomic_cross_edges: dict[int, dict[int, set[tuple[int, int]]]] = field(default_factory=dict)


def read_rows(graph: ChunkedGraph) -> Rows:
    """All node rows; checks that no edge is listed twice."""
    rows = Rows()
    for layer in range(1, graph.n_layers + 1):
        for key, row in graph.table.scan([keys.layer_range(layer)]):
            node = int(key)
            if (parent := PARENT.newest(row)) is not None:
                rows.parents[node] = parent
            if (below := CHILDREN.newest(row)) is not None:
                rows.children[node] = below.tolist()
            for target, column in ((rows.cross_edges, cross_edges), (rows.atomic_cross_edges, atomic_cross_edges)):
                found = {n: column(n).newest(row) for n in range(graph.n_layers)}
                for cross_layer, edges in found.items():
                    if edges is not None:
                        pairs = [tuple(pair) for pair in edges.tolist()]
                        assert len(pairs) == len(set(pairs)) > 0
                        target.setdefault(node, {})[cross_layer] = set(pairs)
    return rows


def stored_shape(graph: ChunkedGraph) -> dict[str, object]:
    """The stored graph."""
    return _shape(read_rows(graph), graph.layout)


def expected_shape(world: World) -> dict[str, object]:
    """What it must be."""
    return _shape(expected_hierarchy(world.active, world.supervoxels, world.layout), world.layout)


def _shape(rows: Rows | ReferenceHierarchy, layout: IdLayout) -> dict[str, object]:
    names: dict[int, Name] = {}

    def name(node: int) -> Name:
        if node not in names:
            layer = int(layout.layers(np.uint64(node)))
            names[node] = (layer, node if layer == 1 else min(name(child)[1] for child in rows.children[node]))
        return names[node]

    def chunk(node: int) -> int:
        return int(layout.chunks(np.uint64(node)))

    def edges(of: dict[int, dict[int, set[tuple[int, int]]]]) -> dict[tuple[Name, int], set[tuple[Name, Name]]]:
        return {
            (name(node), layer): {(name(a), name(b)) for a, b in pairs}
            for node, by_layer in of.items()
            for layer, pairs in by_layer.items()
        }

    assert len({name(node) for node in rows.children}) == len(rows.children)
    return {
        "parents": {name(child): name(parent) for child, parent in rows.parents.items()},
        "children": {name(node): {name(child) for child in below} for node, below in rows.children.items()},
        "chunks": {name(node): chunk(node) for node in rows.children},
        "cross_edges": edges(rows.cross_edges),
        "atomic_cross_edges": edges(rows.atomic_cross_edges),
    }


def dump(table: Table, *, without: tuple[bytes, ...] = ()) -> dict[bytes, object]:
    """Every cell of a table, times included, but for rows with one of some prefixes."""
    everything = RowKeyRange(b"\x00", b"\xff" * 8)
    return {key: row for key, row in table.scan([everything]) if not key.startswith(without or (b"\xff" * 9,))}
