"""The graph that a cut is made in: supervoxels, and what remains when uncuttable edges are contracted. Cuts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sv_pipeline.errors import InputError
from sv_pipeline.ids import UInt64Array

__all__ = ["ContractedGraph", "LocalGraph", "components", "contract"]

IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """Active edges between the supervoxels of one object, inside the region around the points of a request.

    An edge may be listed in one or in both directions, or several times: the affinities of all rows of a pair add up
    to what it costs to cut it. Self loops mean nothing.

    Raises
    ------
    InputError
        If the arrays do not fit together, or an affinity is NaN or negative.
    """

    edges: UInt64Array
    """Pairs of supervoxel ids, shape (n, 2)."""
    affinities: npt.NDArray[np.floating[Any]]
    """Shape (n,), >= 0; inf = never to be cut (pieces of one supervoxel on two sides of a chunk face)."""
    areas: npt.NDArray[Any] | None = None
    """Shape (n,); carried along, of no influence on the cut."""

    def __post_init__(self) -> None:
        edges, affinities = np.asarray(self.edges), np.asarray(self.affinities)
        edges = edges.reshape(-1, 2) if edges.size == 0 else edges
        if edges.ndim != 2 or edges.shape[1] != 2 or affinities.shape != (len(edges),):
            raise InputError(
                f"a local graph has edges of shape {edges.shape} and affinities of shape {affinities.shape}.",
                remedy="Edges need the shape (n, 2), affinities (n,).",
            )
        if self.areas is not None and len(self.areas) != len(edges):
            raise InputError(f"a local graph has {len(edges)} edges, but {len(self.areas)} areas.")
        wrong = np.flatnonzero(~(affinities >= 0))
        if len(wrong):
            a, b = edges[wrong[0]].tolist()
            raise InputError(
                f"{len(wrong)} of {len(edges)} edges have no usable affinity; the first joins the supervoxels {a} and "
                f"{b} and has {affinities[wrong[0]]}.",
                remedy="Affinities are numbers >= 0, or inf; repair the edge file of the chunk of these supervoxels.",
            )
        object.__setattr__(self, "edges", edges.astype(np.uint64, copy=False))
        object.__setattr__(self, "affinities", affinities)


@dataclass(frozen=True, eq=False)
class ContractedGraph:
    """A local graph in which supervoxels joined by edges of affinity inf are one vertex, a *representative*.

    Supervoxels and vertices are numbered in the order of their ids, so the numbering does not depend on the order of
    the edges. Given points that no edge mentions are vertices of their own.
    """

    supervoxels: UInt64Array
    """All ids, sorted, shape (s,)."""
    vertex_of_supervoxel: IndexArray
    """Shape (s,)."""
    representatives: UInt64Array
    """Smallest supervoxel of each vertex, shape (v,), sorted."""
    ends: IndexArray
    """Edges of finite affinity between two different vertices, shape (e, 2)."""
    capacities: FloatArray
    """Shape (e,)."""
    rows: IndexArray
    """Row of each edge in the local graph, shape (e,)."""

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return len(self.representatives)

    @cached_property
    def component_of_vertex(self) -> IndexArray:
        """Shape (v,): connected components."""
        return components(self.n_vertices, self.ends)

    def vertices(self, ids: UInt64Array) -> IndexArray:
        """Vertex of each supervoxel; all ids must be in the graph."""
        return self.vertex_of_supervoxel[np.searchsorted(self.supervoxels, ids)]

    def members(self, vertex: int) -> UInt64Array:
        """Supervoxels of a vertex, sorted."""
        return np.asarray(self.supervoxels[self.vertex_of_supervoxel == vertex], np.uint64)


def contract(graph: LocalGraph, points: UInt64Array) -> ContractedGraph:
    """Join the ends of all uncuttable edges; ``points`` are supervoxels that become vertices with or without edges."""
    supervoxels, inverse = np.unique(np.concatenate([graph.edges.ravel(), points]), return_inverse=True)
    pairs = inverse[: graph.edges.size].reshape(-1, 2).astype(np.int64)
    uncuttable = np.isinf(graph.affinities)
    label = components(len(supervoxels), pairs[uncuttable])
    # Components are numbered by their first member, and members are sorted: the first one is the smallest id.
    _, first = np.unique(label, return_index=True)
    ends = label[pairs]
    rows = np.flatnonzero(~uncuttable & (ends[:, 0] != ends[:, 1]))
    return ContractedGraph(
        supervoxels, label, supervoxels[first], ends[rows], graph.affinities[rows].astype(np.float64), rows
    )


def components(n_vertices: int, ends: IndexArray) -> IndexArray:
    """Connected component of each vertex, numbered in the order of their first vertices; shape (n_vertices,)."""
    adjacency = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(n_vertices, n_vertices))
    _, label = connected_components(adjacency, directed=False)
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
