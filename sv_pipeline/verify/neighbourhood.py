"""Verification of rows and voxels around a few chunks, with the checks of `verify` and a few reads.

What is read, and what is checked about it::

    core      all rows of supervoxels and of layer 2 nodes of the chunks      everything, including the voxels
    chain     all ancestors of the core's live supervoxels                    all but edges that start in other chunks
    fringe    supervoxels that atomic edges of the core lead to, and their    what the core's edges say about them
              ancestors
    beside    children of the chain, and partners of its cross edges          that they belong to the same node, or root

The cost therefore depends on the number of chunks, not on the size of the objects.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.segmentation.fork.fork import Fork
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowView, Table
from sv_pipeline.verify import atomic_edges, edge_checks, snapshot, voxel_checks
from sv_pipeline.verify.dataset_under_test import Subject
from sv_pipeline.verify.gather import RowsBeside, read_nodes
from sv_pipeline.verify.report import CheckResult, Outcome, VerifyReport
from sv_pipeline.verify.snapshot import NONE, EdgeCells, Snapshot
from sv_pipeline.verify.table_checks import check_hierarchy, report_where

__all__ = ["verify_around"]

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

MOST_CHUNKS = 32
"""Maximum number of chunks that are checked."""
MOST_VOXELS = 1 << 27
"""Maximum number of voxels that are checked; the voxels of the first chunk always are."""
MOST_BESIDE = 50_000
"""Maximum number of rows beside the chain that are read."""


def verify_around(table: Table, fork: Fork, chunks: npt.ArrayLike) -> VerifyReport:
    """Prove that a graph and its voxels are sound around some chunks. Nothing is changed.

    Parameters
    ----------
    table, fork
        The same as for :func:`~sv_pipeline.verify.run.verify`.
    chunks
        Coordinates of layer 2 chunks, (x, y, z), shape (n, 3), the most important ones first; at most `MOST_CHUNKS` are
        checked.
    """
    started = time.monotonic()
    subject = Subject(table, fork)
    wanted = np.asarray(chunks, np.int64).reshape(-1, 3)[:MOST_CHUNKS]
    around = _Surroundings(subject, wanted)
    hierarchy = _hierarchy(around)
    results = [hierarchy, _voxels(around)]
    if hierarchy.passed:
        results.append(_edges(around))
    return VerifyReport(fork.graph_id, tuple(results), time.monotonic() - started, len(wanted))


def _result(name: str, description: str, unit: str, outcome: Outcome) -> CheckResult:
    passed = not outcome.has_errors
    return CheckResult(name, description, passed, outcome.checked, unit, tuple(outcome.findings), 0.0, outcome.skipped)


@dataclass
class _Surroundings:
    """The rows and edges that are read around some chunks."""

    subject: Subject
    chunks: IntArray

    @property
    def layout(self) -> IdLayout:
        """Layout of ids."""
        return self.subject.layout

    @cached_property
    def core(self) -> Snapshot:
        """All rows of supervoxels and layer 2 nodes of the chunks."""
        ids = [self.layout.chunk_ids(layer, self.chunks) for layer in (1, 2)]
        ranges = keys.chunk_ranges(self.layout, np.concatenate(ids))
        return snapshot.read_snapshot(self.subject.table, self.layout, ranges)

    @cached_property
    def edges(self) -> atomic_edges.AtomicEdges:
        """Atomic edges of the core's supervoxels."""
        return atomic_edges.read_atomic_edges(
            self.subject.table, self.layout, self.subject.grid, *self.subject.edge_folders, coordinates=self.chunks
        )

    @cached_property
    def everything(self) -> Snapshot:
        """Live supervoxels of core and fringe, the children of the core's layer 2 nodes, and all their ancestors."""
        core = self.core
        ends = np.setdiff1d(np.unique(self.edges.pairs), core.ids)
        fringe = snapshot.of_rows(self.layout, self._read(ends)).leaf_ids
        listed = core.children[core.is_reached[core.child_owner]]
        found = RowsBeside(self.subject.table, self.layout, snapshot.wanted_columns(self.layout))
        found.read_with_ancestors(np.unique(np.concatenate([core.leaf_ids, fringe, listed])))
        return snapshot.of_rows(self.layout, found.rows)

    def _read(self, ids: UInt64Array) -> dict[int, RowView]:
        return read_nodes(self.subject.table, ids, snapshot.wanted_columns(self.layout))

    @cached_property
    def is_core(self) -> BoolArray:
        """Whether each node is a layer 2 node of the chunks; all that belongs to such nodes was read."""
        nodes = self.everything
        chunks = self.layout.chunk_ids(2, self.chunks)
        return np.asarray((nodes.layers == 2) & np.isin(self.layout.chunks(nodes.ids), chunks))

    @cached_property
    def nodes(self) -> Snapshot:
        """`everything` without children and partners whose rows were not read; core nodes keep all of theirs."""
        nodes = self.everything
        kept = np.isin(nodes.children, nodes.ids) | self.is_core[nodes.child_owner]
        counts = np.bincount(nodes.child_owner[kept], minlength=len(nodes.ids))
        cross = {}
        for layer, cells in nodes.cross_edges.items():
            here = np.isin(cells.edges[:, 1], nodes.ids) | self.is_core[cells.owners]
            cross[layer] = EdgeCells(cells.owners[here], cells.edges[here])
        starts = np.concatenate([[0], np.cumsum(counts)])
        return replace(
            nodes, children=nodes.children[kept], child_starts=starts, cross_edges=cross, atomic_cross_edges={}
        )

    @cached_property
    def chain(self) -> BoolArray:
        """Whether each node is an ancestor of a live supervoxel of the core."""
        nodes = self.everything
        at = nodes.find(self.core.leaf_ids)
        flags = np.zeros(len(nodes.ids), np.bool_)
        for _ in range(self.layout.n_layers):
            at = np.unique(nodes.parent_index[at[at != NONE]])
            flags[at[at != NONE]] = True
        return flags

    def roots_of(self, ids: UInt64Array) -> UInt64Array:
        """The node at which each node's chain of newest parents ends, shape (n,); 0 where a row is missing."""
        tops = ids.copy()
        for _ in range(self.layout.n_layers):
            distinct, where = np.unique(tops, return_inverse=True)
            rows = self.subject.table.read_rows(keys.node_keys(distinct), [columns.PARENT.key], newest_only=True)
            parents = [columns.PARENT.newest(rows.get(key)) for key in keys.node_keys(distinct)]
            above = np.array([0 if parent is None else parent for parent in parents], np.uint64)[where]
            tops = np.where(above == 0, tops, above)
        return tops


