"""Turns a plan into row mutations, in the order in which they may become visible. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sv_pipeline.algorithms.components import find
from sv_pipeline.edits.plan.hierarchy import HierarchyPlan
from sv_pipeline.graph.rows import child_rows, edge_cells, parent_rows
from sv_pipeline.ids import UInt64Array
from sv_pipeline.table import keys
from sv_pipeline.table.columns import FORMER_PARENTS, INDEFINITE_LOCK, NEW_PARENTS, OPERATION_ID, cross_edges
from sv_pipeline.table.interface import RowMutation

__all__ = ["PlannedRows", "fake_edge_cells", "rows_of"]


@dataclass(frozen=True, eq=False)
class PlannedRows:
    """The rows that an edit writes, in three steps."""

    new: list[RowMutation]
    """Rows of new nodes, which nothing points to yet. New roots are written with an indefinite lock."""
    switching: list[RowMutation]
    """Rows of remaining nodes that switch over to the new nodes."""
    retired: list[RowMutation]
    """Rows of the old roots, which are written last."""

    @property
    def every(self) -> list[RowMutation]:
        """The rows of all steps."""
        return [*self.new, *self.switching, *self.retired]

    def with_supervoxels(self, new: list[RowMutation], switching: list[RowMutation]) -> PlannedRows:
        """Add the rows of supervoxels that are replaced."""
        return PlannedRows([*self.new, *new], [*self.switching, *switching], self.retired)


def rows_of(plan: HierarchyPlan, operation_id: int, timestamp: int) -> PlannedRows:
    """Return the rows of a hierarchy plan with final ids; all cells get one timestamp, in milliseconds."""
    layout, new = plan.layout, plan.new
    owners = np.repeat(new.ids, new.children.lengths)
    is_new = find(np.sort(new.ids), new.children.values) >= 0

    def times(n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.full(n, timestamp, np.int64)

    n = len(new.ids)
    cells = edge_cells(cross_edges, new.ids, times(n), new.edges, new.edges.edges[:, 0])
    rows = list(parent_rows(new.ids, new.children, times(n), cells))
    rows += child_rows(new.children.values[is_new], owners[is_new], times(int(is_new.sum())))
    old_roots, new_roots = plan.old_roots, plan.new_roots
    for key in keys.node_keys(new_roots):
        lineage = [FORMER_PARENTS.set(old_roots, timestamp), OPERATION_ID.set(operation_id, timestamp)]
        rows.append(RowMutation(key, [*lineage, INDEFINITE_LOCK.set(operation_id)]))

    switching = list(child_rows(new.children.values[~is_new], owners[~is_new], times(int((~is_new).sum()))))
    neighbours = np.unique(plan.rewritten.edges[:, 0])
    rewritten = plan.rewritten.edges[:, 0]
    cells = edge_cells(cross_edges, neighbours, times(len(neighbours)), plan.rewritten, rewritten)
    switching += [RowMutation(key, row) for key, row in zip(keys.node_keys(neighbours), cells, strict=True)]
    replaced = [NEW_PARENTS.set(new_roots, timestamp), OPERATION_ID.set(operation_id, timestamp)]
    assert (layout.layers(new_roots) == plan.n_layers).all()
    return PlannedRows(rows, switching, [RowMutation(key, replaced) for key in keys.node_keys(old_roots)])


def fake_edge_cells(plan: HierarchyPlan, edges: UInt64Array) -> dict[bytes, UInt64Array]:
    """Return fake edges (n, 2) by the keys of their rows: each direction is in the row of its first end's chunk."""
    both = np.concatenate([edges, edges[:, ::-1]])
    chunks = plan.layout.chunk_ids(2, plan.layout.coordinates(both[:, 0])) if len(both) else np.zeros(0, np.uint64)
    distinct = np.unique(chunks)
    return {key: both[chunks == chunk] for key, chunk in zip(keys.edit_edge_keys(distinct), distinct, strict=True)}
