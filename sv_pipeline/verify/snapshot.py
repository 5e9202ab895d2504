"""Node rows of a graph as arrays, read in one scan of the table. This module judges nothing.

A snapshot holds the whole hierarchy in memory: about 60 bytes per node and 20 bytes per end of an edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import CorruptionError
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import ColumnKey, RowKeyRange, RowView, Table

__all__ = ["EdgeCells", "Snapshot", "hierarchy_columns", "of_rows", "read_snapshot", "wanted_columns", "with_beside"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NONE = -1
"""Index that stands for a missing node, and timestamp that stands for a missing cell."""
ID_BYTES = 8
ROWS_AT_A_TIME = 1 << 17
_NO_ID = bytes(ID_BYTES)


@dataclass(frozen=True)
class EdgeCells:
    """The newest cells of one edge column, for all nodes."""

    owners: IntArray
    """Index of the node whose row holds the edge, shape (n,)."""
    edges: UInt64Array
    """The edges as pairs of ids, shape (n, 2)."""


@dataclass(frozen=True)
class Snapshot:
    """The newest cells of all node rows, sorted by node id."""

    layout: IdLayout
    ids: UInt64Array
    parents: UInt64Array
    """Newest parent of each node; 0 where there is none."""
    parent_times: IntArray
    """Timestamp of the ``parents`` cell in milliseconds; -1 where there is none."""
    children: UInt64Array
    """Children of all nodes, one after the other."""
    child_starts: IntArray
    """Index in ``children`` at which each node's children start, shape (n + 1,)."""
    created: IntArray
    """Timestamp of the ``children`` cell in milliseconds; -1 where there is none."""
    retired: BoolArray
    """True for supervoxels that fragments replaced (``new_ids``) and roots that others replaced (``new_parents``)."""
    edited: BoolArray
    """True for nodes that an edit made: roots with ``former_parents``, supervoxels with ``former_ids``."""
    cross_edges: dict[int, EdgeCells] = field(default_factory=dict)
    atomic_cross_edges: dict[int, EdgeCells] = field(default_factory=dict)
    beside: BoolArray | None = None
    """True for nodes that were read only because nodes of the snapshot's part refer to them; None = there are none."""
    reached: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Nodes that are known to have a leaf below them, whether or not the snapshot holds it."""

    def find(self, ids: UInt64Array) -> IntArray:
        """Index of each id; ``NONE`` for ids without a row."""
        if not len(self.ids):
            return np.full(np.shape(ids), NONE, np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, at, NONE).astype(np.int64)

    @cached_property
    def layers(self) -> IntArray:
        """Layer of each node."""
        return self.layout.layers(self.ids)

    @cached_property
    def parent_index(self) -> IntArray:
        """Index of each node's newest parent; ``NONE`` if there is no parent or its row is missing."""
        return self.find(self.parents)

    @cached_property
    def child_owner(self) -> IntArray:
        """Index of the node that lists each of ``children``."""
        return np.repeat(np.arange(len(self.ids)), np.diff(self.child_starts))

    @cached_property
    def is_leaf(self) -> BoolArray:
        """Whether each node is a supervoxel in use: it has a parent, and no fragments have replaced it."""
        return np.asarray((self.layers == 1) & ~self.retired & (self.parents != 0))

    @cached_property
    def leaf_ids(self) -> UInt64Array:
        """Ids of the supervoxels in use, whether or not they are under a current root."""
        return self.ids[self.is_leaf]

    @cached_property
    def is_reached(self) -> BoolArray:
        """Whether each node is above layer 1 and has a leaf below it, by newest parents."""
        reached = np.zeros(len(self.ids), np.bool_)
        known = self.find(self.reached)
        known = known[(known != NONE) & (self.layers[known] > 1)] if len(self.ids) else known[:0]
        reached[known] = True
        frontier = np.concatenate([np.flatnonzero(self.is_leaf), known])
        for _ in range(self.layout.n_layers):
            frontier = np.unique(self.parent_index[frontier])
            frontier = frontier[frontier != NONE]
            reached[frontier] = True
        return reached

    @cached_property
    def tops(self) -> IntArray:
        """Index of the node at which each node's chain of newest parents ends."""
        tops = np.arange(len(self.ids))
        for _ in range(self.layout.n_layers):
            above = self.parent_index[tops]
            tops = np.where(above == NONE, tops, above)
        return tops

    @cached_property
    def is_current(self) -> BoolArray:
        """Whether each node's chain of newest parents ends at a root that is in use."""
        tops = self.tops
        at_root = self.layers[tops] == self.layout.n_layers
        return np.asarray(at_root & ~self.retired[tops] & self.is_reached[tops])

    @cached_property
    def is_own(self) -> BoolArray:
        """Whether each node belongs to the snapshot's part of the graph."""
        return np.ones(len(self.ids), np.bool_) if self.beside is None else ~self.beside

    @cached_property
    def is_undecided(self) -> BoolArray:
        """Whether only the part of its root can tell if a node without a leaf below it is under a root in use."""
        tops = self.tops
        open_root = (self.layers[tops] == self.layout.n_layers) & ~self.retired[tops] & ~self.is_reached[tops]
        return np.asarray((self.layers >= 2) & ~self.is_reached & open_root & ~self.is_own[tops])

    @cached_property
    def leaves(self) -> IntArray:
        """Indices of the live leaves (supervoxels under a current root), in the order of their ids."""
        return np.flatnonzero(self.is_leaf & self.is_current)

    @cached_property
    def ancestors(self) -> dict[int, IntArray]:
        """For each layer ``a`` >= 2: index of each node's highest ancestor with layer <= ``a``.

        A node at layer ``a`` or above is its own ancestor here. The result is valid only if the hierarchy is sound.
        """
        current = np.arange(len(self.ids))
        at: dict[int, IntArray] = {1: current}
        for layer in range(2, self.layout.n_layers + 1):
            above = self.parent_index[current]
            step = (above != NONE) & (self.layers[above] <= layer)
            current = np.where(step, above, current)
            at[layer] = current
        return at


