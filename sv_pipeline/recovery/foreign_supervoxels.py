"""Finds supervoxels that other software has half replaced, and the mutations that restore their rows. Reads only.

That software writes its rows in no fixed order, and not all of them name the operation or have its timestamp::

    new supervoxel    parents                  copies of all cells of the old one, with their timestamps
                      former_ids, operation_id name the old supervoxel and the operation
    old supervoxel    new_ids                  names the new supervoxels
    layer 2 nodes     children                 every list with the old one, overwritten in place, with its timestamp
    edges of edits    split_edges, ...         edges of the new supervoxels

So each of these cells alone identifies a new supervoxel. A new one that has nothing but copied parents can only be told
from an old one by the voxels from before the operation. The old supervoxels are those that a node's list lacks although
they name the node as a parent. The chunks of the operation are locked, so no other operation has replaced a supervoxel
there since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sv_pipeline.algorithms.components import find
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.ids import UInt64Array
from sv_pipeline.operations.writing import Scope
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import Change, DeleteCells, RowKeyRange, RowMutation, RowView

__all__ = ["supervoxel_changes"]

_EDGES_OF_EDITS: tuple[tuple[columns.ArrayColumn[Any], ...], ...] = (
    (columns.SPLIT_EDGES, columns.AFFINITIES, columns.AREAS),
    (columns.COMPACTED_SPLIT_EDGES, columns.COMPACTED_AFFINITIES, columns.COMPACTED_AREAS),
)


def supervoxel_changes(
    graph: ChunkedGraph, operation_id: int, scope: Scope, before: Callable[[UInt64Array], UInt64Array]
) -> list[RowMutation]:
    """Return the mutations that remove the supervoxels which an operation has made in the chunks of its scope.

    Parameters
    ----------
    before
        Given supervoxels, returns those that had voxels in their chunks before the operation.
    """
    if not scope.chunks:
        return []
    layout, chunks = graph.layout, np.array(scope.chunks, np.uint64)
    ranges = keys.chunk_ranges(layout, layout.chunk_ids(1, layout.coordinates(chunks)))
    ranges += keys.chunk_ranges(layout, chunks)
    ranges += [RowKeyRange(key, key + b"\x00") for key in keys.edit_edge_keys(chunks)]
    rows = dict(graph.table.scan(ranges))
    nodes = {int(key): row for key, row in rows.items() if key.isdigit()}
    layers = dict(zip(nodes, layout.layers(np.array([*nodes], np.uint64)).tolist(), strict=True))
    found = _Chunks(
        operation_id,
        scope.timestamp,
        {i: row for i, row in nodes.items() if layers[i] == 1},
        {i: row for i, row in nodes.items() if layers[i] == 2},
        before,
    )
    made = found.made
    changes: list[tuple[bytes, list[Change]]] = [
        (keys.node_key(i), [DeleteCells()]) for i in sorted(made) if i in found.supervoxels
    ]
    changes += [(keys.node_key(i), [*found.of_old(row)]) for i, row in found.supervoxels.items() if i not in made]
    changes += [(keys.node_key(i), [*found.of_node(i, row)]) for i, row in found.nodes.items()]
    changes += [(key, [*found.of_edges(row)]) for key, row in rows.items() if not key.isdigit()]
    return [RowMutation(key, some) for key, some in changes if some]


@dataclass(eq=False)
class _Chunks:
    """All rows of the chunks of one operation; ``timestamp`` is that of the operation, in milliseconds."""

    operation_id: int
    timestamp: int
    supervoxels: dict[int, RowView]
    nodes: dict[int, RowView]
    before: Callable[[UInt64Array], UInt64Array]

    @cached_property
    def made(self) -> set[int]:
        """New supervoxels, including those without a row of their own."""
        made = {i for i, row in self.supervoxels.items() if self._names_it(row)}
        for row in self.supervoxels.values():
            for at, successors in columns.NEW_IDS.history(row):
                if at >= self.timestamp:
                    made.update(successors.tolist())
        listed = {i for of in self._lists.values() for i in of}
        made |= {i for i in listed if i not in self.supervoxels}
        return made | self._without_voxels(made)

    @cached_property
    def _lists(self) -> dict[int, set[int]]:
        """All children, past or present, of each node that existed before the operation."""
        return {
            node: {i for at, ids in columns.CHILDREN.history(row) if at < self.timestamp for i in ids.tolist()}
            for node, row in self.nodes.items()
        }

    @cached_property
    def _missing(self) -> set[int]:
        """Supervoxels that a node's list lacks although they name the node as a parent and were not split before."""
        missing = set()
        for i, row in self.supervoxels.items():
            retired = any(at < self.timestamp for at, _ in columns.NEW_IDS.history(row))
            parents = {parent for at, parent in columns.PARENT.history(row) if at < self.timestamp}
            if not retired and any(i not in self._lists.get(parent, {i}) for parent in parents):
                missing.add(i)
        return missing

    def _without_voxels(self, made: set[int]) -> set[int]:
        """Return new supervoxels that only voxels tell from old ones, among missing supervoxels and their siblings."""
        unlisted = self._missing - made
        doubtful = set(unlisted)
        for node in {parent for i in unlisted for parent in self._parents(i)}:
            doubtful |= self._lists.get(node, set()) - made
        if not doubtful:
            return set()
        ids = np.array(sorted(doubtful), np.uint64)
        return {*ids[~np.isin(ids, self.before(ids))].tolist()}

    def _parents(self, supervoxel: int) -> set[int]:
        return {parent for _, parent in columns.PARENT.history(self.supervoxels[supervoxel])}

    @cached_property
    def _made_array(self) -> UInt64Array:
        return np.array(sorted(self.made), np.uint64)

    def _names_it(self, row: RowView) -> bool:
        is_piece = any(at >= self.timestamp for at, _ in columns.FORMER_IDS.history(row))
        return self.operation_id in [i for _, i in columns.OPERATION_ID.history(row)] or is_piece

    @cached_property
    def _members(self) -> dict[int, set[int]]:
        """Supervoxels that existed before the operation, by each node that they name as a parent."""
        members: dict[int, set[int]] = {}
        for i, row in self.supervoxels.items():
            if i not in self.made and not any(at < self.timestamp for at, _ in columns.NEW_IDS.history(row)):
                for _, parent in columns.PARENT.history(row):
                    members.setdefault(parent, set()).add(i)
        return members

    def of_old(self, row: RowView) -> Iterator[Change]:
        """Yield the changes of an old supervoxel's row: the cells that name its pieces are removed."""
        for cell in columns.NEW_IDS.cells(row):
            if cell.timestamp >= self.timestamp:
                yield DeleteCells(columns.NEW_IDS.key, cell.timestamp)

    def of_node(self, node: int, row: RowView) -> Iterator[Change]:
        """Yield the changes of a layer 2 node's row: its lists get the old supervoxels, with the same timestamps."""
        for cell in columns.CHILDREN.cells(row):
            children = columns.CHILDREN.decode(cell.value)
            its = find(self._made_array, children) >= 0
            if cell.timestamp < self.timestamp and its.any():
                before = {*children[~its].tolist()} | self._members.get(node, set())
                yield columns.CHILDREN.set(np.array(sorted(before), np.uint64), cell.timestamp)

    def of_edges(self, row: RowView) -> Iterator[Change]:
        """Yield the changes of a row of edges: cells with the operation's timestamp or its supervoxels are removed."""
        for pairs, affinities, areas in _EDGES_OF_EDITS:
            cells = [column.cells(row) for column in (pairs, affinities, areas)]
            # The three cells of one write may differ by milliseconds, so they are matched by their order.
            together = len({len(some) for some in cells}) == 1
            for at, cell in enumerate(cells[0]):
                its_own = (find(self._made_array, pairs.decode(cell.value)) >= 0).any()
                if cell.timestamp != self.timestamp and not its_own:
                    continue
                for column, some in zip((pairs, affinities, areas), cells, strict=True):
                    for one in [some[at]] if together else [c for c in some if c.timestamp == cell.timestamp]:
                        yield DeleteCells(column.key, one.timestamp)
