"""Checks of edges: edge files, cross edges recomputed from scratch, what they join. Looks at no voxel."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sv_pipeline.verify.atomic_edges import CROSS, EDITED, IN, ActiveEdges, AtomicEdges
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot
from sv_pipeline.verify.table_checks import report_where

__all__ = [
    "check_atomic_cross_edges",
    "check_connectivity",
    "check_cross_edges",
    "check_edge_files",
    "check_inf_edges",
]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ATOMIC_CELLS_LIVE = timedelta(days=365)


# -- edge files ---------------------------------------------------------------------------------------------------


def check_edge_files(outcome: Outcome, nodes: Snapshot, edges: AtomicEdges) -> None:
    """Edge files can be read, name supervoxels of the graph, and agree with those of neighbour chunks."""
    outcome.checked = int((edges.kinds != EDITED).sum())
    for file in edges.broken:
        outcome.error(file.message, file.name)
    ends = nodes.find(edges.pairs)
    unknown = (ends == NONE).any(axis=-1) | (nodes.layout.layers(edges.pairs) != 1).any(axis=-1)
    _report_edges(
        outcome,
        edges,
        unknown,
        "an edge of a supervoxel that the graph does not have: the files belong to another watershed, "
        "or the chunk was not ingested to the end.",
    )
    loop = edges.pairs[:, 0] == edges.pairs[:, 1]
    _report_edges(outcome, edges, loop, "an edge from a supervoxel to itself: write the file again.")
    stored = edges.kinds != EDITED
    first_here, second_here = (nodes.layout.chunks(edges.pairs) == edges.files[:, None]).T
    misplaced = stored & ~(first_here & (second_here == (edges.kinds == IN)))
    _report_edges(
        outcome,
        edges,
        misplaced,
        "an edge in the file of the wrong chunk, or of the wrong kind "
        "(in: both ends in the chunk; between, cross: the first only): write the file again.",
    )
    wrong_affinity = stored & (np.isinf(edges.affinities) != (edges.kinds == CROSS))
    _report_edges(
        outcome, edges, wrong_affinity, "cross edges, and only they, have affinity inf: write the file again."
    )
    _check_repeats(outcome, edges)
    _check_symmetry(outcome, edges, broken={file.name for file in edges.broken})


def _report_edges(outcome: Outcome, edges: AtomicEdges, faulty: BoolArray, message: str) -> None:
    at = np.flatnonzero(faulty)
    if len(at):
        a, b = (int(v) for v in edges.pairs[at[0]])
        outcome.error(message, f"edge {a} - {b}", len(at))


def _check_repeats(outcome: Outcome, edges: AtomicEdges) -> None:
    inside = np.flatnonzero(edges.kinds == IN)
    ordered = np.sort(edges.pairs[inside], axis=-1)
    order = np.lexsort((ordered[:, 1], ordered[:, 0]))
    again = np.zeros(len(edges), np.bool_)
    again[inside[order[1:]]] = (np.diff(ordered[order].astype(np.int64), axis=0) == 0).all(axis=-1)
    _report_edges(outcome, edges, again, "an in-chunk edge is listed more than once: write the file again.")


def _check_symmetry(outcome: Outcome, edges: AtomicEdges, broken: set[str]) -> None:
    """Each between and cross edge stands in both chunks' files, with one affinity and one area."""
    if broken:
        return
    at = np.flatnonzero((edges.kinds != IN) & (edges.kinds != EDITED))
    there, back = edges.pairs[at], edges.pairs[at][:, ::-1]
    values = (edges.kinds[at], edges.affinities[at], edges.areas[at])
    forward = _records(there, *values)
    lonely = np.zeros(len(edges), np.bool_)
    lonely[at] = ~np.isin(_records(back, *values), forward)
    _report_edges(
        outcome,
        edges,
        lonely,
        "the neighbour chunk's file does not hold the reverse of this edge with the same affinity and area: "
        "write both files again.",
    )


def _records(pairs: npt.NDArray[np.uint64], *values: npt.NDArray[np.generic]) -> npt.NDArray[np.void]:
    """One comparable value for each edge with its attributes."""
    columns = [pairs[:, 0], pairs[:, 1], *values]
    raw = [np.ascontiguousarray(column).view(np.uint8).reshape(len(pairs), -1) for column in columns]
    rows = np.ascontiguousarray(np.concatenate(raw, axis=-1))
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


# -- cross edges --------------------------------------------------------------------------------------------------