def read_snapshot(table: Table, layout: IdLayout, ranges: Sequence[RowKeyRange] | None = None) -> Snapshot:
    """Read node rows in one scan.

    Parameters
    ----------
    table
        The graph's table.
    layout
        Layout of the graph's ids.
    ranges
        Sorted ranges of row keys to read; None = all node rows.
    """
    everything = RowKeyRange(keys.layer_range(1).start, keys.node_key((1 << 64) - 1) + b"\x00")
    rows = _node_rows(table, [everything] if ranges is None else ranges, _Builder(layout).wanted)
    parts = []
    while some := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        builder = _Builder(layout)
        for node, row in some:
            builder.add(node, row)
        parts.append(builder.finish())
    return _join(parts) if parts else _Builder(layout).finish()


def hierarchy_columns() -> list[ColumnKey]:
    """Columns of parents, children and lineage."""
    lineage = (columns.NEW_IDS, columns.NEW_PARENTS, columns.FORMER_IDS, columns.FORMER_PARENTS)
    return [columns.PARENT.key, columns.CHILDREN.key, *(column.key for column in lineage)]


def wanted_columns(layout: IdLayout) -> list[ColumnKey]:
    """Columns of node rows that a snapshot holds."""
    return _Builder(layout).wanted


def of_rows(layout: IdLayout, rows: Mapping[int, RowView]) -> Snapshot:
    """Make a snapshot of the newest cells of rows that were read already, keyed by node id."""
    builder = _Builder(layout)
    for node in sorted(rows):
        builder.add(node, rows[node])
    return builder.finish()


def _node_rows(table: Table, ranges: Sequence[RowKeyRange], wanted: list[ColumnKey]) -> Iterator[tuple[int, RowView]]:
    for key, row in table.scan(ranges, wanted, newest_only=True):
        # Lock rows have hashed binary keys, which may fall anywhere.
        if len(key) == keys.DIGITS and key.isdigit():
            yield int(key), row


def _join(parts: list[Snapshot]) -> Snapshot:
    """Join snapshots of successive key ranges into one."""
    if len(parts) == 1:
        return parts[0]
    first_node = np.cumsum([0, *(len(part.ids) for part in parts)])
    lengths = np.concatenate([np.diff(part.child_starts) for part in parts])

    def edges(name: str) -> dict[int, EdgeCells]:
        joined = {}
        for layer in sorted({layer for part in parts for layer in getattr(part, name)}):
            found = [
                (cells, int(n))
                for part, n in zip(parts, first_node, strict=False)
                if (cells := getattr(part, name).get(layer))
            ]
            owners = np.concatenate([cells.owners + n for cells, n in found])
            joined[layer] = EdgeCells(owners, np.concatenate([cells.edges for cells, _ in found]))
        return joined

    return Snapshot(
        layout=parts[0].layout,
        ids=np.concatenate([part.ids for part in parts]),
        parents=np.concatenate([part.parents for part in parts]),
        parent_times=np.concatenate([part.parent_times for part in parts]),
        children=np.concatenate([part.children for part in parts]),
        child_starts=np.concatenate([[0], np.cumsum(lengths)]),
        created=np.concatenate([part.created for part in parts]),
        retired=np.concatenate([part.retired for part in parts]),
        edited=np.concatenate([part.edited for part in parts]),
        cross_edges=edges("cross_edges"),
        atomic_cross_edges=edges("atomic_cross_edges"),
    )


