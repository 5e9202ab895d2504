"""Connected components of edge lists, and look-up in sorted ids. Knows no layer and no chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array

__all__ = ["component_labels", "find", "unique_rows"]

IntArray = npt.NDArray[np.int64]


def find(sorted_ids: npt.NDArray[np.uint64], wanted: npt.ArrayLike) -> IntArray:
    """Return the index of each wanted id in a sorted array without duplicates, or -1; same shape as ``wanted``."""
    ids = np.asarray(wanted, np.uint64)
    if not len(sorted_ids):
        return np.full(ids.shape, -1, np.int64)
    index = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return np.where(sorted_ids[index] == ids, index, -1).astype(np.int64)


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
    from scipy import sparse  # takes a while to load, and whoever only reads a graph finds no components

    ends = find(ids, np.asarray(edges, np.uint64).reshape(-1, 2))
    if (ends < 0).any():
        raise ValueError("an edge names an id that is not among the vertices")
    matrix = sparse.coo_array(
        (np.ones(len(ends), np.bool_), (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids))
    ).tocsr()
    _, labels = sparse.csgraph.connected_components(matrix, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], np.int64)


def unique_rows(*columns: npt.NDArray[np.generic]) -> IntArray:
    """Return the indices of the distinct rows of a table given as columns of shape (n,), sorted by row.

    Rows are sorted by the first column, then the second, and so on. Of equal rows the first one is returned.
    """
    order = np.lexsort(columns[::-1])
    if len(order) < 2:
        return np.asarray(order, np.int64)
    differs = np.zeros(len(order), np.bool_)
    differs[0] = True
    for column in columns:
        values = column[order]
        differs[1:] |= values[1:] != values[:-1]
    return np.asarray(order[differs], np.int64)
