"""The input of layer 2, read chunk by chunk: the supervoxels of a chunk and its active edges. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import find
from sv_pipeline.algorithms.edges import Edges
from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.graph.edge_files import (
    ChunkEdges,
    Components,
    components_key,
    decode_components,
    decode_edges,
    edges_key,
)
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.isolated import stream_supervoxels
from sv_pipeline.storage import kv
from sv_pipeline.storage.compressed_files import read_files

__all__ = ["ChunkAtoms", "active_edges", "read_atoms"]

IntArray = npt.NDArray[np.int64]

FILES_AT_ONCE = 16
"""Largest number of chunks whose files are read concurrently."""
SHARE_OF_FILES = 16
"""Files that wait to be decoded take this part of the budget at most, if they are not larger than those before."""


@dataclass(frozen=True, eq=False)
class ChunkAtoms:
    """Supervoxels and active atomic edges of one chunk."""

    supervoxels: UInt64Array
    """Distinct supervoxel ids of the chunk, ascending."""
    inner: UInt64Array
    """Active edges inside the chunk, shape (n, 2)."""
    outer: UInt64Array
    """Active edges that leave the chunk, the first end inside it, shape (n, 2); an edge may occur twice."""


def read_atoms(
    graph: ChunkedGraph, coordinates: npt.ArrayLike, *, look_into_voxels: bool, budget: int
) -> Iterator[ChunkAtoms]:
    """Read chunks, one at a time as they are asked for; only a few undecoded files are read ahead.

    Parameters
    ----------
    coordinates
        Layer 2 chunk coordinates, shape (n, 3).
    look_into_voxels
        Whether to search the voxels for supervoxels that no file names.
    budget
        Memory of the work that this is a part of, in bytes; files and voxels that are read ahead take a small share.

    Raises
    ------
    InputError
        If a file is broken, or names supervoxels that do not belong to its chunk.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    voxels = stream_supervoxels(graph, coords, budget=budget) if look_into_voxels else None
    for coordinate, edge_file, component_file in _read_files(graph, coords, budget):
        edges, components = _decode(graph, coordinate, edge_file, component_file)
        seen = None if voxels is None else next(voxels)
        _refuse_strangers(graph, coordinate, edges, components, seen)
        yield _atoms(graph, coordinate, edges, components, seen)


def _read_files(
    graph: ChunkedGraph, coordinates: IntArray, budget: int
) -> Iterator[tuple[IntArray, bytes | None, bytes | None]]:
    """Yield the coordinate of each chunk with its edge and component file, None for those that do not exist."""
    start, n, largest = 0, 1, 1
    while start < len(coordinates):
        here = coordinates[start : start + n]
        edges = read_files(kv.as_url(graph.edges_url), [edges_key(c) for c in here])
        components = read_files(kv.as_url(graph.components_url), [components_key(c) for c in here])
        largest = max(largest, *(len(a or b"") + len(b or b"") for a, b in zip(edges, components, strict=True)))
        start += n
        n = int(np.clip(budget // SHARE_OF_FILES // largest, 1, FILES_AT_ONCE))
        # Each file is let go when it is decoded.
        edges.reverse()
        components.reverse()
        for coordinate in here:
            yield coordinate, edges.pop(), components.pop()


def _decode(
    graph: ChunkedGraph, coordinate: IntArray, edge_file: bytes | None, component_file: bytes | None
) -> tuple[ChunkEdges, Components]:
    edges, components = ChunkEdges(), list[UInt64Array]()
    if edge_file is not None:
        where = f"{graph.edges_url}{edges_key(coordinate)}"
        edges = decode_edges(edge_file, where=where, layout=graph.layout, coordinate=coordinate)
    if component_file is not None:
        where = f"{graph.components_url}{components_key(coordinate)}"
        components = decode_components(component_file, where=where)
    return edges, components


def _atoms(
    graph: ChunkedGraph, coordinate: IntArray, edges: ChunkEdges, components: Components, seen: UInt64Array | None
) -> ChunkAtoms:
    layout = graph.layout
    active = active_edges(edges, components)
    named = np.concatenate([np.zeros(0, np.uint64), *components])
    here = named[layout.chunks(named) == layout.chunk_ids(1, coordinate)]
    every = edges.in_, edges.between, edges.cross
    parts = [here, edges.in_.node_ids2, *(e.node_ids1 for e in every), *([] if seen is None else [seen])]
    ids = np.unique(np.concatenate(parts))
    outer = np.concatenate([active.between.pairs, active.cross.pairs])
    return ChunkAtoms(ids[layout.segments(ids) != 0], active.in_.pairs, outer)


def _refuse_strangers(
    graph: ChunkedGraph, coordinate: IntArray, edges: ChunkEdges, components: Components, seen: UInt64Array | None
) -> None:
    """Raise InputError if a file names a supervoxel outside the volume, or one that its chunk's voxels do not hold."""
    pairs = np.concatenate([part.pairs for part in (edges.in_, edges.between, edges.cross)])
    named = np.concatenate([pairs.ravel(), *components])
    outside = np.asarray((graph.layout.coordinates(named) >= np.asarray(graph.grid.shape(2))).any(axis=1))
    here = graph.layout.chunks(named) == graph.layout.chunk_ids(1, coordinate)
    unseen = here & ~np.isin(named, seen) if seen is not None else np.zeros(len(named), np.bool_)
    strange = np.flatnonzero(outside | (unseen & (graph.layout.segments(named) != 0)))
    if not len(strange):
        return
    first = int(strange[0])
    in_edges = first < pairs.size
    key = edges_key(coordinate) if in_edges else components_key(coordinate)
    url = graph.edges_url if in_edges else graph.components_url
    edge = "" if not in_edges else " of edge {} - {}".format(*pairs[first // 2].tolist())
    where = "outside the volume" if outside[first] else f"not in the voxels of chunk {tuple(coordinate.tolist())}"
    raise InputError(
        f"{url}{key}: supervoxel {int(named[first])}{edge} is {where}.",
        remedy="Check that the edge and component files belong to this watershed volume, or make them again.",
    )


def active_edges(edges: ChunkEdges, components: Components) -> ChunkEdges:
    """Select the active edges of a chunk: those with both ends in one component, and all cross edges."""
    ids = np.concatenate([np.zeros(0, np.uint64), *components])
    labels = np.repeat(np.arange(len(components)), [len(c) for c in components])
    ids, first = np.unique(ids, return_index=True)
    labels = labels[first]

    def same(part: Edges) -> Edges:
        one, other = find(ids, part.node_ids1), find(ids, part.node_ids2)
        keep = (one >= 0) & (other >= 0)
        keep[keep] = labels[one[keep]] == labels[other[keep]]
        return part.take(keep)

    return ChunkEdges(same(edges.in_), same(edges.between), edges.cross)