def with_beside(own: Snapshot, beside: Snapshot) -> Snapshot:
    """Join the nodes of a part with others that they refer to; both have different ids."""
    joined = _join([own, beside])
    order = np.argsort(joined.ids, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    counts = np.diff(joined.child_starts)[order]
    starts = np.concatenate([[0], np.cumsum(counts)])
    listed = np.arange(len(joined.children)) - np.repeat(starts[:-1], counts)
    listed += np.repeat(joined.child_starts[:-1][order], counts)

    def moved(cells: dict[int, EdgeCells]) -> dict[int, EdgeCells]:
        return {layer: EdgeCells(place[c.owners], c.edges) for layer, c in cells.items()}

    return Snapshot(
        layout=own.layout,
        ids=joined.ids[order],
        parents=joined.parents[order],
        parent_times=joined.parent_times[order],
        children=joined.children[listed],
        child_starts=starts,
        created=joined.created[order],
        retired=joined.retired[order],
        edited=joined.edited[order],
        cross_edges=moved(joined.cross_edges),
        atomic_cross_edges=moved(joined.atomic_cross_edges),
        beside=np.asarray(order >= len(own.ids)),
    )


class _Builder:
    """Collects cells row by row and turns them into arrays once."""

    def __init__(self, layout: IdLayout) -> None:
        self.layout = layout
        self.ids: list[int] = []
        self.parents: list[bytes] = []
        self.parent_times: list[int] = []
        self.children: list[bytes] = []
        self.created: list[int] = []
        self.retired: list[bool] = []
        self.edited: list[bool] = []
        layers = range(1, min(layout.n_layers + 1, columns.MAX_LAYERS))
        self.cross = {columns.cross_edges(layer).key: _EdgeBuilder(layer) for layer in layers}
        self.atomic = {columns.atomic_cross_edges(layer).key: _EdgeBuilder(layer) for layer in layers}

    @property
    def wanted(self) -> list[ColumnKey]:
        return [*hierarchy_columns(), *self.cross, *self.atomic]

    def add(self, node: int, row: RowView) -> None:
        parent = row.get(columns.PARENT.key)
        children = row.get(columns.CHILDREN.key)
        for column, cells in row.items():
            if builder := self.cross.get(column) or self.atomic.get(column):
                builder.add(len(self.ids), _raw_ids(node, column, cells[0].value, 2 * ID_BYTES))
        self.ids.append(node)
        self.parents.append(_raw_ids(node, columns.PARENT.key, parent[0].value) if parent else _NO_ID)
        self.parent_times.append(parent[0].timestamp if parent else NONE)
        self.children.append(_raw_ids(node, columns.CHILDREN.key, children[0].value) if children else b"")
        self.created.append(children[0].timestamp if children else NONE)
        self.retired.append(columns.NEW_IDS.key in row or columns.NEW_PARENTS.key in row)
        self.edited.append(columns.FORMER_IDS.key in row or columns.FORMER_PARENTS.key in row)

    def finish(self) -> Snapshot:
        starts = np.zeros(len(self.ids) + 1, np.int64)
        np.cumsum([len(raw) // ID_BYTES for raw in self.children], out=starts[1:])
        return Snapshot(
            layout=self.layout,
            ids=np.array(self.ids, np.uint64),
            parents=_uint64(self.parents),
            parent_times=np.array(self.parent_times, np.int64),
            children=_uint64(self.children),
            child_starts=starts,
            created=np.array(self.created, np.int64),
            retired=np.array(self.retired, np.bool_),
            edited=np.array(self.edited, np.bool_),
            cross_edges={b.layer: b.finish() for b in self.cross.values() if b.owners},
            atomic_cross_edges={b.layer: b.finish() for b in self.atomic.values() if b.owners},
        )


class _EdgeBuilder:
    """Collects the cells of one edge column."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.owners: list[int] = []
        self.raw: list[bytes] = []

    def add(self, owner: int, raw: bytes) -> None:
        self.owners.append(owner)
        self.raw.append(raw)

    def finish(self) -> EdgeCells:
        counts = [len(raw) // (2 * ID_BYTES) for raw in self.raw]
        return EdgeCells(np.repeat(np.array(self.owners, np.int64), counts), _uint64(self.raw).reshape(-1, 2))


def _raw_ids(node: int, column: ColumnKey, value: bytes, unit: int = ID_BYTES) -> bytes:
    """Uncompressed bytes of a cell; a cell is compressed if it begins with the zstd magic, and parents never are."""
    try:
        raw = columns.CHILDREN.codec.raw(value) if column != columns.PARENT.key else value
    except CorruptionError as error:
        raise _broken_cell(node, column, error.message) from error
    if len(raw) % unit:
        raise _broken_cell(node, column, f"{len(raw)} bytes are not whole ids.")
    return raw


def _broken_cell(node: int, column: ColumnKey, why: str) -> CorruptionError:
    name = column.qualifier.decode()
    return CorruptionError(f"the cell `{name}` of node {node} cannot be read: {why}", remedy="Write the row again.")


def _uint64(cells: list[bytes]) -> UInt64Array:
    return np.frombuffer(b"".join(cells), "<u8").astype(np.uint64, copy=False)