# -- checks -----------------------------------------------------------------------------------------------------------


def _hierarchy(around: _Surroundings) -> CheckResult:
    outcome = Outcome("hierarchy")
    check_hierarchy(outcome, around.nodes)
    _check_beside(outcome, around)
    return _result("hierarchy", "parents and children agree; each supervoxel has one current root", "nodes", outcome)


def _check_beside(outcome: Outcome, around: _Surroundings) -> None:
    """Check that children of the chain which were not read point to their parent, and that partners have its root."""
    nodes, layout = around.everything, around.layout
    of_chain = around.chain[nodes.child_owner] & ~np.isin(nodes.children, nodes.ids)
    children, owners = nodes.children[of_chain][:MOST_BESIDE], nodes.ids[nodes.child_owner[of_chain]][:MOST_BESIDE]
    rows = around.subject.table.read_rows(keys.node_keys(children), [columns.PARENT.key], newest_only=True)
    parents = [columns.PARENT.newest(rows.get(key)) for key in keys.node_keys(children)]
    wrong = np.array([0 if parent is None else parent for parent in parents], np.uint64) != owners
    report_where(
        outcome, wrong, children, "it is listed as a child by a node that is not its newest parent: recover the edit."
    )
    outcome.checked += len(children)
    partners, at = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for cells in nodes.cross_edges.values():
        used = around.chain[cells.owners] & ~np.isin(cells.edges[:, 1], nodes.ids)
        used &= nodes.layers[cells.owners] < layout.n_layers
        partners.append(cells.edges[used, 1])
        at.append(cells.owners[used])
    beyond, owner = np.concatenate(partners)[:MOST_BESIDE], np.concatenate(at)[:MOST_BESIDE]
    apart = around.roots_of(beyond) != nodes.ids[nodes.tops[owner]]
    report_where(
        outcome, apart, nodes.ids[owner], "its cross edges name a partner under another or a replaced root: recover it."
    )
    outcome.checked += len(beyond)


def _edges(around: _Surroundings) -> CheckResult:
    outcome, nodes = Outcome("edges"), around.nodes
    for file in around.edges.broken:
        outcome.error(file.message, file.name)
    active = atomic_edges.activate(nodes, around.edges)
    edge_checks.check_cross_edges(outcome, nodes, active, complete=around.is_core)
    edge_checks.check_ends(outcome, nodes, active)
    edge_checks.check_inf_edges(outcome, nodes, active)
    leaves = nodes.leaves
    of_core = leaves[around.is_core[np.maximum(nodes.parent_index[leaves], 0)]]
    edge_checks.check_pieces_in_chunks(outcome, nodes, active, of_core)
    return _result("edges", "cross edges and roots are what the active atomic edges make them", "edges", outcome)


def _voxels(around: _Surroundings) -> CheckResult:
    outcome, subject = Outcome("voxels"), around.subject
    budget = MOST_VOXELS
    boxes: list[IntArray] = []
    for coordinate in around.chunks:
        budget -= subject.grid.box(2, coordinate).volume
        if boxes and budget < 0:
            break
        boxes.append(coordinate)
    if subject.fork.exists():
        groups = [coordinate[None] for coordinate in boxes]
        source = open_volume(subject.fork.watershed_url) if subject.is_built_elsewhere else None
        voxels = subject.voxels.open(0)
        voxel_checks.check_groups(outcome, lambda _: around.core, subject.grid, voxels, groups, source=source)
    else:
        outcome.skipped = "the graph has no fork"
    return _result("voxels", "ids in the voxels are the live leaves, each in one piece", "chunks", outcome)
