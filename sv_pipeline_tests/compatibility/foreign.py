"""A table as PyChunkedGraph leaves it, written through kvdbclient: its ingest, merges, refusals, a cut supervoxel.

Made from the sheet of its data model, by dictionaries; nothing of the pipeline writes here.
"""

from __future__ import annotations

import sys
import types
from collections import defaultdict, namedtuple
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from kvdbclient import BigTableClient, attributes
from kvdbclient.serializers import serialize_uint64

from sv_pipeline.ids import IdLayout
from sv_pipeline_tests.reference import ReferenceHierarchy, expected_hierarchy, layer_of

__all__ = ["Foreign", "pickled_meta"]

Edge = tuple[int, int]
H, C, LOG = attributes.Hierarchy, attributes.Connectivity, attributes.OperationLogs
SUCCESS, CREATED, EXCEPTION = 0, 1, 2
MODULE = "pychunkedgraph.graph.meta"


@contextmanager
def their_classes() -> Iterator[types.ModuleType]:
    """Classes of the meta under the names of PyChunkedGraph's, as far as pickles go."""
    module = types.ModuleType(MODULE)
    graph_fields = "ID ID_PREFIX CHUNK_SIZE FANOUT LAYER_ID_BITS SPATIAL_BITS OVERWRITE ROOT_LOCK_EXPIRY ROOT_COUNTERS"
    module.GraphConfig = namedtuple("GraphConfig", graph_fields, module=MODULE)  # type: ignore[attr-defined]
    module.DataSource = namedtuple(  # type: ignore[attr-defined]
        "DataSource", "EDGES COMPONENTS WATERSHED DATA_VERSION CV_MIP", module=MODULE
    )

    class ChunkedGraphMeta:
        __module__ = MODULE
        __qualname__ = "ChunkedGraphMeta"

        def __init__(self, graph_config: Any, data_source: Any, custom_data: Any = None) -> None:
            self.graph_config, self.data_source, self.custom_data = graph_config, data_source, custom_data or {}

        def __getnewargs__(self) -> tuple[Any, Any]:
            return self.graph_config, self.data_source

        def __new__(cls, *_: Any) -> Any:
            return object.__new__(cls)

    module.ChunkedGraphMeta = ChunkedGraphMeta  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pychunkedgraph", "pychunkedgraph.graph", MODULE):
            patch.setitem(sys.modules, name, module if name == MODULE else types.ModuleType(name))
        yield module


def pickled_meta(module: Any, raw: dict[str, Any]) -> Any:
    """The meta that PyChunkedGraph makes of a dataset file."""
    graph, source = raw["graph_config"], raw["data_source"]
    graph_config = module.GraphConfig(
        raw["graph_id"],
        graph["ID_PREFIX"],
        graph["CHUNK_SIZE"],
        2,
        8,
        graph["SPATIAL_BITS"],
        True,
        timedelta(minutes=5),
        8,
    )
    data_source = module.DataSource(
        source["EDGES"].rstrip("/"), source["COMPONENTS"], source["WATERSHED"], source["DATA_VERSION"], 0
    )
    custom = {"seg": {"ocdbt": True, "sv_split_threshold": 10}, "operation_id": np.uint64(7)}
    return module.ChunkedGraphMeta(graph_config, data_source, custom)


