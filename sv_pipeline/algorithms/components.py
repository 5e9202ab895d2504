"""Connected components of edge lists, and look-up in sorted ids. Knows no layer and no chunk."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array

__all__ = ["component_labels", "components", "distinct_rows", "find", "row_starts", "same_rows", "unique_rows"]

IntArray = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)

FEW_EDGES = 4_000
"""Number of edges up to which components are found here; SciPy takes half of the time for many, but longer to begin."""


def find(sorted_ids: npt.NDArray[np.uint64], wanted: npt.ArrayLike) -> IntArray:
    """Return the index of each wanted id in a sorted array without duplicates, or -1; same shape as ``wanted``."""
    ids = np.asarray(wanted, np.uint64)
    if not len(sorted_ids):
        return np.full(ids.shape, -1, np.int64)
    index = sorted_ids.searchsorted(ids)
    return np.where(sorted_ids.take(index, mode="clip") == ids, index, -1)


def component_labels(ids: UInt64Array, edges: npt.ArrayLike) -> IntArray:
    """Find the connected components of a graph.

    Parameters
    ----------
    ids
        Vertices, sorted and without duplicates, shape (n,).
    edges
        Pairs of vertices, shape (m, 2), in any direction; duplicates and loops have no effect.

    Returns
    -------
    IntArray
        Component of each vertex, shape (n,). Components are numbered from 0 in the order of their smallest vertex.

    Raises
    ------
    ValueError
        If an end of an edge is not a vertex.
    """
    ends = find(ids, np.asarray(edges, np.uint64).reshape(-1, 2))
    if (ends < 0).any():
        raise ValueError("an edge names an id that is not among the vertices")
    return components(len(ids), ends)


def components(n_vertices: int, ends: IntArray) -> IntArray:
    """Return the connected component of each vertex, numbered by their first vertices; shape (n_vertices,).

    ``ends`` are undirected edges between vertices 0 .. n_vertices - 1, shape (m, 2).
    """
    return _of_few(n_vertices, ends) if len(ends) <= FEW_EDGES else _of_many(n_vertices, ends)


def _of_many(n_vertices: int, ends: IntArray) -> IntArray:
    from scipy import sparse  # takes a while to load, and small graphs do without

    matrix = sparse.coo_array((np.ones(len(ends), np.bool_), tuple(ends.T)), shape=(n_vertices, n_vertices))
    _, labels = sparse.csgraph.connected_components(matrix, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], np.int64)


def _of_few(n_vertices: int, ends: IntArray) -> IntArray:
    """Find the components of a graph like those of an edit.

    SciPy takes three times as long for a few hundred edges, nearly all of it to check and copy its matrix.
    """
    numbers = np.arange(n_vertices)
    first, (one, other) = numbers.copy(), ends.T
    while True:
        # Each vertex leads to the first one of its part. Parts that an edge joins are joined; every second time at
        # the latest, all parts of a component that is not complete have been joined with another one.
        ones, others = first[one], first[other]
        apart = ones != others
        if not apart.any():
            break
        one, other, ones, others = one[apart], other[apart], ones[apart], others[apart]
        np.minimum.at(first, np.maximum(ones, others), np.minimum(ones, others))
        while not np.array_equal(above := first[first], first):
            first = above
    return np.asarray((np.cumsum(first == numbers) - 1)[first], np.int64)


def unique_rows(*columns: npt.NDArray[np.generic]) -> IntArray:
    """Return the indices of the distinct rows of a table given as columns of shape (n,), sorted by row.

    Rows are sorted by the first column, then the second, and so on. Of equal rows the first one is returned.
    """
    order = np.lexsort(columns[::-1])
    return np.asarray(order[row_starts(*(column[order] for column in columns))], np.int64)


def row_starts(*columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return which rows of a sorted table, given as columns of shape (n,), differ from the row before them."""
    starts = np.zeros(len(columns[0]), np.bool_)
    starts[:1] = True
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    return starts


def distinct_rows(rows: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return the distinct rows of an array of shape (n, k), sorted, as ``np.unique(rows, axis=0)`` does, but faster."""
    return rows[unique_rows(*rows.T)]


def same_rows(rows: UInt64Array, among: UInt64Array) -> npt.NDArray[np.bool_]:
    """Return which rows of an array of pairs, shape (n, 2), are also in another one, as a mask of shape (n,)."""
    if not len(rows) or not len(among):
        return np.zeros(len(rows), np.bool_)
    first, second = np.concatenate([among, rows]).T
    order = np.lexsort((second, first))  # of equal pairs, those of the other array come first, because it is stable
    begins = row_starts(first[order], second[order])
    leads = order[begins] < len(among)
    listed = np.empty(len(order), np.bool_)
    listed[order] = leads[np.cumsum(begins) - 1]
    return listed[len(among) :]
