"""Queries of users about nodes: roots, parents, children, leaves, times, supervoxels at points. Reads; never writes.

Every query takes many ids at once and sends one request per layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_ids, parse_voxels
from sv_pipeline.errors import InputError, NotFoundError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import (
    Time,
    find_ancestors,
    milliseconds,
    read_children,
    read_parents,
    take,
)
from sv_pipeline.grid import Box
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.moments import as_date
from sv_pipeline.table import keys
from sv_pipeline.table.columns import CHILDREN, META_KEY, PARENT, Ragged, newest_timestamps
from sv_pipeline.wording import counted

__all__ = [
    "check_exist",
    "children",
    "chunks_touch",
    "leaves",
    "node_timestamps",
    "parents",
    "roots",
    "supervoxels_at",
]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

NAMED_IN_ERRORS = 5


# -- up ---------------------------------------------------------------------------------------------------------------


def roots(
    graph: ChunkedGraph,
    ids: npt.ArrayLike,
    *,
    at: Time | None = None,
    stop_layer: int | None = None,
    missing_ok: bool = False,
) -> UInt64Array:
    """Return the root of each node, shape (n,).

    Parameters
    ----------
    ids
        Supervoxels or other nodes, shape (n,); duplicates cost nothing.
    at
        Time for which the roots are read; default: now.
    stop_layer
        Return the highest ancestor whose layer is at most this, instead of the root.
    missing_ok
        Return 0 for ids that are not in the graph (at that time) instead of raising an error.

    Raises
    ------
    NotFoundError
        If ids are not in the graph and ``missing_ok`` is False; the message names some of them.
    """
    wanted = _flat(ids)
    top = graph.n_layers if stop_layer is None else min(stop_layer, graph.n_layers)
    until = milliseconds(at)
    found = find_ancestors(graph, wanted, top, until=until)
    # While higher layers are still being built, a chain may end below ``stop_layer``, but not at the node itself.
    missing = found.ends & (np.full(len(wanted), top == graph.n_layers) | (found.ids == wanted))
    unread = np.flatnonzero(graph.layout.layers(wanted) >= top)
    if len(unread):
        missing[unread] = ~_exist(graph, wanted[unread], until)
    if missing.any() and not missing_ok:
        raise _not_found(graph, wanted[missing], at)
    return np.where(missing, np.uint64(0), found.ids)


def check_exist(graph: ChunkedGraph, ids: npt.ArrayLike) -> None:
    """Check that ids are nodes that are, or once were, in a graph.

    Raises
    ------
    NotFoundError
        If some are not; the message names some of them.
    """
    wanted = _flat(ids)
    missing = ~_exist(graph, wanted, None)
    if missing.any():
        raise _not_found(graph, wanted[missing], None)


def _exist(graph: ChunkedGraph, ids: UInt64Array, until: int | None) -> BoolArray:
    row_keys = keys.node_keys(ids)
    rows = graph.table.read_rows(row_keys, [CHILDREN.key, PARENT.key], until=until, newest_only=True)
    return np.array([key in rows for key in row_keys], np.bool_)


def parents(graph: ChunkedGraph, ids: npt.ArrayLike, *, at: Time | None = None) -> UInt64Array:
    """Return the parent of each node, shape (n,); 0 for roots, and for ids that are not in the graph."""
    return read_parents(graph, _flat(ids), until=milliseconds(at))


# -- down -------------------------------------------------------------------------------------------------------------


def children(graph: ChunkedGraph, ids: npt.ArrayLike) -> Ragged:
    """Return the children of each node; supervoxels, and ids that are not in the graph, have none."""
    return read_children(graph, _flat(ids))


def leaves(graph: ChunkedGraph, ids: npt.ArrayLike, *, box: Box | None = None, stop_layer: int = 1) -> Ragged:
    """Return the supervoxels below each node.

    Parameters
    ----------
    ids
        Nodes, shape (n,).
    box
        Return only supervoxels in chunks that touch this box of voxels.
    stop_layer
        Layer of the descendants to return; 2 gives layer 2 nodes.

    Returns
    -------
    Ragged
        Leaves of each node, sorted; a supervoxel is its own leaf.
    """
    nodes = _flat(ids)
    owners, current = np.arange(len(nodes)), nodes
    found_owners, found = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    while len(current):
        if box is not None:
            inside = chunks_touch(graph, current, box)
            owners, current = owners[inside], current[inside]
        at_end = graph.layout.layers(current) <= stop_layer
        found_owners.append(owners[at_end])
        found.append(current[at_end])
        owners, current = owners[~at_end], current[~at_end]
        if len(current):
            distinct, inverse = np.unique(current, return_inverse=True)
            below = take(read_children(graph, distinct), inverse)
            owners, current = np.repeat(owners, below.lengths), below.values
    owner, leaf = np.concatenate(found_owners), np.concatenate(found)
    order = np.lexsort((leaf, owner))
    offsets = np.searchsorted(owner[order], np.arange(len(nodes) + 1)).astype(np.int64)
    return Ragged(leaf[order], offsets)


def chunks_touch(graph: ChunkedGraph, ids: UInt64Array, box: Box) -> BoolArray:
    """Whether the chunk of each node, in its own layer, and a box of voxels overlap; shape (n,)."""
    scale = np.maximum(graph.layout.layers(ids) - 2, 0)[:, None]
    size = np.asarray(graph.grid.chunk_size, np.int64) << scale
    start = np.asarray(graph.grid.bounds.start) + graph.layout.coordinates(ids) * size
    return np.asarray(((start < box.stop) & (start + size > box.start)).all(axis=1), np.bool_)


# -- time -------------------------------------------------------------------------------------------------------------


def node_timestamps(
    graph: ChunkedGraph, ids: npt.ArrayLike, *, at: Time | None = None, missing_ok: bool = False
) -> IntArray:
    """Return when each node of layer 2 or above was created, in milliseconds, shape (n,).

    Raises
    ------
    NotFoundError
        If ids are not in the graph and ``missing_ok`` is False; otherwise these ids get -1.
    """
    wanted = _flat(ids)
    row_keys = keys.node_keys(wanted)
    rows = graph.table.read_rows(row_keys, [CHILDREN.key], until=milliseconds(at), newest_only=True)
    times = newest_timestamps(CHILDREN, rows, row_keys)
    if (times < 0).any() and not missing_ok:
        raise _not_found(graph, wanted[times < 0], at)
    return times


# -- space ------------------------------------------------------------------------------------------------------------


def supervoxels_at(graph: ChunkedGraph, volume: Any, coordinates: npt.ArrayLike) -> UInt64Array:
    """Return the supervoxel at each voxel, shape (n,); 0 for background.

    Parameters
    ----------
    volume
        The segmentation, a TensorStore with absolute coordinates (x, y, z).
    coordinates
        Voxels, shape (n, 3).

    Raises
    ------
    InputError
        If a point is outside the volume.
    """
    points = parse_voxels(coordinates)
    bounds = graph.grid.bounds
    outside = ((points < bounds.start) | (points >= np.asarray(bounds.stop))).any(axis=1)
    if outside.any():
        raise InputError(
            f"point {tuple(points[outside][0].tolist())} is outside the volume {bounds}.",
            remedy="Coordinates are x, y, z in voxels of the base mip.",
        )
    if not len(points):
        return np.zeros(0, np.uint64)
    x, y, z = points.T
    return np.asarray(volume.vindex[x, y, z].read().result(), np.uint64)


def _flat(ids: npt.ArrayLike) -> UInt64Array:
    return parse_ids(ids.reshape(-1) if isinstance(ids, np.ndarray) else ids)


def _not_found(graph: ChunkedGraph, ids: UInt64Array, at: Time | None) -> NotFoundError:
    distinct = np.unique(ids)
    named = ", ".join(_describe(graph.layout, node) for node in distinct[:NAMED_IN_ERRORS])
    more = f" and {len(distinct) - NAMED_IN_ERRORS} more" if len(distinct) > NAMED_IN_ERRORS else ""
    moment = milliseconds(at)
    if moment is not None:
        return _not_found_then(graph, distinct, moment, f"{named}{more}")
    return NotFoundError(
        f"{_ids(distinct, 'is', 'are')} not in graph {graph.graph_id!r}: {named}{more}.",
        remedy="Check that the ids belong to this graph, and that its ingest is complete.",
    )


def _not_found_then(graph: ChunkedGraph, ids: UInt64Array, moment: int, named: str) -> NotFoundError:
    """Return the error about ids that are not in a graph at a given time; it tells since when they are."""
    row_keys = keys.node_keys(ids)
    rows = graph.table.read_rows([*row_keys, keys.META], [CHILDREN.key, PARENT.key, META_KEY])
    since = {key: min(cell.timestamp for cells in row.values() for cell in cells) for key, row in rows.items()}
    first = min(since.values(), default=moment)
    if first > moment:
        return NotFoundError(
            f"graph {graph.graph_id!r} is not as old as {as_date(moment)}: it was created on {as_date(first)}.",
            remedy="Ask for a later moment, or leave it out to ask about now.",
        )
    later = max((since[key] for key in row_keys if key in since), default=moment)
    if later > moment:
        return NotFoundError(
            f"{_ids(ids, 'was', 'were')} not in graph {graph.graph_id!r} on {as_date(moment)}: {named}. "
            f"All are there since {as_date(later)}.",
            remedy="Ask for a moment from then on, or look up the ids that existed at the moment you mean.",
        )
    return NotFoundError(
        f"{_ids(ids, 'is', 'are')} not in graph {graph.graph_id!r} on {as_date(moment)}: {named}.",
        remedy="Check that the ids belong to this graph, and that its ingest was complete by then.",
    )


def _ids(ids: UInt64Array, one: str, many: str) -> str:
    return f"{counted(len(ids), 'id')} {one if len(ids) == 1 else many}"


def _describe(layout: IdLayout, node: np.uint64) -> str:
    if node == 0:
        return "0 (background)"
    return f"{node} (layer {int(layout.layers(node))})"
