"""The graph that is cut: supervoxels, and its contraction by uncuttable edges. Cuts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import components
from sv_pipeline.errors import InputError
from sv_pipeline.ids import UInt64Array

__all__ = ["ContractedGraph", "LocalGraph", "contract"]

IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """Active edges between the supervoxels of one object, inside the region around the points of a request.

    An edge may be listed in one or both directions, or several times. The cost of cutting a pair is the sum of the
    affinities of all its rows. Self loops have no effect.
    Raises
    ------
    InputError
        If the lengths of the arrays differ, or an affinity is NaN or negative.
    """

    edges: UInt64Array
    """Pairs of supervoxel ids, shape (n, 2)."""
    affinities: npt.NDArray[np.floating[Any]]
    """Affinities, shape (n,), >= 0; inf marks an edge that must never be cut (pieces of one label in two chunks)."""
    areas: npt.NDArray[Any] | None = None
    """Contact areas, shape (n,); they do not influence the cut."""

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
                remedy="Affinities must be >= 0, or inf; repair the edge file of the chunk of these supervoxels.",
            )
        object.__setattr__(self, "edges", edges.astype(np.uint64, copy=False))
        object.__setattr__(self, "affinities", affinities)


@dataclass(frozen=True, eq=False)
class ContractedGraph:
    """A local graph in which supervoxels joined by edges of affinity inf are one vertex, a *representative*.

    Supervoxels and vertices are numbered in the order of their ids, so the numbering does not depend on the order of
    the edges. Given points without edges are vertices too.
    """

    supervoxels: UInt64Array
    """All supervoxel ids, sorted, shape (s,)."""
    vertex_of_supervoxel: IndexArray
    """Vertex of each supervoxel, shape (s,)."""
    representatives: UInt64Array
    """Smallest supervoxel id of each vertex, shape (v,), sorted."""
    ends: IndexArray
    """Edges of finite affinity between two different vertices, shape (e, 2)."""
    capacities: FloatArray
    """Affinity of each edge, shape (e,)."""
    rows: IndexArray
    """Row of each edge in the local graph, shape (e,)."""

    @property
    def n_vertices(self) -> int:
        """Number of vertices."""
        return len(self.representatives)

    @cached_property
    def component_of_vertex(self) -> IndexArray:
        """Connected component of each vertex, shape (v,)."""
        return components(self.n_vertices, self.ends)

    def vertices(self, ids: UInt64Array) -> IndexArray:
        """Return the vertex of each supervoxel; all ids must be in the graph."""
        return self.vertex_of_supervoxel[np.searchsorted(self.supervoxels, ids)]

    def members(self, vertex: int) -> UInt64Array:
        """Return the supervoxels of a vertex, sorted."""
        return np.asarray(self.supervoxels[self.vertex_of_supervoxel == vertex], np.uint64)


def contract(graph: LocalGraph, points: UInt64Array) -> ContractedGraph:
    """Contract all uncuttable edges; the supervoxels ``points`` become vertices even without edges."""
    supervoxels, inverse = np.unique(np.concatenate([graph.edges.ravel(), points]), return_inverse=True)
    pairs = inverse[: graph.edges.size].reshape(-1, 2).astype(np.int64)
    uncuttable = np.isinf(graph.affinities)
    label = components(len(supervoxels), pairs[uncuttable])
    # Components are numbered by their first member, and members are sorted, so the first member is the smallest id.
    _, first = np.unique(label, return_index=True)
    ends = label[pairs]
    rows = np.flatnonzero(~uncuttable & (ends[:, 0] != ends[:, 1]))
    return ContractedGraph(
        supervoxels, label, supervoxels[first], ends[rows], graph.affinities[rows].astype(np.float64), rows
    )
