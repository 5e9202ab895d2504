"""The supervoxels that occur in the voxels of chunks, whether or not an edge or component file names them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import fastremap
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import InputError
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.memory import memory_budget
from sv_pipeline.storage.precomputed import open_volume

__all__ = ["stream_supervoxels", "supervoxels_in_voxels"]

SHARE_OF_PIECE = 16
"""A piece of voxels takes this part of the budget at most, unless a single storage chunk is larger."""


def supervoxels_in_voxels(graph: ChunkedGraph, coordinates: npt.ArrayLike) -> list[UInt64Array]:
    """Return the distinct ids in the watershed's voxels of each chunk; see :func:`stream_supervoxels`."""
    return list(stream_supervoxels(graph, coordinates))


def stream_supervoxels(
    graph: ChunkedGraph, coordinates: npt.ArrayLike, *, budget: int | None = None
) -> Iterator[UInt64Array]:
    """Yield the distinct ids in the watershed's voxels of each chunk, ascending and without background.

    A chunk is searched in pieces. Two pieces are in memory at a time: one is read while the other is searched.

    Parameters
    ----------
    coordinates
        Layer 2 chunk coordinates, shape (n, 3).
    budget
        Memory of the work that this is a part of, in bytes, of which the pieces take a share. Default: that of the
        environment.

    Raises
    ------
    InputError
        If a chunk holds an id that belongs to another chunk or is no supervoxel.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    volume = open_volume(graph.watershed_url)
    storage_chunk = np.asarray(volume.chunk_layout.read_chunk.shape or (1, 1, 1))[:3]
    room = (memory_budget() if budget is None else budget) // SHARE_OF_PIECE // 8
    pieces = [(i, p) for i, c in enumerate(coords) for p in graph.grid.box(2, c).slabs(storage_chunk, room)]
    found = _read_ahead(volume, [piece for _, piece in pieces])
    for i, parts in itertools.groupby(zip(pieces, found, strict=True), key=lambda pair: pair[0][0]):
        every = [_distinct(graph, coords[i], piece, voxels) for (_, piece), voxels in parts]
        yield np.unique(np.concatenate(every))


def _distinct(graph: ChunkedGraph, coordinate: npt.NDArray[np.int64], box: Box, voxels: UInt64Array) -> UInt64Array:
    ids: UInt64Array = np.asarray(fastremap.unique(voxels), np.uint64)
    ids = ids[ids != 0]
    strange = ids[graph.layout.chunks(ids) != graph.layout.chunk_ids(1, coordinate)]
    if len(strange):
        raise InputError(
            f"the watershed volume {graph.watershed_url} holds id {strange[0]} in {box}, where chunk "
            f"{tuple(coordinate.tolist())} is, but the id belongs to another chunk or is not a supervoxel.",
            remedy="Check that CHUNK_SIZE and SPATIAL_BITS belong to this volume, or make the watershed again.",
        )
    return ids


def _read_ahead(volume: ts.TensorStore, boxes: Sequence[Box]) -> Iterator[UInt64Array]:
    """Yield the voxels of each box, while the next box is being read."""
    pending: deque[Any] = deque()
    for box in boxes:
        pending.append(volume[box.slices].read())
        if len(pending) > 1:
            yield np.asarray(pending.popleft().result())
    while pending:
        yield np.asarray(pending.popleft().result())
