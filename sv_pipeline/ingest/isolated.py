"""The supervoxels that occur in the voxels of chunks, whether or not an edge or component file names them."""

from __future__ import annotations

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
from sv_pipeline.storage.precomputed import open_volume

__all__ = ["supervoxels_in_voxels"]


def supervoxels_in_voxels(graph: ChunkedGraph, coordinates: npt.ArrayLike) -> list[UInt64Array]:
    """Return the distinct ids in the watershed's voxels of each chunk, ascending and without background.

    The voxels of two chunks are in memory at a time: one is read while the other is searched.

    Parameters
    ----------
    coordinates
        Layer 2 chunk coordinates, shape (n, 3).

    Raises
    ------
    InputError
        If a chunk holds an id that belongs to another chunk or is no supervoxel.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    boxes = [graph.grid.box(2, coordinate) for coordinate in coords]
    result = []
    for coordinate, box, voxels in zip(
        coords, boxes, _read_ahead(open_volume(graph.watershed_url), boxes), strict=True
    ):
        ids = np.asarray(fastremap.unique(voxels), np.uint64)
        ids = ids[ids != 0]
        strange = ids[graph.layout.chunks(ids) != graph.layout.chunk_ids(1, coordinate)]
        if len(strange):
            raise InputError(
                f"the watershed volume {graph.watershed_url} holds id {strange[0]} in {box}, where chunk "
                f"{tuple(coordinate.tolist())} is, but the id belongs to another chunk or is not a supervoxel.",
                remedy="Check that CHUNK_SIZE and SPATIAL_BITS belong to this volume, or make the watershed again.",
            )
        result.append(ids)
    return result


def _read_ahead(volume: ts.TensorStore, boxes: Sequence[Box]) -> Iterator[UInt64Array]:
    """Yield the voxels of each box, while the next box is being read."""
    pending: deque[Any] = deque()
    for box in boxes:
        pending.append(volume[box.slices].read())
        if len(pending) > 1:
            yield np.asarray(pending.popleft().result())
    while pending:
        yield np.asarray(pending.popleft().result())
