"""A small and plain builder of chunked graphs: dictionaries and networkx, straight from the definitions.

What the pipeline builds must equal what this builds, ids aside. Too slow for anything but tests.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx
import numpy as np

from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import IdLayout
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowMutation, SetCell, Table

__all__ = ["ReferenceHierarchy", "cross_layer", "expected_hierarchy", "write_reference_graph"]

Edge = tuple[int, int]


@dataclass
class ReferenceHierarchy:
    """The node rows of a freshly ingested graph."""

    n_layers: int
    parents: dict[int, int] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    cross_edges: dict[int, dict[int, set[Edge]]] = field(default_factory=lambda: defaultdict(dict))
    """Node -> layer -> {(node, partner)}."""
    atomic_cross_edges: dict[int, dict[int, set[Edge]]] = field(default_factory=lambda: defaultdict(dict))
    """Layer 2 node -> layer -> {(supervoxel in it, supervoxel)}."""

    def ancestor(self, supervoxel: int, layer: int, layout: IdLayout) -> int:
        """Highest ancestor with a layer of at most ``layer``."""
        node = supervoxel
        while node in self.parents and layer_of(self.parents[node], layout) <= layer:
            node = self.parents[node]
        return node

    def root(self, supervoxel: int, layout: IdLayout) -> int:
        """Root of a supervoxel."""
        return self.ancestor(supervoxel, self.n_layers, layout)

    def leaves(self, node: int) -> set[int]:
        """Supervoxels below a node."""
        if node not in self.children:
            return {node}
        return set().union(*(self.leaves(child) for child in self.children[node]))


def layer_of(node: int, layout: IdLayout) -> int:
    """Layer of one id."""
    return int(layout.layers(np.uint64(node)))


def chunk_at(supervoxel: int, layer: int, layout: IdLayout) -> tuple[int, int, int]:
    """Coordinate of the chunk of ``layer`` that a supervoxel lies in."""
    x, y, z = (int(c) for c in layout.coordinates(np.uint64(supervoxel)))
    shift = max(layer - 2, 0)
    return x >> shift, y >> shift, z >> shift


def cross_layer(a: int, b: int, layout: IdLayout) -> int:
    """1 + the number of layers from 2 up to the one below the roots at which two supervoxels' chunks differ."""
    layers = range(2, layout.n_layers)
    return 1 + sum(chunk_at(a, layer, layout) != chunk_at(b, layer, layout) for layer in layers)


def expected_hierarchy(
    active_edges: Iterable[Edge], supervoxels: Iterable[int], layout: IdLayout
) -> ReferenceHierarchy:
    """The hierarchy over active atomic edges; each pair once or twice, in any direction.

    Nodes of one chunk are numbered in the order of their smallest child.
    """
    supervoxels = sorted(int(sv) for sv in supervoxels)
    by_layer: dict[int, set[Edge]] = defaultdict(set)
    for u, v in active_edges:
        a, b = int(u), int(v)
        by_layer[cross_layer(a, b, layout)] |= {(a, b), (b, a)}
    result = ReferenceHierarchy(layout.n_layers)
    numbers: dict[int, int] = defaultdict(int)

    def make_parent(layer: int, children: list[int], chunk: tuple[int, int, int]) -> int:
        chunk_id = int(layout.chunk_ids(layer, np.array(chunk)))
        numbers[chunk_id] += 1
        parent = chunk_id | numbers[chunk_id]
        result.children[parent] = sorted(children)
        result.parents.update(dict.fromkeys(children, parent))
        return parent

    waiting = _layer_2(supervoxels, by_layer[1], layout, make_parent)
    for layer in range(3, layout.n_layers + 1):
        waiting = _next_layer(layer, waiting, by_layer, result, layout, make_parent)
    for layer, edges in by_layer.items():
        if layer > 1:
            _note_cross_edges(layer, edges, result, layout)
    return result


def _layer_2(supervoxels, edges, layout, make_parent):  # type: ignore[no-untyped-def]
    graph = networkx.Graph()
    graph.add_nodes_from(supervoxels)
    graph.add_edges_from(edges)
    pieces = sorted(networkx.connected_components(graph), key=min)
    return [(make_parent(2, list(piece), chunk_at(min(piece), 2, layout)), min(piece)) for piece in pieces]