def check_cross_edges(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """``cross_edges_<l>`` of every node in use are what the active atomic edges make them.

    For a node n of layer a and l >= a: unique [n, p] over active atomic edges (sv in n, sv2) of cross layer l,
    p = highest ancestor of sv2 with layer <= a.
    """
    count = len(nodes.ids)
    for layer in range(2, nodes.layout.n_layers):
        must = _lifted(nodes, active, active.sure, layer)
        may = _lifted(nodes, active, active.joined, layer)
        stored = _stored_cross_edges(outcome, nodes, layer)
        outcome.checked += len(stored)
        for keys, message in (
            (np.setdiff1d(must, stored), f"`cross_edges_{layer}` lack the edge to {{}}: write the row again."),
            (
                np.setdiff1d(stored, may),
                f"`cross_edges_{layer}` hold an edge to {{}}, though no active edge leads there: write the row again.",
            ),
        ):
            if len(keys):
                node, partner = (int(nodes.ids[i]) for i in divmod(int(keys[0]), count))
                outcome.error(message.format(partner), node, len(keys))
    root_rows = [
        cells.owners[nodes.layers[cells.owners] == nodes.layout.n_layers] for cells in nodes.cross_edges.values()
    ]
    roots = np.unique(np.concatenate([np.empty(0, np.int64), *root_rows]))
    report_where(outcome, roots, nodes.ids, "a root has cross edges: delete them.")


def _lifted(nodes: Snapshot, active: ActiveEdges, which: BoolArray, layer: int) -> IntArray:
    """Keys (node, partner) of all ``cross_edges_<layer>`` that the chosen atomic edges make."""
    at = which & (active.layers == layer)
    first, second = active.first[at], active.second[at]
    keys = [np.empty(0, np.int64)]
    for own_layer in range(2, layer + 1):
        above = nodes.ancestors[own_layer]
        node, partner = above[first], above[second]
        own = nodes.layers[node] == own_layer
        keys.append(node[own] * len(nodes.ids) + partner[own])
    return np.unique(np.concatenate(keys))


def _stored_cross_edges(outcome: Outcome, nodes: Snapshot, layer: int) -> IntArray:
    """Keys (node, partner) of the rows of nodes in use; odd ones are noted and left out."""
    cells = nodes.cross_edges.get(layer)
    if cells is None:
        return np.empty(0, np.int64)
    used = nodes.is_reached[cells.owners] & (nodes.layers[cells.owners] < nodes.layout.n_layers)
    owners, edges = cells.owners[used], cells.edges[used]
    foreign = edges[:, 0] != nodes.ids[owners]
    report_where(
        outcome,
        foreign,
        nodes.ids[owners],
        f"`cross_edges_{layer}` start at another node than their own: write the row again.",
    )
    low = nodes.layers[owners] > layer
    report_where(outcome, low, nodes.ids[owners], f"`cross_edges_{layer}` on a node above layer {layer}: delete them.")
    partners = nodes.find(edges[:, 1])
    stale = (partners == NONE) | ~nodes.is_reached[partners]
    report_where(
        outcome,
        stale,
        nodes.ids[owners],
        f"`cross_edges_{layer}` name a partner that is not in use any more: write the row again.",
    )
    keys = owners * len(nodes.ids) + partners
    keys = keys[~foreign & ~low & ~stale]
    unique, repeats = np.unique(keys, return_counts=True)
    twice = unique[repeats > 1] // max(len(nodes.ids), 1)
    report_where(
        outcome, twice, nodes.ids, f"`cross_edges_{layer}` name a partner more than once: write the row again."
    )
    return unique


def check_atomic_cross_edges(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Layer 2 nodes of the ingest keep their outgoing atomic edges (for a year: then the table drops the cells)."""
    roots = nodes.ancestors[nodes.layout.n_layers]
    untouched = ~nodes.edited[roots[active.first]]
    old = datetime.now(UTC) - ATOMIC_CELLS_LIVE
    expired = nodes.created < int(old.timestamp() * 1000)
    count = len(nodes.ids)
    for layer in range(2, nodes.layout.n_layers):
        at = untouched & active.sure & (active.layers == layer)
        wanted = np.unique(active.first[at] * count + active.second[at])
        cells = nodes.atomic_cross_edges.get(layer)
        stored = np.empty(0, np.int64)
        if cells is not None:
            ends = nodes.find(cells.edges)
            known = (ends != NONE).all(axis=-1)
            of_owner = nodes.parent_index[ends[:, 0]] == cells.owners
            plain = nodes.is_reached[cells.owners] & known
            report_where(
                outcome,
                plain & ~of_owner & ~nodes.edited[nodes.tops[cells.owners]],
                nodes.ids[cells.owners],
                f"`atomic_cross_edges_{layer}` hold an edge of a supervoxel of another node: write the row again.",
            )
            ends = ends[plain & of_owner]
            stored = np.unique(ends[:, 0] * count + ends[:, 1])
        outcome.checked += len(stored)
        missing = np.setdiff1d(wanted, stored) // max(count, 1)
        owners = nodes.parent_index[missing]
        gone = expired[owners]
        report_where(
            outcome,
            ~gone,
            nodes.ids[owners],
            f"`atomic_cross_edges_{layer}` lack active edges: ingest the node's chunk again.",
        )
        if gone.any():
            first = int(nodes.ids[owners[gone][0]])
            outcome.warning(
                f"`atomic_cross_edges_{layer}` are gone: the table drops them after a year.", first, int(gone.sum())
            )


# -- what edges join ----------------------------------------------------------------------------------------------


def check_connectivity(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Children of one parent are connected, and roots are exactly the components of the active edges."""
    count = len(nodes.ids)
    inside = active.sure & (active.layers == 1)
    leaves = nodes.leaves
    pieces = _components(count, active.first[inside], active.second[inside])
    _report_pieces(
        outcome,
        nodes,
        leaves,
        nodes.parent_index[leaves],
        pieces,
        "its supervoxels are not connected by active edges inside the chunk: an edit or the ingest left it in pieces.",
    )
    _check_children(outcome, nodes)
    sure = active.sure
    pieces = _components(count, active.first[sure], active.second[sure])
    roots = nodes.ancestors[nodes.layout.n_layers]
    _report_pieces(
        outcome,
        nodes,
        leaves,
        roots[leaves],
        pieces,
        "a root of several objects: no active edges connect all of its supervoxels.",
    )
    torn = active.due & ~active.joined & ~active.infinite
    apart = torn & (roots[active.first] != roots[active.second])
    _report_ends(outcome, nodes, active, apart, "an active edge joins two roots: they should be one.")
    _report_ends(
        outcome,
        nodes,
        active,
        torn & ~apart,
        "an active edge whose ends meet only above the layer at which their chunks do: rebuild the parents.",
    )
    outcome.checked = len(np.unique(roots[leaves]))


def _check_children(outcome: Outcome, nodes: Snapshot) -> None:
    """Children at layer p - 1 of a parent at layer p are connected through their ``cross_edges_<p - 1>``."""
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for layer, cells in nodes.cross_edges.items():
        own = nodes.layers[cells.owners] == layer
        partner = nodes.find(cells.edges[own, 1])
        first.append(cells.owners[own][partner != NONE])
        second.append(partner[partner != NONE])
    a, b = np.concatenate(first), np.concatenate(second)
    siblings = nodes.parent_index[a] == nodes.parent_index[b]
    pieces = _components(len(nodes.ids), a[siblings], b[siblings])
    children = np.flatnonzero(nodes.is_reached & (nodes.parent_index != NONE))
    _report_pieces(
        outcome,
        nodes,
        children,
        nodes.parent_index[children],
        pieces,
        "its children are not connected by their cross edges: rebuild the parents of its chunk.",
    )


def check_inf_edges(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """No edge of affinity inf (one object by definition) joins two roots."""
    outcome.checked = int(active.infinite.sum()) // 2
    roots = nodes.ancestors[nodes.layout.n_layers]
    apart = active.infinite & (roots[active.first] != roots[active.second])
    _report_ends(
        outcome, nodes, active, apart, "an edge of affinity inf joins two roots, but cannot be cut: merge them."
    )


def _components(count: int, first: IntArray, second: IntArray) -> IntArray:
    ones = np.ones(len(first), np.bool_)
    return np.asarray(connected_components(coo_array((ones, (first, second)), shape=(count, count)), directed=False)[1])


def _report_pieces(
    outcome: Outcome, nodes: Snapshot, members: IntArray, owners: IntArray, pieces: IntArray, message: str
) -> None:
    """Note owners whose members are in more than one piece."""
    pairs = np.unique(owners * len(nodes.ids) + pieces[members]) // max(len(nodes.ids), 1)
    owner, count = np.unique(pairs, return_counts=True)
    report_where(outcome, count > 1, nodes.ids[owner], message)


def _report_ends(outcome: Outcome, nodes: Snapshot, active: ActiveEdges, faulty: BoolArray, message: str) -> None:
    at = np.flatnonzero(faulty & (active.first < active.second))
    if len(at):
        a, b = (int(nodes.ids[ends[at[0]]]) for ends in (active.first, active.second))
        outcome.error(message, f"edge {a} - {b}", len(at))