@dataclass
class Foreign:
    """A graph in a table of theirs, and what it is."""

    client: BigTableClient
    layout: IdLayout
    active: set[Edge]
    """Smaller id first."""
    supervoxels: list[int]
    """Those that their ingest knows: a piece without any edge gets no node."""
    raw: dict[str, Any]
    """The dataset file."""
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    began: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2))
    hierarchy: ReferenceHierarchy = field(init=False)
    orphans: list[int] = field(default_factory=list)

    @property
    def root_chunk(self) -> int:
        return int(self.layout.chunk_ids(self.layout.n_layers, [0, 0, 0]))

    def root(self, supervoxel: int) -> int:
        return self.hierarchy.root(supervoxel, self.layout)

    def write(self, key: int | bytes, values: dict[Any, Any], when: datetime | None) -> None:
        row = key if isinstance(key, bytes) else serialize_uint64(np.uint64(key))
        self.client.write([self.client.mutate_row(row, values, when)])

    def write_many(self, rows: Iterable[tuple[int, dict[Any, Any], datetime | None]]) -> None:
        self.client.write([self.client.mutate_row(serialize_uint64(np.uint64(n)), v, t) for n, v, t in rows])

    # -- ingest ---------------------------------------------------------------------------------------------------

    def create(self) -> None:
        with their_classes() as module:
            self.client.create_table(pickled_meta(module, self.raw), "3.1.7")

    def ingest(self) -> None:
        """Ids in no order, roots from the counter without shards, a chunk that was built twice."""
        expected = expected_hierarchy(self.active, self.supervoxels, self.layout)
        first = min(expected.children)
        chunk = self.layout.chunks(np.uint64(first))
        built_twice = [n for n in expected.children if self.layout.chunks(np.uint64(n)) == chunk]
        self.orphans = self.client.create_node_ids(chunk, len(built_twice)).tolist()
        self.hierarchy = h = self.with_their_ids(expected)
        for home in np.unique(self.layout.chunks(np.array(self.supervoxels, np.uint64))):
            highest = max(sv for sv in self.supervoxels if sv > home and sv - int(home) < 1 << 20)
            for _ in range(2):  # a repeated task raises it again
                self.client.set_max_node_id(home, np.uint64(highest))
        self._build_in_vain(int(chunk))
        rows: list[tuple[int, dict[Any, Any], datetime | None]] = []
        for child, parent in h.parents.items():
            rows.append((child, {H.Parent: np.uint64(parent)}, self.built(parent)))
        for node, children in h.children.items():
            edges = {
                C.AtomicCrossChunkEdge[layer]: np.array(sorted(pairs), np.uint64)
                for layer, pairs in h.atomic_cross_edges.get(node, {}).items()
            }
            rows.append((node, {H.Child: np.array(self.shuffled(children), np.uint64), **edges}, self.built(node)))
        for node, by_layer in h.cross_edges.items():
            for layer, pairs in by_layer.items():
                column = C.CrossChunkEdge[layer]
                final = np.array(self.shuffled(sorted(pairs)), np.uint64)
                if layer_of(node, self.layout) > 2:
                    # Made with the node: partners are the nodes of that moment.
                    below = {(node, h.ancestor(self.some_leaf(b), 2, self.layout)) for _, b in pairs}
                    rows.append((node, {column: np.array(sorted(below), np.uint64)}, self.built(node)))
                rows.append((node, {column: final}, self.built(h.parents[node])))
        self.write_many(rows)

    def built(self, node: int) -> datetime:
        return self.began + timedelta(minutes=layer_of(node, self.layout))

    def some_leaf(self, node: int) -> int:
        return min(self.hierarchy.leaves(node))

    def shuffled(self, values: list[Any]) -> list[Any]:
        return [values[i] for i in self.random.permutation(len(values))]

    def with_their_ids(self, expected: ReferenceHierarchy) -> ReferenceHierarchy:
        """The same hierarchy, numbered by the counters in the table."""
        by_chunk: dict[int, list[int]] = defaultdict(list)
        for node in expected.children:
            by_chunk[int(self.layout.chunks(np.uint64(node)))].append(node)
        new: dict[int, int] = {}
        for chunk, nodes in by_chunk.items():
            ids = self.client.create_node_ids(np.uint64(chunk), len(nodes), root_chunk=False)
            new.update(zip(self.shuffled(sorted(nodes)), ids.tolist(), strict=True))
        return renamed(expected, new)

    def _build_in_vain(self, chunk: int) -> None:
        """The first run of a task that was run again: older nodes, which nothing points to now."""
        again = [n for n in self.hierarchy.children if int(self.layout.chunks(np.uint64(n))) == chunk]
        for node, orphan in zip(again, self.orphans, strict=True):
            children = self.hierarchy.children[node]
            early = self.built(node) - timedelta(seconds=30)
            self.write(orphan, {H.Child: np.array(children, np.uint64)}, early)
            self.write_many((child, {H.Parent: np.uint64(orphan)}, early) for child in children)

    # -- edits ----------------------------------------------------------------------------------------------------

    def log(self, status: int, when: datetime, **columns: Any) -> int:
        operation = int(self.client.create_operation_id())
        values = {getattr(LOG, name): value for name, value in columns.items()}
        self.write(operation, {LOG.UserID: "them", LOG.Status: status, LOG.OperationTimeStamp: when, **values}, when)
        return operation

    def rebuild(self, supervoxels: set[int], operation: int, when: datetime) -> set[int]:
        """New nodes for whole objects, from layer 2 up; cross edges are written a moment later. The new roots."""
        old_roots = {self.hierarchy.root(sv, self.layout) for sv in supervoxels & set(self.hierarchy.parents)}
        inside = [edge for edge in self.active if edge[0] in supervoxels]
        expected = expected_hierarchy(inside, supervoxels, self.layout)
        by_chunk: dict[int, list[int]] = defaultdict(list)
        for node in expected.children:
            by_chunk[int(self.layout.chunks(np.uint64(node)))].append(node)
        new: dict[int, int] = {}
        for chunk, nodes in by_chunk.items():
            is_root = chunk == self.root_chunk
            ids: list[int] = []
            while len(ids) < len(nodes):  # numbers of shards may be taken by roots of the ingest: those are dropped
                fresh = self.client.create_node_ids(np.uint64(chunk), len(nodes), root_chunk=is_root).tolist()
                ids += [i for i in fresh if i not in self.hierarchy.children]
            new.update(zip(nodes, ids, strict=False))
        made = renamed(expected, new)
        roots = {made.root(sv, self.layout) for sv in supervoxels}
        later = when + timedelta(milliseconds=250)
        self.write_many((child, {H.Parent: np.uint64(parent)}, when) for child, parent in made.parents.items())
        self.write_many((n, {H.Child: np.array(c, np.uint64)}, when) for n, c in made.children.items())
        self.write_many(
            (n, {C.CrossChunkEdge[layer]: np.array(sorted(pairs), np.uint64)}, later)
            for n, by_layer in made.cross_edges.items()
            for layer, pairs in by_layer.items()
        )
        old, fresh = (np.array(sorted(ids), np.uint64) for ids in (old_roots, roots))
        self.write_many((r, {H.FormerParent: old, LOG.OperationID: np.uint64(operation)}, when) for r in roots)
        self.write_many((r, {H.NewParent: fresh, LOG.OperationID: np.uint64(operation)}, when) for r in old_roots)
        self.write(operation, {LOG.RootID: fresh}, when)
        self.hierarchy.parents.update(made.parents)
        self.hierarchy.children.update(made.children)
        self.hierarchy.cross_edges.update(made.cross_edges)
        return roots

    def leaves_of_roots(self, *roots: int) -> set[int]:
        return set().union(*(self.hierarchy.leaves(root) for root in roots))

    def merge(self, a: int, b: int, when: datetime) -> int:
        """Join two objects that do not touch, by an edge of the user's."""
        operation = self.log(
            SUCCESS,
            when,
            AddedEdge=np.array([[a, b]], np.uint64),
            SourceID=np.array([a], np.uint64),
            SinkID=np.array([b], np.uint64),
            SourceCoordinate=np.array([[120, 70, 20]], np.int64),
            SinkCoordinate=np.array([[130, 70, 20]], np.int64),
        )
        leaves = self.leaves_of_roots(self.root(a), self.root(b))
        self.active.add((min(a, b), max(a, b)))
        for one, other in ((a, b), (b, a)):
            self.write(self.edits_row(one), {C.FakeEdges: np.array([[one, other]], np.uint64)}, when)
        self.rebuild(leaves, operation, when)
        return operation

    def undo(self, merge: int, a: int, b: int, when: datetime) -> int:
        operation = self.log(SUCCESS, when, UndoOperationID=np.uint64(merge))
        leaves = self.leaves_of_roots(self.root(a))
        self.active.discard((min(a, b), max(a, b)))
        self.rebuild(leaves, operation, when)
        return operation

    def edits_row(self, supervoxel: int) -> bytes:
        chunk = self.layout.chunk_ids(2, self.layout.coordinates(np.uint64(supervoxel)))
        return serialize_uint64(chunk[()], fake_edges=True)

    def split_supervoxel(self, old: int, when: datetime) -> list[int]:
        """Cut a supervoxel in two; all edges go to the first piece."""
        h, chunk = self.hierarchy, self.layout.chunks(np.uint64(old))
        operation = self.log(
            SUCCESS,
            when,
            BoundingBoxOffset=np.array([240, 240, 24], np.int64),
            RemovedEdge=np.array([[old, old]], np.uint64),
        )
        root = self.root(old)
        pieces = self.client.create_node_ids(chunk, 2).tolist()
        row = self.client.read_node(np.uint64(old))
        for piece in pieces:
            for cell in row[H.Parent]:
                self.write(piece, {H.Parent: cell.value}, cell.timestamp)
            self.write(
                piece, {H.FormerIdentity: np.array([old], np.uint64), LOG.OperationID: np.uint64(operation)}, None
            )
            h.parents[piece] = h.parents[old]
        self.write(old, {H.NewIdentity: np.array(pieces, np.uint64)}, None)
        for cell in row[H.Parent]:
            [children] = self.client.read_node(cell.value, properties=H.Child)
            value = np.array([c for c in children.value.tolist() if c != old] + pieces, np.uint64)
            self.write(int(cell.value), {H.Child: value}, children.timestamp)
        parent = h.parents[old]
        h.children[parent] = [c for c in h.children[parent] if c != old] + pieces
        partners = sorted({a if b == old else b for a, b in self.active if old in (a, b)})
        rerouted = [(pieces[0], p) for p in partners]
        self.active = {edge for edge in self.active if old not in edge}
        self.active |= {(min(edge), max(edge)) for edge in rerouted}
        affinities = {edge: np.float32(0.5) for edge in rerouted}
        affinities[pieces[0], pieces[1]] = np.float32(0.001)
        both = {pair: a for (x, y), a in affinities.items() for pair, a in (((x, y), a), ((y, x), a))}
        by_row: dict[bytes, list[Edge]] = defaultdict(list)
        for pair in both:
            by_row[self.edits_row(pair[0])].append(pair)
        for key, pairs in by_row.items():
            values = [np.array(pairs, np.uint64), np.array([both[p] for p in pairs]), np.ones(len(pairs), np.uint64)]
            # Without a time each cell gets its own clock reading: the three may be a millisecond apart.
            columns = C.SplitEdges, C.Affinity, C.Area
            for i, (column, value) in enumerate(zip(columns, values, strict=True)):
                self.write(key, {column: value}, when + timedelta(milliseconds=300 + i))
            compacted = C.CompactedSplitEdges, C.CompactedAffinity, C.CompactedArea
            # An older compaction with everything, and a newest one that lacks what is still valid.
            for moment, keep in ((300, len(pairs)), (400, 0)):
                cells = {c: v[:keep] for c, v in zip(compacted, values, strict=True)}
                self.write(key, cells, when + timedelta(milliseconds=moment))
        new_leaves = (self.leaves_of_roots(root) - {old}) | set(pieces)
        self.rebuild(new_leaves, operation, when + timedelta(seconds=1))
        return pieces


def renamed(hierarchy: ReferenceHierarchy, new: dict[int, int]) -> ReferenceHierarchy:
    def name(node: int) -> int:
        return new.get(node, node)

    def moved(edges: dict[int, dict[int, set[Edge]]]) -> dict[int, dict[int, set[Edge]]]:
        return {
            name(n): {layer: {(name(a), name(b)) for a, b in pairs} for layer, pairs in by_layer.items()}
            for n, by_layer in edges.items()
        }

    parents = {name(child): name(parent) for child, parent in hierarchy.parents.items()}
    children = {name(node): [name(c) for c in below] for node, below in hierarchy.children.items()}
    edges = moved(hierarchy.cross_edges), moved(hierarchy.atomic_cross_edges)
    return ReferenceHierarchy(hierarchy.n_layers, parents, children, *edges)
