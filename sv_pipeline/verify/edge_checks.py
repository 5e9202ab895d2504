"""Checks of what follows from the edges: cross edges (recomputed from scratch), skip connections and roots.

This module reads no file.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import components
from sv_pipeline.verify.atomic_edges import ActiveEdges
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot
from sv_pipeline.verify.table_checks import report_where

__all__ = [
    "SCATTERED_ROOT",
    "check_atomic_cross_edges",
    "check_connectivity",
    "check_cross_edges",
    "check_ends",
    "check_inf_edges",
    "check_pieces_in_chunks",
    "check_skip_connections",
    "lifted",
    "raised",
    "scattered_children",
    "scattered_leaves",
    "stored_cross_edges",
]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SCATTERED_LEAVES = (
    "its supervoxels are not connected by active edges inside the chunk: an edit or the ingest left it in pieces."
)
SCATTERED_CHILDREN = "its children are not connected by active edges between them: rebuild the parents of its chunk."
SCATTERED_ROOT = "a root that holds several objects: active edges do not connect all of its supervoxels."

ATOMIC_CELLS_LIVE = timedelta(days=365)
"""Age at which the table drops cells of atomic cross edges."""


# -- cross edges --------------------------------------------------------------------------------------------------


def check_cross_edges(
    outcome: Outcome, nodes: Snapshot, active: ActiveEdges, complete: BoolArray | None = None
) -> None:
    """Check that ``cross_edges_<l>`` of every node in use are those that follow from the active atomic edges.

    For a node n at layer a and l >= a, they are the unique pairs [n, p] over all active atomic edges (sv, sv2) of cross
    layer l with sv in n, where p is the highest ancestor of sv2 with layer <= a.

    Parameters
    ----------
    complete
        Flag for each node, shape (n,), that says whether all its atomic edges are known; None = they are known for all
        nodes. Only nodes whose edges are all known are checked for superfluous cross edges.
    """
    count = len(nodes.ids)
    mine = outcome.mine(nodes.ids)
    for layer in range(2, nodes.layout.n_layers):
        must, may, stored = (
            keys[mine[keys // max(count, 1)]]
            for keys in (
                lifted(nodes, active, active.sure, layer),
                lifted(nodes, active, active.joined, layer),
                stored_cross_edges(outcome, nodes, layer),
            )
        )
        outcome.checked += len(stored)
        judged = stored if complete is None else stored[complete[stored // max(count, 1)]]
        missing, extra = np.setdiff1d(must, stored), np.setdiff1d(judged, may)
        high, meant = raised(nodes, np.setdiff1d(stored, may), may)
        foreign = np.intersect1d(extra, high)
        if len(foreign):
            outcome.foreign(
                f"`cross_edges_{layer}` lead to an ancestor of the partner: they can be read, and 'sv-pipeline mend' "
                "corrects them.",
                int(nodes.ids[foreign[0] // count]),
                len(foreign),
                order=(int(nodes.ids[foreign[0] // count]),),
            )
        for keys, message in (
            (np.setdiff1d(missing, meant), f"`cross_edges_{layer}` lack the edge to {{}}: write the row again."),
            (
                np.setdiff1d(extra, high),
                f"`cross_edges_{layer}` hold an edge to {{}}, though no active edge leads there: write the row again.",
            ),
        ):
            if len(keys):
                node, partner = (int(nodes.ids[i]) for i in divmod(int(keys[0]), count))
                outcome.error(message.format(partner), node, len(keys), kind=message, order=(node, partner))
    root_rows = [
        cells.owners[nodes.layers[cells.owners] == nodes.layout.n_layers] for cells in nodes.cross_edges.values()
    ]
    roots = np.unique(np.concatenate([np.empty(0, np.int64), *root_rows]))
    report_where(outcome, roots, nodes.ids, "a root has cross edges: delete them.")


def lifted(nodes: Snapshot, active: ActiveEdges, which: BoolArray, layer: int) -> IntArray:
    """All ``cross_edges_<layer>`` that follow from the chosen atomic edges, as keys node * count + partner."""
    at = which & (active.layers == layer)
    first, second = active.first[at], active.second[at]
    keys = [np.empty(0, np.int64)]
    for own_layer in range(2, layer + 1):
        above = nodes.ancestors[own_layer]
        node, partner = above[first], above[second]
        own = nodes.layers[node] == own_layer
        keys.append(node[own] * len(nodes.ids) + partner[own])
    return np.unique(np.concatenate(keys))


def raised(nodes: Snapshot, wrong: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """Find cross edges that lead to an ancestor of their partner instead of the partner itself.

    Parameters
    ----------
    wrong, right
        Superfluous and missing cross edges, as keys node * count + partner of indices into the snapshot.

    Returns
    -------
    tuple[IntArray, IntArray]
        Keys in ``wrong``, of (node, ancestor of partner), and their counterparts in ``right``, of (node, partner).
    """
    count = max(len(nodes.ids), 1)
    node, partner = right // count, right % count
    found, of = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for layer in range(3, nodes.layout.n_layers + 1):
        above = nodes.ancestors[layer][partner]
        keys = node * count + above
        at = (above != NONE) & (above != partner) & np.isin(keys, wrong)
        found.append(keys[at])
        of.append(right[at])
    pairs = np.unique(np.stack([np.concatenate(found), np.concatenate(of)], axis=-1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def stored_cross_edges(outcome: Outcome, nodes: Snapshot, layer: int) -> IntArray:
    """Stored cross edges of nodes in use, as keys node * count + partner; faulty ones are reported and left out."""
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
    """Check that layer 2 nodes of the ingest have their outgoing atomic edges, which the table drops after a year."""
    roots = nodes.ancestors[nodes.layout.n_layers]
    untouched = ~nodes.edited[roots[active.first]]
    old = datetime.now(UTC) - ATOMIC_CELLS_LIVE
    expired = nodes.created < int(old.timestamp() * 1000)
    count, mine = len(nodes.ids), outcome.mine(nodes.ids)
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
        outcome.checked += int(mine[stored // max(count, 1)].sum())
        missing = np.setdiff1d(wanted, stored) // max(count, 1)
        missing = missing[mine[missing]]
        owners = nodes.parent_index[missing]
        gone = expired[owners]
        report_where(
            outcome,
            ~gone,
            nodes.ids[owners],
            f"`atomic_cross_edges_{layer}` lack active edges: ingest the node's chunk again.",
        )
        if gone.any():
            first = int(nodes.ids[owners[gone]].min())
            message = f"`atomic_cross_edges_{layer}` are gone: the table drops them after a year."
            outcome.warning(message, first, int(gone.sum()), order=(first,))


# -- skip connections ---------------------------------------------------------------------------------------------


def check_skip_connections(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Check the layer of each node's parent.

    A node with siblings is exactly one layer below its parent. A node without siblings has its parent at the lowest
    layer above it at which it has cross edges, or else at the root layer (PyChunkedGraph's skip connections).
    """
    n_layers = nodes.layout.n_layers
    next_layer = np.full(len(nodes.ids), n_layers)
    gaps = np.zeros(len(nodes.ids), np.bool_)
    for layer in range(n_layers - 1, 1, -1):
        ends = np.unique(active.first[active.sure & (active.layers == layer)])
        for own_layer in range(2, layer):
            node = nodes.ancestors[own_layer][ends]
            next_layer[node[nodes.layers[node] == own_layer]] = layer
        highest = nodes.ancestors[layer][ends]
        gaps[highest[nodes.layers[highest] != layer]] = True
    report_where(
        outcome,
        gaps,
        nodes.ids,
        "it has active edges that cross at a layer at which it has no ancestor: rebuild the parents above it.",
    )
    child = np.flatnonzero(nodes.is_reached & (nodes.parent_index != NONE) & nodes.is_own)
    outcome.checked = len(child)
    parent = nodes.parent_index[child]
    # The hierarchy is sound here, so a parent lists all nodes whose parent it is, also those of other parts.
    siblings = np.diff(nodes.child_starts)[parent]
    low, high = nodes.layers[child], nodes.layers[parent]
    report_where(
        outcome,
        (siblings > 1) & (low != high - 1),
        nodes.ids[child],
        "it has siblings, so its parent must be exactly one layer above it: rebuild the parents of its chunk.",
    )
    report_where(
        outcome,
        (siblings == 1) & (high != next_layer[child]) & ~gaps[child],
        nodes.ids[child],
        "it has no siblings, so its parent must be at the lowest layer above it at which it has cross edges, or a "
        "root: rebuild the parents of its chunk.",
    )


