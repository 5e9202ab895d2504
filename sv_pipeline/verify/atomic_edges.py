"""All atomic edges of a graph as arrays, read from edge files, component files and edit rows.

This module judges only whether the files can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import InputError
from sv_pipeline.graph import edge_files as formats
from sv_pipeline.grid import ChunkGrid
from sv_pipeline.ids import IdLayout, UInt64Array
from sv_pipeline.table import columns, keys
from sv_pipeline.table.interface import RowKeyRange, Table
from sv_pipeline.verify.snapshot import Snapshot

__all__ = [
    "BETWEEN",
    "CROSS",
    "EDITED",
    "IN",
    "ActiveEdges",
    "AtomicEdges",
    "activate",
    "join_edges",
    "no_edges",
    "read_atomic_edges",
]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

IN, BETWEEN, CROSS, EDITED = range(4)
"""Kinds of edges: the three of an edge file, and edges of edit rows."""

FILES_PER_READ = 512
Content = TypeVar("Content")


@dataclass(frozen=True)
class BrokenFile:
    """An edge or component file that cannot be used."""

    name: str
    message: str
    chunk: int
    """Id of its chunk at layer 1."""


@dataclass(frozen=True)
class AtomicEdges:
    """Edges as they are stored; all arrays have shape (n,) except ``pairs``."""

    pairs: UInt64Array
    """Supervoxel ids, shape (n, 2)."""
    affinities: npt.NDArray[np.float32]
    areas: UInt64Array
    kinds: npt.NDArray[np.int8]
    files: UInt64Array
    """Chunk id (layer 1) of the file that holds the edge."""
    together: BoolArray
    """Whether the edge was active at ingest: a component of the chunk holds both ends, or it is a cross edge."""
    broken: tuple[BrokenFile, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, at: BoolArray | IntArray) -> AtomicEdges:
        """Return some of the edges: those of a mask, or of indices; ``broken`` stays."""
        return AtomicEdges(
            self.pairs[at],
            self.affinities[at],
            self.areas[at],
            self.kinds[at],
            self.files[at],
            self.together[at],
            self.broken,
        )


def read_atomic_edges(
    table: Table,
    layout: IdLayout,
    grid: ChunkGrid,
    edges_url: str,
    components_url: str,
    *,
    coordinates: IntArray | None = None,
) -> AtomicEdges:
    """Read edge and component files, and the fake and split edges of edit rows.

    Parameters
    ----------
    coordinates
        Coordinates of the layer 2 chunks to read, (x, y, z), shape (n, 3); None = all.
    """
    collected: list[AtomicEdges] = []
    broken: list[BrokenFile] = []
    ranges = [keys.prefix_range(b"f")]
    if coordinates is None:
        coordinates = grid.coordinates(2)
    else:
        row_keys = sorted(keys.edit_edge_keys(layout.chunk_ids(2, coordinates)))
        ranges = [RowKeyRange(key, key + b"\x00") for key in row_keys]
    for start in range(0, len(coordinates), FILES_PER_READ):
        some = coordinates[start : start + FILES_PER_READ]
        read_edges, read_components = formats.read_edges_many, formats.read_components_many
        edge_files = _readable(read_edges, formats.edges_key, edges_url, layout, some, formats.ChunkEdges(), broken)
        none: formats.Components = []
        component_files = _readable(read_components, formats.components_key, components_url, layout, some, none, broken)
        for coordinate, edges, components in zip(some, edge_files, component_files, strict=True):
            chunk = int(layout.chunk_ids(1, coordinate))
            collected.append(_of_file(edges, components, chunk))
    collected.extend(_edit_rows(table, ranges))
    return join_edges(collected or [no_edges()], tuple(broken))


def _readable(
    read: Callable[[str, IntArray], list[Content]],
    name: Callable[[npt.ArrayLike], str],
    url: str,
    layout: IdLayout,
    coordinates: IntArray,
    empty: Content,
    broken: list[BrokenFile],
) -> list[Content]:
    """What ``read`` returns for each coordinate; a file that it rejects counts as empty and is added to ``broken``."""
    try:
        return read(url, coordinates)
    except InputError:
        pass
    found = []
    for coordinate in coordinates:
        try:
            found.append(read(url, coordinate[None])[0])
        except InputError as error:
            broken.append(BrokenFile(name(coordinate), str(error), int(layout.chunk_ids(1, coordinate))))
            found.append(empty)
    return found


def _of_file(edges: formats.ChunkEdges, components: formats.Components, chunk: int) -> AtomicEdges:
    parts = [(edges.in_, IN), (edges.between, BETWEEN), (edges.cross, CROSS)]
    pairs = np.concatenate([np.stack([part.node_ids1, part.node_ids2], axis=-1) for part, _ in parts])
    kinds = np.repeat(np.array([kind for _, kind in parts], np.int8), [len(part) for part, _ in parts])
    return AtomicEdges(
        pairs=pairs,
        affinities=np.concatenate([part.affinities for part, _ in parts]),
        areas=np.concatenate([part.areas for part, _ in parts]),
        kinds=kinds,
        files=np.full(len(pairs), chunk, np.uint64),
        together=(kinds == CROSS) | _same_component(pairs, components),
    )


def _same_component(pairs: UInt64Array, components: formats.Components) -> BoolArray:
    if not components or not len(pairs):
        return np.zeros(len(pairs), np.bool_)
    members = np.concatenate(components)
    number = np.repeat(np.arange(len(components)), [len(part) for part in components])
    order = np.argsort(members, kind="stable")
    members, number = members[order], number[order]
    at = np.minimum(np.searchsorted(members, pairs), len(members) - 1)
    found = (members[at] == pairs).all(axis=-1)
    return np.asarray(found & (number[at[:, 0]] == number[at[:, 1]]))


def _edit_rows(table: Table, ranges: list[RowKeyRange]) -> Iterator[AtomicEdges]:
    """Edges that merges added and supervoxel splits rerouted, from all cells, since each cell holds its own edges."""
    fake = (columns.FAKE_EDGES, columns.OLD_FAKE_EDGES)
    split = [columns.SPLIT_EDGES.key, columns.AFFINITIES.key, columns.AREAS.key]
    wanted = [column.key for column in fake] + split
    for key, row in table.scan(ranges, wanted):
        chunk = int(key[1:])
        for column in fake:
            for _, pairs in column.history(row):
                tiny = np.full(len(pairs), np.finfo(np.float32).tiny)
                yield _of_edit(pairs, tiny, np.zeros(len(pairs), np.uint64), chunk)
        groups = columns.side_by_side(row, columns.SPLIT_EDGES, columns.AFFINITIES, columns.AREAS)
        if groups is None:  # readers report the damage; that the pairs are edges is certain
            groups = [
                (pairs, np.zeros(len(pairs), np.float32), np.zeros(len(pairs), np.uint64))
                for _, pairs in columns.SPLIT_EDGES.history(row)
            ]
        for pairs, affinities, areas in groups:
            yield _of_edit(pairs, affinities, areas, chunk)


def no_edges() -> AtomicEdges:
    """Return edges of shape (0,)."""
    pairs, ids = np.zeros((0, 2), np.uint64), np.zeros(0, np.uint64)
    return AtomicEdges(pairs, np.zeros(0, np.float32), ids, np.zeros(0, np.int8), ids, np.zeros(0, np.bool_))


def _of_edit(pairs: UInt64Array, affinities: npt.NDArray[np.float32], areas: UInt64Array, chunk: int) -> AtomicEdges:
    return AtomicEdges(
        pairs=pairs,
        affinities=affinities.astype(np.float32, copy=False),
        areas=areas,
        kinds=np.full(len(pairs), EDITED, np.int8),
        files=np.full(len(pairs), chunk, np.uint64),
        together=np.zeros(len(pairs), np.bool_),
    )


def join_edges(parts: list[AtomicEdges], broken: tuple[BrokenFile, ...] = ()) -> AtomicEdges:
    """Join edges from several places, of which there is at least one."""
    return AtomicEdges(
        pairs=np.concatenate([part.pairs for part in parts]),
        affinities=np.concatenate([part.affinities for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        files=np.concatenate([part.files for part in parts]),
        together=np.concatenate([part.together for part in parts]),
        broken=broken,
    )


# -- activity -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActiveEdges:
    """Edges between live leaves, each once in both directions; ends are indices into the snapshot."""

    first: IntArray
    second: IntArray
    layers: IntArray
    """Cross layer of each edge."""
    joined: BoolArray
    """Whether the edge is active by the hierarchy: both ends share the ancestor one layer above their cross layer."""
    due: BoolArray
    """Whether the edge should be active by the graph's input; the same as ``joined`` under a root that an edit made."""
    infinite: BoolArray
    """Whether the edge has affinity inf, so that its ends must not be cut from each other."""

    @cached_property
    def sure(self) -> BoolArray:
        """Whether the edge is active by both measures."""
        return self.joined & self.due


