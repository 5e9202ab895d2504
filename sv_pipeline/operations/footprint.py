"""Finds the rows that an edit of other software has written so far, without a list of them. Reads only.

Such software says only which objects it edits, and when. It writes its rows in no order, so that any part of them may
be there. All of its cells carry its logical time T, except cross edges of neighbours, which are a moment later. So::

    roots of T - 1 ms --children of T - 1 ms--> old nodes near the points --cells since T--> new nodes
                                                 |      ^                                      |
                                                 |      +--------- their cross edges ----------+
                                                 +--> chunks at and above them: nodes made at T that nothing points to

A repair by that software writes at T + 1 ms. No other edit can write to these objects while they are locked. Where
they are not, cells that are later say that somebody has edited since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sv_pipeline.algorithms.components import find
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.layers import parent_chunks
from sv_pipeline.graph.queries import chunks_touch
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.log import Operation
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Cell, DeleteCells, RowMutation, RowView

__all__ = ["Footprint", "box_around", "read_footprint"]

REPAIR_MS = 1
"""A repair by the other software writes so many milliseconds after the time of the operation."""
DEFAULT_OFFSET = (240, 240, 24)
"""Voxels around the points of an edit within which the other software looks for edges, where its log names none."""
_CROSS_EDGES = b"cross_edges_"


@dataclass(frozen=True)
class Footprint:
    """The cells that an operation has written."""

    switched: tuple[RowMutation, ...] = ()
    """Mutations that delete its cells from rows that existed before it."""
    made: tuple[RowMutation, ...] = ()
    """Mutations that delete the rows of its new nodes."""
    edited_since: str = ""
    """Which of its nodes somebody else has edited since; empty if nobody has."""

    @property
    def removable(self) -> int:
        """Number of cells that a roll-back would remove: none where somebody else has edited since."""
        return 0 if self.edited_since else self.cells

    @cached_property
    def cells(self) -> int:
        """Number of cells, a new row counted as one."""
        return sum(len(mutation.changes) for mutation in (*self.switched, *self.made))


def box_around(graph: ChunkedGraph, operations: Iterable[Operation]) -> Box | None:
    """Voxels in which supervoxels can have changed their layer 2 node; None if the log names no points.

    Parameters
    ----------
    operations
        The operation, and those that it takes back or makes again.
    """
    points, offset = [], np.array(DEFAULT_OFFSET, np.int64)
    stored = graph.meta.custom_data.get("split_bounding_offset")
    offset = offset if stored is None else np.maximum(offset, np.asarray(stored, np.int64))
    for operation in operations:
        for column in (columns.SOURCE_COORDINATES, columns.SINK_COORDINATES):
            found = column.newest(operation.row)
            points += [] if found is None else [found.reshape(-1, 3)]
        margin = columns.BOUNDING_BOX_OFFSET.newest(operation.row)
        if margin is not None and margin.size == 3:
            offset = np.maximum(offset, np.abs(margin.ravel()))
    every = np.concatenate(points) if points else np.zeros((0, 3), np.int64)
    if not len(every):
        return None
    margin = offset + np.asarray(graph.grid.chunk_size)  # edges are read by whole chunks
    return Box.of(every.min(axis=0) - margin, every.max(axis=0) + margin + 1)


def read_footprint(
    graph: ChunkedGraph,
    operation_id: int,
    timestamp: int,
    roots: Iterable[int],
    *,
    box: Box | None = None,
    users_edges: UInt64Array | None = None,
) -> Footprint:
    """Find the cells that an operation has written.

    Parameters
    ----------
    timestamp
        Its logical time, milliseconds.
    roots
        Of all objects that it edits, as of the moment before.
    box
        Voxels in which it can have changed supervoxels; None = anywhere in these objects.
    users_edges
        Edges that its log names as added, shape (n, 2): they may stand in rows of edits.
    """
    search = _FootprintSearch(graph, operation_id, timestamp, [*roots])
    search.descend(box)
    search.find_unreferenced()
    search.follow()
    return search.footprint(users_edges)


@dataclass(eq=False)
class _FootprintSearch:
    graph: ChunkedGraph
    operation_id: int
    timestamp: int
    roots: list[int]
    rows: dict[int, RowView] = field(default_factory=dict)
    """All rows that were read; those of nodes without a row are empty."""
    old: set[int] = field(default_factory=set)
    """Nodes of the objects as they were before the operation, supervoxels included."""
    new: set[int] = field(default_factory=set)
    """Nodes that the operation has made, or that cells of it name."""
    waiting: dict[int, set[int]] = field(default_factory=dict)
    """Nodes of its time that may be of another object, and the nodes that each names."""
    neighbours: set[int] = field(default_factory=set)
    """Nodes that edges of old nodes lead to, and those above them."""
    looked: set[int] = field(default_factory=set)
    """Rows of which all that their cells name was read."""

    def read(self, ids: Iterable[int]) -> None:
        unread = [i for i in ids if i not in self.rows]
        found = self.graph.table.read_rows(keys.node_keys(np.array(unread, np.uint64)))
        for i, key in zip(unread, keys.node_keys(np.array(unread, np.uint64)), strict=True):
            self.rows[i] = found.get(key, {})

    def is_its_time(self, at: int) -> bool:
        return self.timestamp <= at <= self.timestamp + REPAIR_MS

    # -- down the objects as they were ------------------------------------------------------------------------------

    def descend(self, box: Box | None) -> None:
        """Read the objects as they were before: nodes in the box, and the children of all nodes that reach into it."""
        layers = self.graph.layout.layers
        frontier = sorted({*self.roots})
        while frontier:
            self.read(frontier)
            self.old.update(frontier)
            below = np.unique(np.concatenate([np.zeros(0, np.uint64), *(self._children(i) for i in frontier)]))
            self.read(below.tolist())
            self.old.update(below.tolist())
            below = below[layers(below) > 1]
            if box is not None and len(below):
                below = below[chunks_touch(self.graph, below, box)]
            frontier = below.tolist()

    def _children(self, node: int) -> UInt64Array:
        before = [cell for cell in columns.CHILDREN.cells(self.rows[node]) if cell.timestamp < self.timestamp]
        return columns.CHILDREN.decode(before[0].value) if before else np.zeros(0, np.uint64)

    # -- new nodes that nothing points to ---------------------------------------------------------------------------

    def find_unreferenced(self) -> None:
        """Nodes of its time in the chunks of the objects and above, as far as they hang together with these objects.

        Any part of the row of a new node may be there: its children, its parent, its cross edges.
        """
        named = (columns.CHILDREN, columns.PARENT, columns.FORMER_PARENTS, columns.OPERATION_ID)
        wanted = [column.key for column in named]
        wanted += [columns.cross_edges(layer).key for layer in range(2, self.graph.n_layers)]
        ranges = keys.chunk_ranges(self.graph.layout, self._chunks())
        found = self.graph.table.scan(ranges, wanted, since=self.timestamp, until=self.timestamp + REPAIR_MS)
        candidates = {int(key) for key, _ in found} - self.old
        self.read(candidates)
        self.waiting = {node: self._linked(node) for node in candidates if self._is_new(node)}
        self.new |= {node for node in self.waiting if self._names_it(node)}

    def follow(self) -> None:
        """Nodes that its cells name, again and again, and the neighbours of old nodes with what is above them."""
        self._read_neighbours()
        self._follow()
        # Those that name only nodes without a row are of nobody's object: half written, or half taken back.
        self.read({other for others in self.waiting.values() for other in others})
        others_of = {n: others for n, others in self.waiting.items() if self._former_fits(n)}
        elsewhere = self.waiting.keys() - others_of.keys()
        elsewhere |= {n for n, others in others_of.items() if any(map(self._is_there, others - self.waiting.keys()))}
        while more := {n for n, others in others_of.items() if n not in elsewhere and others & elsewhere}:
            elsewhere |= more
        self.new |= others_of.keys() - elsewhere
        self._follow()

    def _is_there(self, node: int) -> bool:
        row = self.rows[node]
        return bool(row) and (node >> 56 <= 1 or columns.CHILDREN.key in row)

    def _follow(self) -> None:
        while True:
            before = len(self.new), len(self.rows)
            self.read(self.new)
            self._read_named()
            while its_own := {
                n for n, others in self.waiting.items() if n in self.new or others & (self.old | self.new)
            }:
                self.new |= its_own
                self.waiting = {n: others for n, others in self.waiting.items() if n not in its_own}
            if before == (len(self.new), len(self.rows)):
                return

    def _names_it(self, node: int) -> bool:
        made_by = columns.OPERATION_ID.history(self.rows[node])
        return any(i == self.operation_id and self.is_its_time(at) for at, i in made_by)

    def _linked(self, node: int) -> set[int]:
        """Nodes that a new node names."""
        row = self.rows[node]
        found = {*self._partners(node), *(parent for _, parent in columns.PARENT.history(row))}
        for _, ids in columns.CHILDREN.history(row):
            found.update(ids.tolist())
        return found

    def _former_fits(self, node: int) -> bool:
        former = columns.FORMER_PARENTS.newest(self.rows[node])
        return former is None or bool(np.isin(former, self.roots).any())

    def _chunks(self) -> UInt64Array:
        layout = self.graph.layout
        nodes = np.array(sorted(self.old), np.uint64)
        layers = np.maximum(layout.layers(nodes), 2)
        coordinates = layout.coordinates(nodes)
        coordinates[layers == self.graph.n_layers] = 0
        chunks = [np.zeros(0, np.uint64)]
        for layer in np.unique(layers).tolist():
            here = np.unique(coordinates[layers == layer], axis=0)
            for above in range(layer, self.graph.n_layers + 1):
                chunks.append(np.unique(parent_chunks(layout, here, layer, above)))
        return np.unique(np.concatenate(chunks))

    # -- along the cells that it has written ------------------------------------------------------------------------

    def _read_named(self) -> None:
        while ahead := (self.old | self.new | self.neighbours) - self.looked:
            self.looked |= ahead
            named = {i for node in ahead for i in self._named(node)}
            self.read(named | self.new)
            self.new |= {i for i in named - self.old - self.new if self._is_new(i)}
            self.read(self.new)

    def _read_neighbours(self) -> None:
        """Old nodes that edges lead to, and what is above them: their cross edges name the new nodes."""
        ahead = {i for node in self.old for i in self._partners(node)} - self.old
        while ahead:
            self.read(ahead)
            self.neighbours |= ahead
            ahead = {parent for node in ahead for parent in self._parents_before(node)} - self.old - self.neighbours

    def _partners(self, node: int) -> list[int]:
        found = []
        for column, cells in _cross_edges(self.rows[node]):
            before = [cell for cell in cells if cell.timestamp < self.timestamp][:1]
            since = [cell for cell in cells if cell.timestamp >= self.timestamp]
            found += [column.decode(cell.value)[:, 1] for cell in before + since]
        return np.unique(np.concatenate(found)).tolist() if found else []

    def _parents_before(self, node: int) -> list[int]:
        history = columns.PARENT.history(self.rows[node])
        return [parent for at, parent in history if at < self.timestamp][:1]

    def _named(self, node: int) -> set[int]:
        """Nodes that are named by cells of a row that are not older than the operation."""
        row = self.rows[node]
        found = {parent for at, parent in columns.PARENT.history(row) if self.is_its_time(at)}
        for named in (columns.NEW_PARENTS, columns.CHILDREN):
            found |= {i for at, ids in named.history(row) if self.is_its_time(at) for i in ids.tolist()}
        for column, cells in _cross_edges(row):
            for cell in cells:
                if cell.timestamp >= self.timestamp:
                    found.update(column.decode(cell.value)[:, 1].tolist())
        return {i for i in found if i >> 56 > 1}

    def _is_new(self, node: int) -> bool:
        cells = columns.CHILDREN.cells(self.rows[node])
        return all(self.is_its_time(cell.timestamp) for cell in cells)

    # -- what follows -------------------------------------------------------------------------------------------------

    def footprint(self, users_edges: UInt64Array | None) -> Footprint:
        """Its cells, and whether somebody else has written since."""
        new = np.array(sorted(self.new), np.uint64)
        switched = [(node, [*self._changes(node, new)]) for node in self.old | self.neighbours if node not in self.new]
        mutations = [RowMutation(keys.node_key(node), changes) for node, changes in switched if changes]
        mutations += self._edges_of_edits(users_edges)
        made = [RowMutation(keys.node_key(node), [DeleteCells()]) for node in sorted(self.new) if self.rows.get(node)]
        since = self._edited_since() if mutations or made else ""
        return Footprint(tuple(mutations), tuple(made), since)

    def _changes(self, node: int, new: UInt64Array) -> Iterable[DeleteCells]:
        row = self.rows[node]
        for column, cells in _cross_edges(row):
            for cell in cells:
                if cell.timestamp >= self.timestamp and (find(new, column.decode(cell.value)[:, 1]) >= 0).any():
                    yield DeleteCells(column.key, cell.timestamp)
        if node not in self.old:
            return
        of_root = (columns.NEW_PARENTS.key, columns.OPERATION_ID.key)
        for key in (columns.PARENT.key, *(of_root if node in self.roots else ())):
            for cell in row.get(key, []):
                its = key != columns.OPERATION_ID.key or columns.OPERATION_ID.decode(cell.value) == self.operation_id
                if its and self.is_its_time(cell.timestamp):
                    yield DeleteCells(key, cell.timestamp)

    def _edges_of_edits(self, users_edges: UInt64Array | None) -> list[RowMutation]:
        """A user's edge stands in the rows of the chunks of both of its ends, each direction in one."""
        if users_edges is None or not len(users_edges):
            return []
        layout, column = self.graph.layout, columns.FAKE_EDGES
        wanted = {tuple(pair) for pair in np.concatenate([users_edges, users_edges[:, ::-1]]).tolist()}
        chunks = np.unique(layout.chunk_ids(2, layout.coordinates(users_edges.ravel())))
        found = self.graph.table.read_rows(keys.edit_edge_keys(chunks), [column.key])
        changes = {
            key: [
                DeleteCells(column.key, at)
                for at, edges in column.history(row)
                if self.is_its_time(at) and {tuple(pair) for pair in edges.tolist()} <= wanted
            ]
            for key, row in found.items()
        }
        return [RowMutation(key, some) for key, some in changes.items() if some]

    def _edited_since(self) -> str:
        for node in sorted(self.old | self.new):
            row = self.rows.get(node, {})
            for column in (columns.PARENT, columns.NEW_PARENTS):
                for cell in column.cells(row):
                    if cell.timestamp > self.timestamp + REPAIR_MS:
                        what = "root" if column is columns.NEW_PARENTS else "node"
                        return f"{what} {node} was edited {cell.timestamp - self.timestamp:,} ms after it began"
        return ""


def _cross_edges(row: RowView) -> Iterator[tuple[columns.ArrayColumn[np.uint64], list[Cell]]]:
    """Yield the columns of cross edges in a row, with their cells."""
    for key, cells in row.items():
        if key.family == "4" and key.qualifier.startswith(_CROSS_EDGES):
            yield columns.cross_edges(int(key.qualifier.removeprefix(_CROSS_EDGES))), cells
