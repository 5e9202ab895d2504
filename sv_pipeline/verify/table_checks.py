"""Checks of node rows: ids and counters, parents and children. This module looks at no edge and no voxel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid
from sv_pipeline.table.counters import ROOT_SHARDS
from sv_pipeline.verify.report import Outcome
from sv_pipeline.verify.snapshot import NONE, Snapshot

__all__ = ["check_hierarchy", "check_ids", "report_where"]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


LISTED_BY_ANOTHER = "it is listed as a child by a node that is not its newest parent: rewrite that node's `children`."
WITHOUT_CHILDREN = "a node in use has no children: restore its `children` cell."
ORPHAN = (
    "nothing points to this node: a repeated ingest task or an edit that was given up has left it; "
    "it is harmless, and may be deleted."
)


def report_where(
    outcome: Outcome,
    faulty: BoolArray | IntArray | np.bool_,
    ids: npt.NDArray[np.uint64],
    message: str,
    *,
    of: npt.NDArray[np.uint64] | None = None,
) -> None:
    """Report an error at the first faulty id, with the number of faulty ones.

    Parameters
    ----------
    faulty
        Which of ``ids`` are faulty: a mask of shape (n,), or indices.
    of
        Node to whose row each fault belongs, shape (n,), by which faults are ordered; None = the ids themselves.
    """
    flags = np.asarray(faulty)
    at = np.flatnonzero(flags) if flags.dtype == np.bool_ else flags
    rows = (ids if of is None else of)[at]
    mine = outcome.mine(rows)
    at, rows = at[mine], rows[mine]
    if len(at):
        first = int(np.argmin(rows))
        outcome.error(message, int(ids[at[first]]), len(at), order=(int(rows[first]),))


# -- ids ----------------------------------------------------------------------------------------------------------


def check_ids(outcome: Outcome, nodes: Snapshot, grid: ChunkGrid, counters: dict[int, int], shards: IntArray) -> None:
    """Check that every node id lies inside the grid and that a counter has given it out.

    Parameters
    ----------
    outcome
        Receives the findings.
    nodes
        The graph's node rows.
    grid
        The graph's chunk grid.
    counters
        Id counter of each chunk id.
    shards
        Counters of the root chunk's shards, shape (256,).
    """
    layout = nodes.layout
    outcome.checked = int(nodes.is_own.sum())
    outside = (nodes.layers < 1) | (nodes.layers > layout.n_layers)
    report_where(
        outcome,
        outside,
        nodes.ids,
        f"there is a node row of a layer that this graph of {layout.n_layers} layers does not have; "
        "the grid (CHUNK_SIZE, watershed info) is not the one it was built with, or the row is garbage: delete it.",
    )
    kept = np.flatnonzero(~outside)
    ids, layers = nodes.ids[kept], nodes.layers[kept]
    shapes = np.array([(1, 1, 1)] + [grid.shape(layer) for layer in range(1, layout.n_layers + 1)])
    beyond = (layout.coordinates(ids) >= shapes[layers]).any(axis=-1)
    report_where(
        outcome, beyond, ids, "the chunk in this node's id lies outside the grid; the row is garbage: delete it."
    )
    segments = layout.segments(ids)
    report_where(outcome, segments == 0, ids, "segment 0 names a chunk, never a node: delete the row.")

    chunk_ids, of_chunk = np.unique(layout.chunks(ids), return_inverse=True)
    limits = np.array([counters.get(int(chunk), 0) for chunk in chunk_ids], np.uint64)[of_chunk]
    given = segments <= limits
    shard = (segments % np.uint64(ROOT_SHARDS)).astype(np.int64)
    number = segments // np.uint64(ROOT_SHARDS)
    # The first number that a shard gives out is 1, so segments below 256 never come from a shard.
    given |= (layers == layout.n_layers) & (number > 0) & (number <= shards[shard].astype(np.uint64))
    report_where(
        outcome,
        ~given & ~beyond,
        ids,
        "the id counter of this node's chunk is behind it, so an edit could give the same id again: "
        "raise the counter to the chunk's highest segment.",
    )


# -- parents and children -----------------------------------------------------------------------------------------


def check_hierarchy(outcome: Outcome, nodes: Snapshot) -> None:
    """Check that newest parents and children agree in both directions, and each supervoxel has one current root."""
    outcome.checked = int(nodes.is_own.sum())
    _check_chains(outcome, nodes)
    _check_pairs(outcome, nodes)
    _check_geometry(outcome, nodes)
    _warn_of_orphans(outcome, nodes)


def _check_chains(outcome: Outcome, nodes: Snapshot) -> None:
    layers, ids = nodes.layers, nodes.ids
    lost = (nodes.parents != 0) & (nodes.parent_index == NONE)
    report_where(outcome, lost, ids, "its parent has no row: restore the parent's row or rebuild the chain above it.")
    never = (layers == 1) & (nodes.parents == 0) & ~nodes.edited
    report_where(outcome, never, ids, "a supervoxel has no parent: its chunk was not ingested to the end.")
    open_end = nodes.is_reached & (nodes.parents == 0) & (layers < nodes.layout.n_layers)
    report_where(outcome, open_end, ids, "a node below the root layer has no parent: build the layers above its chunk.")
    above_root = (layers >= nodes.layout.n_layers) & (nodes.parents != 0)
    report_where(outcome, above_root, ids, "a root has a parent: delete its `parents` cells.")
    tops = nodes.tops
    old = nodes.is_leaf & (layers[tops] == nodes.layout.n_layers) & nodes.retired[tops]
    report_where(
        outcome, old, ids, "a supervoxel is under a root that was replaced: an edit was left half done; recover it."
    )
    has_children = np.diff(nodes.child_starts) > 0
    empty = (layers >= 2) & ~has_children & (nodes.is_reached | (nodes.is_current & (nodes.parents != 0)))
    report_where(outcome, empty, ids, WITHOUT_CHILDREN)


def _check_pairs(outcome: Outcome, nodes: Snapshot) -> None:
    """Compare the pairs (child, parent) of ``parents`` cells with those of ``children`` cells."""
    child = nodes.find(nodes.children)
    owner = nodes.child_owner
    in_use = nodes.is_reached[owner]

    missing = in_use & (child == NONE)
    report_where(
        outcome, missing, nodes.ids[owner], "it lists a child that has no row: restore the child or rewrite `children`."
    )
    known = child != NONE
    disowned = in_use & known & (nodes.parent_index[child] != owner)
    report_where(
        outcome,
        disowned,
        nodes.children,
        LISTED_BY_ANOTHER,
        of=nodes.ids[owner],
    )
    count = len(nodes.ids)
    listed = owner[known] * count + child[known]
    unique, repeats = np.unique(listed, return_counts=True)
    twice = unique[repeats > 1] // max(count, 1)
    report_where(
        outcome, twice[nodes.is_reached[twice]], nodes.ids, "it lists the same child twice: rewrite its `children`."
    )
    pointing = np.flatnonzero(nodes.parent_index != NONE)
    pairs = nodes.parent_index[pointing] * count + pointing
    unlisted = pointing[~np.isin(pairs, unique)]
    # A replaced supervoxel keeps its parents, but its parents list the fragments instead.
    unlisted = unlisted[~((nodes.layers[unlisted] == 1) & nodes.retired[unlisted])]
    in_use_below = nodes.is_reached | nodes.is_leaf
    report_where(
        outcome,
        unlisted[in_use_below[unlisted]],
        nodes.ids,
        "its newest parent does not list it as a child: rewrite `children` of the parent, or `parents` of this node.",
    )


def _check_geometry(outcome: Outcome, nodes: Snapshot) -> None:
    below = np.flatnonzero((nodes.parent_index != NONE) & (nodes.is_reached | nodes.is_leaf))
    above = nodes.parent_index[below]
    low, high = nodes.layers[below], nodes.layers[above]
    ids = nodes.ids[below]
    report_where(outcome, low >= high, ids, "its parent is not of a higher layer: rewrite its `parents`.")
    layout = nodes.layout
    # Layers 1 and 2 share one grid, so the step from 1 to 2 does not halve coordinates.
    shift = np.maximum(high - np.maximum(low, 2), 0)
    inside = layout.coordinates(ids) >> shift[:, None] == layout.coordinates(nodes.ids[above])
    report_where(
        outcome, ~inside.all(axis=-1), ids, "its chunk is not inside its parent's chunk: rewrite its `parents`."
    )
    younger = (low >= 2) & (nodes.created[above] != NONE) & (nodes.created[below] > nodes.created[above])
    report_where(
        outcome,
        younger,
        ids,
        "it is newer than its parent, so that reads at a time in between find a gap: "
        "its edit wrote cells at different times.",
    )


def _warn_of_orphans(outcome: Outcome, nodes: Snapshot) -> None:
    """Warn of nodes under no current or replaced root, which repeated ingest tasks and abandoned edits leave."""
    tops = nodes.tops
    history = (nodes.layers[tops] == nodes.layout.n_layers) & nodes.retired[tops]
    given_up = (nodes.layers == 1) & (nodes.parents == 0) & nodes.edited
    left = (nodes.layers >= 2) & ~nodes.is_reached & ~history & ~nodes.is_current & ~nodes.is_undecided
    orphans = nodes.ids[left | given_up]
    orphans = orphans[outcome.mine(orphans)]
    if len(orphans):
        outcome.warning(ORPHAN, int(orphans[0]), len(orphans), order=(int(orphans[0]),))