def _next_layer(layer, waiting, by_layer, result, layout, make_parent):  # type: ignore[no-untyped-def]
    """Parents at ``layer`` of the nodes that have none yet; the new list of such (node, a supervoxel in it)."""
    graph = networkx.Graph()
    graph.add_nodes_from(node for node, _ in waiting)
    for a, b in by_layer[layer - 1]:
        graph.add_edge(result.ancestor(a, layer - 1, layout), result.ancestor(b, layer - 1, layout))
    inside = dict(waiting)
    later = []
    for piece in sorted(networkx.connected_components(graph), key=min):
        supervoxel = inside[min(piece)]
        leaves = set(itertools.chain.from_iterable(result.leaves(node) for node in piece))
        goes_on = any(a in leaves for a, _ in by_layer[layer])
        if len(piece) > 1 or goes_on or layer == layout.n_layers:
            later.append((make_parent(layer, list(piece), chunk_at(supervoxel, layer, layout)), supervoxel))
        else:
            later.append((min(piece), supervoxel))
    return later


def _note_cross_edges(layer, edges, result, layout):  # type: ignore[no-untyped-def]
    for a, b in edges:
        in_chunk = result.ancestor(a, 2, layout)
        result.atomic_cross_edges[in_chunk].setdefault(layer, set()).add((a, b))
        for own_layer in range(2, layer + 1):
            node = result.ancestor(a, own_layer, layout)
            if layer_of(node, layout) == own_layer:
                partner = result.ancestor(b, own_layer, layout)
                result.cross_edges[node].setdefault(layer, set()).add((node, partner))


# -- rows ---------------------------------------------------------------------------------------------------------


def write_reference_graph(
    table: Table, hierarchy: ReferenceHierarchy, layout: IdLayout, grid: ChunkGrid, *, start: int | None = None
) -> None:
    """Write every row of a freshly ingested graph except meta and version: nodes, counters, ingest rows.

    Cells of a layer carry one time, a second later than those of the layer below; ``start`` (milliseconds) is an hour
    ago unless given.
    """
    begin = int(time.time() * 1000) - 3_600_000 if start is None else start
    rows: dict[bytes, list[SetCell]] = defaultdict(list)
    for child, parent in hierarchy.parents.items():
        made = begin + 1000 * layer_of(parent, layout)
        rows[keys.node_key(child)].append(columns.PARENT.set(parent, made))
    for node, children in hierarchy.children.items():
        made = begin + 1000 * layer_of(node, layout)
        rows[keys.node_key(node)].append(columns.CHILDREN.set(np.array(children, np.uint64), made))
    for column, table_of in (
        (columns.cross_edges, hierarchy.cross_edges),
        (columns.atomic_cross_edges, hierarchy.atomic_cross_edges),
    ):
        for node, by_layer in table_of.items():
            made = begin + 1000 * (layer_of(node, layout) + 1)
            for layer, edges in by_layer.items():
                value = np.array(sorted(edges), np.uint64)
                rows[keys.node_key(node)].append(column(layer).set(value, made))
    for chunk, segment in counters_of(hierarchy, layout).items():
        rows[keys.counter_key(chunk)].append(columns.COUNTER.set(segment))
    for layer in range(2, layout.n_layers + 1):
        for chunk in layout.chunk_ids(layer, grid.coordinates(layer)).tolist():
            done = {"timestamp": begin + 1000 * layer}
            changes = [columns.INGEST_RESERVATION.set(done), columns.INGEST_DONE.set(done)]
            rows[keys.ingest_key(layer, chunk)].extend(changes)
    table.mutate(RowMutation(key, changes) for key, changes in rows.items())


def counters_of(hierarchy: ReferenceHierarchy, layout: IdLayout) -> dict[int, int]:
    """Highest segment of every chunk of every layer that has a node."""
    highest: dict[int, int] = defaultdict(int)
    for node in {*hierarchy.parents, *hierarchy.children}:
        chunk = int(layout.chunks(np.uint64(node)))
        highest[chunk] = max(highest[chunk], node - chunk)
    return dict(highest)
