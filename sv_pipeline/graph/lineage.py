"""Lineage of roots and supervoxels: which were replaced by which, and by which operation. Reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_ids
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.hierarchy import Time, milliseconds
from sv_pipeline.graph.queries import check_exist
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.columns import FORMER_IDS, FORMER_PARENTS, NEW_IDS, NEW_PARENTS, OPERATION_ID
from sv_pipeline.table.interface import RowView

__all__ = ["Lineage", "any_lineage", "latest_roots", "lineage", "supervoxel_lineage"]


# -- roots ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lineage:
    """Pairs of roots, or of supervoxels, where one replaced the other."""

    edges: UInt64Array
    """Pairs (old, new), shape (n, 2); distinct and sorted."""
    operations: UInt64Array
    """Operation that created the new node of each pair, shape (n,); 0 if the table does not say."""
    timestamps: npt.NDArray[np.int64]
    """Time at which it was created, in milliseconds, shape (n,); -1 if the table does not say."""


def lineage(
    graph: ChunkedGraph,
    root_ids: npt.ArrayLike,
    *,
    past: bool = True,
    future: bool = True,
    at: Time | None = None,
) -> Lineage:
    """Return the predecessors and successors of roots, with one request per generation.

    Parameters
    ----------
    past, future
        Whether to follow the lineage in this direction.
    at
        Time for which the lineage is read; default: now.
    """
    return _lineage(graph, root_ids, (FORMER_PARENTS, NEW_PARENTS), past=past, future=future, at=at)


def supervoxel_lineage(
    graph: ChunkedGraph,
    supervoxels: npt.ArrayLike,
    *,
    past: bool = True,
    future: bool = True,
    at: Time | None = None,
) -> Lineage:
    """Return what supervoxels were split or restored from, and their successors; see :func:`lineage`."""
    return _lineage(graph, supervoxels, (FORMER_IDS, NEW_IDS), past=past, future=future, at=at)


def any_lineage(graph: ChunkedGraph, ids: npt.ArrayLike) -> Lineage:
    """Return the lineage of roots or supervoxels, depending on the ids.

    Raises
    ------
    NotFoundError
        If ids are not in the graph.
    InputError
        If the ids are mixed, or of other layers.
    """
    wanted = parse_ids(ids)
    check_exist(graph, wanted)
    layers = np.unique(graph.layout.layers(wanted)).tolist()
    if layers == [1]:
        return supervoxel_lineage(graph, wanted)
    if layers not in ([], [graph.n_layers]):
        raise InputError(
            f"ids of layers {', '.join(map(str, layers))} have no common lineage.",
            remedy=f"Ask for supervoxels (layer 1), or for roots (layer {graph.n_layers}).",
        )
    return lineage(graph, wanted)


def _lineage(
    graph: ChunkedGraph,
    ids: npt.ArrayLike,
    columns_of: tuple[columns.ArrayColumn[np.uint64], columns.ArrayColumn[np.uint64]],
    *,
    past: bool,
    future: bool,
    at: Time | None,
) -> Lineage:
    until, ids = milliseconds(at), parse_ids(ids)
    before, after = columns_of
    rows: dict[int, RowView] = {}
    edges: set[tuple[int, int]] = set()
    if past:
        edges |= {(old, new) for new, old in _walk(graph, ids, before, until, rows)}
    if future:
        edges |= _walk(graph, ids, after, until, rows)
    pairs = sorted(edges)
    made = [_made_by(rows.get(new), before) for _, new in pairs]
    return Lineage(
        np.array(pairs, np.uint64).reshape(-1, 2),
        np.array([operation for operation, _ in made], np.uint64),
        np.array([timestamp for _, timestamp in made], np.int64),
    )


def latest_roots(graph: ChunkedGraph, root_ids: npt.ArrayLike, *, at: Time | None = None) -> UInt64Array:
    """Return the current successors of roots, sorted; a root that is current is its own."""
    starts = set(parse_ids(root_ids).tolist())
    edges = _walk(graph, np.array(sorted(starts), np.uint64), NEW_PARENTS, milliseconds(at), {})
    replaced = {old for old, _ in edges}
    return np.array(sorted((starts | {new for _, new in edges}) - replaced), np.uint64)


def _walk(
    graph: ChunkedGraph,
    root_ids: npt.ArrayLike,
    column: columns.ArrayColumn[np.uint64],
    until: int | None,
    rows: dict[int, RowView],
) -> set[tuple[int, int]]:
    """Follow a column repeatedly and return pairs (node, other); add the rows that were read to ``rows``."""
    wanted = [c.key for c in (FORMER_PARENTS, NEW_PARENTS, FORMER_IDS, NEW_IDS, OPERATION_ID)]
    edges: set[tuple[int, int]] = set()
    seen: set[int] = set()
    frontier = {int(root) for root in np.asarray(root_ids, np.uint64).reshape(-1)}
    while frontier:
        seen |= frontier
        unread = [root for root in frontier if root not in rows]
        found = graph.table.read_rows((keys.node_key(root) for root in unread), wanted, until=until)
        rows.update({root: found.get(keys.node_key(root), {}) for root in unread})
        reached = {(root, other) for root in frontier for other in _ids(column.newest(rows[root]))}
        edges |= reached
        frontier = {other for _, other in reached} - seen
    return edges


def _ids(found: UInt64Array | None) -> list[int]:
    return [] if found is None else found.tolist()


def _made_by(row: RowView | None, before: columns.ArrayColumn[np.uint64]) -> tuple[int, int]:
    """Return the operation that created a node, and when. Two operations mean that the newer one replaced the node."""
    operations = OPERATION_ID.history(row)
    former = before.cells(row)
    return (operations[-1][1] if operations else 0), (former[0].timestamp if former else -1)
