"""Bringing what other software has written into the form that ours writes, where its form can be read as well.

| what is found | what is written |
| --- | --- |
| cross edges that lead to an ancestor of the partner | the same cell, of the same time, with the partner |
| supervoxels of the watershed without any edge, and so without a node | a node of layer 2 and a root for each |
| locks of operations that have ended | nothing: they are released |
| supervoxel splits that the ledger of coarser mips lacks | their boxes are entered in the ledger |

Each change is one row, and is made only if the row is as it was seen. Cross edges keep their time, so the cell of an
edit that is being made is newer. Their partners are searched for again after the row was read, since an edit may have
replaced them. Edits go on meanwhile, and a mend can be repeated.

A supervoxel gets its node, then its root, and its parent last. So a run that is killed leaves rows that nothing points
to, and the next run continues with them::

    children of the node -> children of the root -> parent of the node -> parent of the supervoxel, if it has none
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.arguments import parse_flag
from sv_pipeline.errors import ConflictError
from sv_pipeline.failpoints import pieces, reach
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import read_edges_many
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.isolated import supervoxels_in_voxels
from sv_pipeline.pyramid.foreign import note_foreign_edits_of
from sv_pipeline.recovery.orphans import orphaned_locks, release_orphans
from sv_pipeline.table import columns, counters, keys
from sv_pipeline.table.interface import Cell, CellMatch, DeleteCells, RowMutation
from sv_pipeline.verify.dataset_under_test import Blocked, Subject
from sv_pipeline.verify.raised_edges import RaisedEdges, find_raised_edges
from sv_pipeline.verify.snapshot import Snapshot

__all__ = ["MendReport", "mend"]

IntArray = npt.NDArray[np.int64]
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
    splits: tuple[int, ...] = ()
    """Operations of other software whose boxes were not in the ledger of coarser mips."""
    skipped: int = 0
    """Changes that were not made, since an edit has changed the same row meanwhile."""
    examples: dict[str, int] = field(default_factory=dict)
    """One node or supervoxel of each kind."""

    @property
    def found(self) -> int:
        """How many things there are to mend."""
        return self.cross_edges + self.supervoxels + len(self.locks) + len(self.splits)

    def __str__(self) -> str:
        if not self.found:
            return f"graph {self.graph_id}: nothing to mend"
        what = (
            f"{self.cross_edges} cells of cross edges in another form, {self.supervoxels} supervoxels without a node, "
            f"locks of {len(self.locks)} operations that have ended, {len(self.splits)} supervoxel splits that the "
            "ledger of coarser mips lacks"
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
            "splits_without_ledger_entry": list(self.splits),
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
    nodes, edges = _look(graph)
    isolated = [*_without_nodes(graph)]
    locks = tuple(one.operation_id for one in orphaned_locks(graph) if not one.damage)
    alone = np.concatenate([np.zeros(0, np.uint64), *isolated])
    examples = {"cross edges": int(edges.nodes[0])} if len(edges.nodes) else {}
    examples |= {"supervoxel": int(alone[0])} if len(alone) else {}
    skipped = 0
    reach("mend found")
    if apply:
        skipped += _write_edges(graph, edges)
        skipped += sum(_give_nodes(graph, nodes, some) for some in isolated)
        for operation_id in locks:
            release_orphans(graph, operation_id)
            reach("mend locks released")
    splits = note_foreign_edits_of(graph, enter=apply)
    return MendReport(graph.graph_id, apply, edges.cells, len(alone), locks, splits, skipped, examples)


def _look(graph: ChunkedGraph) -> tuple[Snapshot, RaisedEdges]:
    subject = Subject(graph.table, graph.fork)
    try:
        return subject.nodes, find_raised_edges(subject.nodes, subject.active)
    except Blocked as blocked:
        raise ConflictError(
            f"graph {graph.graph_id!r} cannot be mended now: {blocked}. Nothing was changed.",
            remedy=f"Where 'sv-pipeline stuck list {graph.graph_id}' names an edit that is half written, recover it or "
            f"wait until it ends; then repair what 'sv-pipeline verify {graph.graph_id}' names.",
        ) from blocked


# -- cross edges ------------------------------------------------------------------------------------------------------


def _write_edges(graph: ChunkedGraph, found: RaisedEdges) -> int:
    """Put partners in the place of their ancestors; how many cells were changed by others meanwhile."""
    seen = _cells(graph, found)
    if not seen:
        return 0
    edges = _look(graph)[1]  # an edit that has replaced a partner before this look has changed the cell, or will
    reach("mend partners found")
    done = 0
    for (layer, node), cell in seen.items():
        column, mine = columns.cross_edges(layer), (edges.layers == layer) & (edges.nodes == node)
        stored = column.decode(cell.value)
        if not mine.any() or not np.isin(edges.ancestors[mine], stored[:, 1]).all():
            continue
        kept = stored[~np.isin(stored[:, 1], edges.ancestors[mine])]
        added = np.stack([np.full(int(mine.sum()), node, np.uint64), edges.partners[mine]], axis=-1)
        change = column.set(np.unique(np.concatenate([kept, added]), axis=0), cell.timestamp)
        match = CellMatch(column.key, cell.value)
        done += graph.table.check_and_mutate(keys.node_key(node), [match], if_matched=[change])
        reach("mend edges written")
    return found.cells - done


def _cells(graph: ChunkedGraph, edges: RaisedEdges) -> dict[tuple[int, int], Cell]:
    """Return the newest cell of each (layer, node) that holds such edges."""
    found: dict[tuple[int, int], Cell] = {}
    for layer in np.unique(edges.layers).tolist():
        column, nodes = columns.cross_edges(layer), np.unique(edges.nodes[edges.layers == layer])
        rows = graph.table.read_rows(keys.node_keys(nodes), [column.key], newest_only=True)
        found |= {(layer, int(key)): cells[0] for key, row in rows.items() if (cells := column.cells(row))}
    return found


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


def _give_nodes(graph: ChunkedGraph, snapshot: Snapshot, supervoxels: UInt64Array) -> int:
    """Give each supervoxel a layer 2 node and a root of its own; how many had got one meanwhile."""
    table, now = graph.table, time.time_ns() // 1_000_000
    given = _unfinished_nodes(snapshot, supervoxels)
    fresh = supervoxels[[i not in given for i in supervoxels.tolist()]]
    nodes = _new_ids(graph, graph.layout.chunk_ids(2, graph.layout.coordinates(fresh)))
    given |= {supervoxel: (node, 0, now) for supervoxel, node in zip(fresh.tolist(), nodes.tolist(), strict=True)}
    without = [supervoxel for supervoxel, (_, root, _) in given.items() if not root]
    roots = _new_ids(graph, graph.layout.chunk_ids(graph.n_layers, np.zeros((len(without), 3), np.int64)))
    for supervoxel, root in zip(without, roots.tolist(), strict=True):
        node, _, at = given[supervoxel]
        given[supervoxel] = node, root, at
    for name, pairs in (
        ("nodes", [(node, supervoxel, at) for supervoxel, (node, _, at) in given.items()]),
        ("roots", [(root, node, at) for node, root, at in given.values()]),
    ):
        rows = [
            RowMutation(keys.node_key(above), [columns.CHILDREN.set(np.array([below], np.uint64), at)])
            for above, below, at in pairs
        ]
        for piece in pieces(f"mend half the {name}", rows):
            table.mutate(piece)
    reach("mend roots written")
    for node, root, at in given.values():
        match = CellMatch(columns.PARENT.key)
        if table.check_and_mutate(keys.node_key(node), [match], if_unmatched=[columns.PARENT.set(root, at)]):
            _drop_unless(graph, node, root, [root])  # another mend may have given it a root
        reach("mend nodes have roots")
    skipped = 0
    for supervoxel, (node, root, at) in given.items():
        key, parent = keys.node_key(supervoxel), columns.PARENT.set(node, at)
        if table.check_and_mutate(key, [CellMatch(columns.PARENT.key)], if_unmatched=[parent]):
            _drop_unless(graph, supervoxel, node, [node, root])  # another mend may have continued with this node
            skipped += 1
        reach("mend parents written")
    return skipped


def _drop_unless(graph: ChunkedGraph, child: int, parent: int, rows: list[int]) -> None:
    """Remove rows of new nodes, unless a node has, or once had, this parent."""
    key = keys.node_key(child)
    row = graph.table.read_rows([key], [columns.PARENT.key]).get(key)
    if parent not in [one for _, one in columns.PARENT.history(row)]:
        graph.table.mutate([RowMutation(keys.node_key(i), [DeleteCells()]) for i in rows])


def _unfinished_nodes(snapshot: Snapshot, supervoxels: UInt64Array) -> dict[int, tuple[int, int, int]]:
    """Return node, root (0 for none) and time in milliseconds, by supervoxel, that a killed mend has begun with."""
    single = (np.diff(snapshot.child_starts) == 1) & ~snapshot.is_reached

    def only_children(layer: int) -> tuple[IntArray, UInt64Array]:
        found = np.flatnonzero(single & (snapshot.layers == layer))
        return found, snapshot.children[snapshot.child_starts[found]]

    tops, below = only_children(snapshot.layout.n_layers)
    root_of = dict(zip(below.tolist(), snapshot.ids[tops].tolist(), strict=True))
    nodes, children = only_children(2)
    its = np.isin(children, supervoxels)
    begun: dict[int, tuple[int, int, int]] = {}
    for i, child in zip(nodes[its].tolist(), children[its].tolist(), strict=True):
        node = int(snapshot.ids[i])
        begun[child] = (node, int(snapshot.parents[i]) or root_of.get(node, 0), int(snapshot.created[i]))
    return begun


def _new_ids(graph: ChunkedGraph, chunks: UInt64Array) -> UInt64Array:
    """Fresh ids for nodes in these chunks, in their order, shape (n,)."""
    distinct, index, counts = np.unique(chunks, return_inverse=True, return_counts=True)
    ids = np.zeros(len(chunks), np.uint64)
    wanted = list(zip(distinct.tolist(), counts.tolist(), strict=True))
    firsts = counters.reserve_many(graph.table, graph.layout, wanted)
    for at, ((chunk, count), first) in enumerate(zip(wanted, firsts, strict=True)):
        ids[index == at] = counters.node_ids(graph.layout, chunk, first, count)
    return ids
