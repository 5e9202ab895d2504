"""A plain model of an edited graph: networkx over active edges, the hierarchy straight from the definitions."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx
import numpy as np

from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.queries import roots
from sv_pipeline.verify.report import VerifyReport
from sv_pipeline.verify.run import verify
from sv_pipeline_tests.graph.worlds import World
from sv_pipeline_tests.reference import ReferenceHierarchy, cross_layer, expected_hierarchy

ROW_CHECKS = (
    "meta",
    "ids",
    "hierarchy",
    "skip_connections",
    "edge_files",
    "cross_edges",
    "connectivity",
    "inf_edges",
    "operations",
)
Pair = tuple[int, int]


def pair(a: int, b: int) -> Pair:
    return (int(min(a, b)), int(max(a, b)))


@dataclass
class Model:
    """All atomic edges, and which of them are active."""

    world: World
    edges: set[Pair] = field(default_factory=set)
    active: set[Pair] = field(default_factory=set)

    @classmethod
    def of(cls, world: World) -> Model:
        model = cls(world)
        model.edges = {pair(a, b) for a, b, _ in world.edges}
        model.active = {pair(a, b) for a, b in world.active}
        model.settle()
        return model

    @property
    def hierarchy(self) -> ReferenceHierarchy:
        return expected_hierarchy(self.active, self.world.supervoxels, self.world.layout)

    def settle(self) -> None:
        """An edge is active iff its ends share the ancestor one layer above its cross layer."""
        hierarchy, layout = self.hierarchy, self.world.layout

        def joined(edge: Pair) -> bool:
            layer = cross_layer(*edge, layout) + 1
            return hierarchy.ancestor(edge[0], layer, layout) == hierarchy.ancestor(edge[1], layer, layout)

        self.active = {edge for edge in self.edges if joined(edge)}

    @property
    def components(self) -> set[frozenset[int]]:
        graph = networkx.Graph()
        graph.add_nodes_from(self.world.supervoxels.tolist())
        graph.add_edges_from(self.active)
        return {frozenset(piece) for piece in networkx.connected_components(graph)}

    def component_of(self, supervoxel: int) -> frozenset[int]:
        return next(piece for piece in self.components if supervoxel in piece)

    def merge(self, source: int, sink: int) -> None:
        """With a region that is the whole volume: all edges between the two objects, or one of the user."""
        one, other = self.component_of(source), self.component_of(sink)
        between = {e for e in self.edges if (e[0] in one) != (e[1] in one) and (e[0] in other) != (e[1] in other)}
        if not between:
            self.edges.add(pair(source, sink))
            between = {pair(source, sink)}
        self.active |= between
        self.settle()

    def remove(self, edges: np.ndarray) -> None:
        self.active -= {pair(a, b) for a, b in edges.tolist()}
        self.settle()


def stored_components(graph: ChunkedGraph, world: World, at: int | None = None) -> set[frozenset[int]]:
    """The partition of the supervoxels by their roots."""
    found: dict[int, set[int]] = {}
    for supervoxel, root in zip(
        world.supervoxels.tolist(), roots(graph, world.supervoxels, at=at).tolist(), strict=True
    ):
        found.setdefault(root, set()).add(supervoxel)
    return {frozenset(piece) for piece in found.values()}


def verify_rows(graph: ChunkedGraph) -> VerifyReport:
    """Proof of the rows; these graphs have no voxels."""
    report = verify(
        graph.table,
        graph.fork,
        checks=ROW_CHECKS,
    )
    assert report.ok, report.summary()
    return report
