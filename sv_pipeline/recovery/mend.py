"""Bringing what other software has written into the form that ours writes, where its form can be read as well.

| what is found | what is written |
| --- | --- |
| cross edges that lead to an ancestor of the partner | the same cell, of the same time, with the partner |
| supervoxels of the watershed without any edge, and so without a node | a node of layer 2 and a root for each |
| locks of operations that have ended | nothing: they are released |

Each change is one row, and is made only if the row is as it was seen. Cross edges keep their time, so the cell of an
edit that is being made is newer. A supervoxel gets its parent last, so a run that is killed leaves rows that nothing
points to. Edits go on meanwhile, and a mend can be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sv_pipeline.arguments import parse_flag
from sv_pipeline.errors import ConflictError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import read_edges_many
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.isolated import supervoxels_in_voxels
from sv_pipeline.recovery.orphans import orphaned_locks, release_orphans
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import CellMatch, DeleteCells, RowMutation, SetCell
from sv_pipeline.verify.dataset_under_test import Blocked, Subject
from sv_pipeline.verify.raised_edges import RaisedEdges, find_raised_edges

__all__ = ["MendReport", "mend"]

CHUNKS_AT_ONCE = 64


@dataclass(frozen=True)
class MendReport:
    """What a mend has found, and what it has changed."""

    graph_id: str
    applied: bool
    """Whether it was changed; else nothing was written."""
    cross_edges: int
    """Cells of cross edges in another form."""
    supervoxels: int
    """Supervoxels without a node."""
    locks: tuple[int, ...]
    """Operations that have ended and have left locks."""
    skipped: int = 0
    """Changes that were not made, since an edit has changed the same row meanwhile."""
    examples: dict[str, int] = field(default_factory=dict)
    """One node or supervoxel of each kind."""

    @property
    def found(self) -> int:
        """How many things there are to mend."""
        return self.cross_edges + self.supervoxels + len(self.locks)

    def __str__(self) -> str:
        if not self.found:
            return f"graph {self.graph_id}: nothing to mend"
        what = (
            f"{self.cross_edges} cells of cross edges in another form, {self.supervoxels} supervoxels without a node, "
            f"locks of {len(self.locks)} operations that have ended"
        )
        if not self.applied:
            return f"graph {self.graph_id}: {what}; nothing was changed, --apply mends them"
        skipped = f"; {self.skipped} were changed by edits meanwhile, so run it again" if self.skipped else ""
        return f"graph {self.graph_id}: mended {what}{skipped}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "graph": self.graph_id,
            "applied": self.applied,
            "cross_edges": self.cross_edges,
            "supervoxels_without_node": self.supervoxels,
            "operations_with_locks": list(self.locks),
            "skipped": self.skipped,
            "examples": self.examples,
        }


def mend(graph: ChunkedGraph, *, apply: bool = False) -> MendReport:
    """Find what other software has written in another form, and write it as ours does.

    Parameters
    ----------
    apply
        Change it; by default, it is only found.

    Raises
    ------
    ConflictError
        If the hierarchy is not sound, for example because an edit is half written; nothing was changed.
    """
    apply = parse_flag(apply, "apply")
    subject = Subject(graph.table, graph.fork)
    try:
        edges = find_raised_edges(subject.nodes, subject.active)
    except Blocked as blocked:
        raise ConflictError(
            f"graph {graph.graph_id!r} cannot be mended now: {blocked}. Nothing was changed.",
            remedy=f"Where 'sv-pipeline stuck list {graph.graph_id}' names an edit that is half written, recover it or "
            f"wait until it ends; then repair what 'sv-pipeline verify {graph.graph_id}' names.",
        ) from blocked
    isolated = [*_without_nodes(graph)]
    locks = tuple(one.operation_id for one in orphaned_locks(graph) if not one.damage)
    alone = np.concatenate([np.zeros(0, np.uint64), *isolated])
    examples = {"cross edges": int(edges.nodes[0])} if len(edges.nodes) else {}
    examples |= {"supervoxel": int(alone[0])} if len(alone) else {}
    skipped = 0
    if apply:
        skipped += _write_edges(graph, edges)
        skipped += sum(_give_nodes(graph, some) for some in isolated)
        for operation_id in locks:
            release_orphans(graph, operation_id)
    return MendReport(graph.graph_id, apply, edges.cells, len(alone), locks, skipped, examples)


# -- cross edges ------------------------------------------------------------------------------------------------------


def _write_edges(graph: ChunkedGraph, edges: RaisedEdges) -> int:
    """Put partners in the place of their ancestors; how many cells were changed by others meanwhile."""
    skipped = 0
    for layer in np.unique(edges.layers).tolist():
        column, of_layer = columns.cross_edges(layer), edges.layers == layer
        nodes = np.unique(edges.nodes[of_layer])
        rows = graph.table.read_rows(keys.node_keys(nodes), [column.key], newest_only=True)
        for node, key in zip(nodes.tolist(), keys.node_keys(nodes), strict=True):
            cells = column.cells(rows.get(key))
            mine = of_layer & (edges.nodes == node)
            if not cells:
                skipped += 1
                continue
            stored = column.decode(cells[0].value)
            kept = stored[~np.isin(stored[:, 1], edges.ancestors[mine])]
            added = np.stack([np.full(int(mine.sum()), node, np.uint64), edges.partners[mine]], axis=-1)
            whole = np.unique(np.concatenate([kept, added]), axis=0)
            change = column.set(whole, cells[0].timestamp)
            seen = CellMatch(column.key, cells[0].value)
            skipped += not graph.table.check_and_mutate(key, [seen], if_matched=[change])
    return skipped


# -- supervoxels without nodes ----------------------------------------------------------------------------------------


def _without_nodes(graph: ChunkedGraph) -> Iterator[UInt64Array]:
    """Supervoxels of the watershed that have neither an edge nor a row, by chunks."""
    every = graph.grid.coordinates(2)
    for first in range(0, len(every), CHUNKS_AT_ONCE):
        some = every[first : first + CHUNKS_AT_ONCE]
        ids = np.concatenate([np.zeros(0, np.uint64), *supervoxels_in_voxels(graph, some)])
        row_keys = keys.node_keys(ids)
        wanted = [columns.PARENT.key, columns.NEW_IDS.key]
        rows = graph.table.read_rows(row_keys, wanted, newest_only=True)
        ids = ids[[key not in rows for key in row_keys]] if len(ids) else ids
        if len(ids):
            files = read_edges_many(graph.edges_url, some, layout=graph.layout)
            ends = [part.pairs.ravel() for file in files for part in (file.in_, file.between, file.cross)]
            yield ids[~np.isin(ids, np.concatenate([np.zeros(0, np.uint64), *ends]))]


def _give_nodes(graph: ChunkedGraph, supervoxels: UInt64Array) -> int:
    """Give each supervoxel a layer 2 node and a root of its own; how many had got one meanwhile."""
    layout, table, now = graph.layout, graph.table, time.time_ns() // 1_000_000
    nodes = _new_ids(graph, layout.chunk_ids(2, layout.coordinates(supervoxels)))
    roots = _new_ids(graph, layout.chunk_ids(graph.n_layers, np.zeros((len(supervoxels), 3), np.int64)))
    rows = []
    for supervoxel, node, root in zip(supervoxels, nodes, roots, strict=True):
        rows.append(RowMutation(keys.node_key(root), [columns.CHILDREN.set(np.array([node]), now)]))
        above = SetCell(columns.PARENT.key, columns.PARENT.encode(int(root)), now)
        rows.append(RowMutation(keys.node_key(node), [columns.CHILDREN.set(np.array([supervoxel]), now), above]))
    table.mutate(rows)
    skipped = 0
    for supervoxel, node, root in zip(supervoxels.tolist(), nodes.tolist(), roots.tolist(), strict=True):
        parent = columns.PARENT.set(node, now)
        if table.check_and_mutate(keys.node_key(supervoxel), [CellMatch(columns.PARENT.key)], if_unmatched=[parent]):
            table.mutate([RowMutation(keys.node_key(i), [DeleteCells()]) for i in (node, root)])
            skipped += 1
    return skipped


def _new_ids(graph: ChunkedGraph, chunks: UInt64Array) -> UInt64Array:
    """Fresh ids for nodes in these chunks, in their order, shape (n,)."""
    distinct, index, counts = np.unique(chunks, return_inverse=True, return_counts=True)
    ids = np.zeros(len(chunks), np.uint64)
    wanted = list(zip(distinct.tolist(), counts.tolist(), strict=True))
    firsts = counters.reserve_many(graph.table, graph.layout, wanted)
    for at, ((chunk, count), first) in enumerate(zip(wanted, firsts, strict=True)):
        ids[index == at] = counters.node_ids(graph.layout, chunk, first, count)
    return ids