def activate(nodes: Snapshot, edges: AtomicEdges) -> ActiveEdges:
    """Select the edges between live leaves and determine which of them are active.

    An atomic edge of cross layer ``l`` is active if and only if both ends share the ancestor at layer ``l + 1``. Under
    roots that no edit made, the components of the ingest independently say which edges are active.
    """
    count = len(nodes.ids)
    live = np.zeros(count + 1, np.bool_)
    live[nodes.leaves] = True
    ends = nodes.find(edges.pairs)
    # Index NONE is -1: the last entry, which is never live.
    kept = live[ends].all(axis=-1) & (ends[:, 0] != ends[:, 1])
    ends, together = ends[kept], (edges.together & (edges.kinds != EDITED))[kept]
    edited = (edges.kinds == EDITED)[kept]
    # The same rule as in cuts: in edge files, only cross edges can be uncuttable, whatever their affinity.
    infinite = ((edges.affinities == np.inf) & np.isin(edges.kinds, (CROSS, EDITED)))[kept]

    both = np.concatenate([ends, ends[:, ::-1]])
    key = both[:, 0] * count + both[:, 1]
    unique, where = np.unique(key, return_inverse=True)
    first, second = np.divmod(unique, max(count, 1))

    def any_of(flags: BoolArray) -> BoolArray:
        return np.bincount(where, weights=np.tile(flags, 2), minlength=len(unique)) > 0

    layers = nodes.layout.cross_layers(nodes.ids[first], nodes.ids[second])
    ancestors = nodes.ancestors
    joined = np.zeros(len(unique), np.bool_)
    for layer in range(1, nodes.layout.n_layers):
        at = layers == layer
        above = ancestors[layer + 1]
        joined[at] = above[first[at]] == above[second[at]]
    roots = ancestors[nodes.layout.n_layers]
    touched = nodes.edited[roots[first]] | nodes.edited[roots[second]] | any_of(edited)
    due = np.where(touched, joined, any_of(together))
    return ActiveEdges(first, second, layers, joined, due, any_of(infinite))