# -- what edges join ----------------------------------------------------------------------------------------------


def check_connectivity(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Check that the children of each parent are connected, and that roots are the components of the active edges.

    Of a part of the graph, only its own nodes are checked; `pieces` tells which roots must be checked as a whole.
    """
    leaves = nodes.leaves
    check_pieces_in_chunks(outcome, nodes, active, leaves)
    report_where(outcome, scattered_children(nodes, active), nodes.ids, SCATTERED_CHILDREN)
    roots = nodes.ancestors[nodes.layout.n_layers]
    if nodes.beside is None:
        sure = active.sure
        pieces = components(len(nodes.ids), np.stack([active.first[sure], active.second[sure]], axis=1))
        report_where(outcome, _in_pieces(nodes, leaves, roots[leaves], pieces), nodes.ids, SCATTERED_ROOT)
    check_ends(outcome, nodes, active)
    in_use = (nodes.layers == nodes.layout.n_layers) & nodes.is_reached & ~nodes.retired
    outcome.checked = int((in_use & nodes.is_own).sum())


def check_pieces_in_chunks(outcome: Outcome, nodes: Snapshot, active: ActiveEdges, leaves: IntArray) -> None:
    """Check that the supervoxels of each layer 2 node are connected inside the chunk.

    Parameters
    ----------
    leaves
        Indices of supervoxels, shape (n,); for each layer 2 node, either all of its supervoxels or none.
    """
    report_where(outcome, scattered_leaves(nodes, active, leaves), nodes.ids, SCATTERED_LEAVES)


def check_ends(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Check that both ends of every active edge have the same root, and their lowest common ancestor at its layer."""
    roots = nodes.ancestors[nodes.layout.n_layers]
    torn = active.due & ~active.joined & ~active.infinite
    apart = torn & (roots[active.first] != roots[active.second])
    _report_ends(outcome, nodes, active, apart, "an active edge joins two roots: they should be one.")
    _report_ends(
        outcome,
        nodes,
        active,
        torn & ~apart,
        "the ends of an active edge have a common ancestor only above the layer at which their chunks meet: "
        "rebuild the parents.",
    )


def scattered_leaves(nodes: Snapshot, active: ActiveEdges, leaves: IntArray) -> IntArray:
    """Layer 2 nodes whose supervoxels are not connected inside the chunk."""
    inside = active.sure & (active.layers == 1)
    pieces = components(len(nodes.ids), np.stack([active.first[inside], active.second[inside]], axis=1))
    return _in_pieces(nodes, leaves, nodes.parent_index[leaves], pieces)


def scattered_children(nodes: Snapshot, active: ActiveEdges) -> IntArray:
    """Parents at a layer p whose children at layer p - 1 are not connected by active edges of cross layer p - 1."""
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for layer in range(2, nodes.layout.n_layers):
        at = active.sure & (active.layers == layer)
        first.append(nodes.ancestors[layer][active.first[at]])
        second.append(nodes.ancestors[layer][active.second[at]])
    a, b = np.concatenate(first), np.concatenate(second)
    siblings = nodes.parent_index[a] == nodes.parent_index[b]
    pieces = components(len(nodes.ids), np.stack([a[siblings], b[siblings]], axis=1))
    children = np.flatnonzero(nodes.is_reached & (nodes.parent_index != NONE))
    return _in_pieces(nodes, children, nodes.parent_index[children], pieces)


def check_inf_edges(outcome: Outcome, nodes: Snapshot, active: ActiveEdges) -> None:
    """Check that no edge of affinity inf joins two roots: such edges cannot be cut, so both ends are one object."""
    infinite = active.infinite & (active.first < active.second)
    outcome.checked = int(outcome.mine(nodes.ids[active.first[infinite]]).sum())
    roots = nodes.ancestors[nodes.layout.n_layers]
    apart = active.infinite & (roots[active.first] != roots[active.second])
    _report_ends(
        outcome, nodes, active, apart, "an edge of affinity inf joins two roots, but cannot be cut: merge them."
    )


def _in_pieces(nodes: Snapshot, members: IntArray, owners: IntArray, pieces: IntArray) -> IntArray:
    """Owners whose members are in more than one piece."""
    pairs = np.unique(owners * len(nodes.ids) + pieces[members]) // max(len(nodes.ids), 1)
    owner, count = np.unique(pairs, return_counts=True)
    return np.asarray(owner[count > 1], np.int64)


def _report_ends(outcome: Outcome, nodes: Snapshot, active: ActiveEdges, faulty: BoolArray, message: str) -> None:
    at = np.flatnonzero(faulty & (active.first < active.second))
    at = at[outcome.mine(nodes.ids[active.first[at]])]
    if len(at):
        a, b = (int(nodes.ids[ends[at[0]]]) for ends in (active.first, active.second))
        outcome.error(message, f"edge {a} - {b}", len(at), order=(a, b))
