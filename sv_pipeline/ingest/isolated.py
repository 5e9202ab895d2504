"""Supervoxels that are in the voxels of chunks, whether or not an edge or component file names them."""

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
    """Distinct ids in the watershed's voxels of each chunk, ascending, without background; coordinates (n, 3).

    Holds the voxels of two chunks at a time: one is read while the other is looked through.

    Raises
    ------
    InputError
        If a chunk holds an id that belongs elsewhere.
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
                f"{tuple(coordinate.tolist())} is, but the id belongs to another chunk or is no supervoxel.",
                remedy="Check that CHUNK_SIZE and SPATIAL_BITS belong to this volume, or make the watershed again.",
            )
        result.append(ids)
    return result


def _read_ahead(volume: ts.TensorStore, boxes: Sequence[Box]) -> Iterator[UInt64Array]:
    """Voxels of boxes; the next is under way while one is in use."""
    pending: deque[Any] = deque()
    for box in boxes:
        pending.append(volume[box.slices].read())
        if len(pending) > 1:
            yield np.asarray(pending.popleft().result())
    while pending:
        yield np.asarray(pending.popleft().result())
