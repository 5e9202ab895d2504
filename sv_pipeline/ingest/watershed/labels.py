"""Pass A: the supervoxels of each chunk. Owns the chunk's segment table; does not look beyond the chunk."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.supervoxels import ChunkPieces, label_pieces
from sv_pipeline.errors import InputError, NotReadyError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.plan import Stage, WatershedPlan
from sv_pipeline.segmentation import kv
from sv_pipeline.segmentation.precomputed import open_volume

__all__ = ["SegmentTable", "label_chunk", "read_tables", "run_label_batch"]


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """What pass A leaves of one chunk for later passes."""

    labels: UInt64Array
    """Source label of segment i + 1, shape (n,)."""
    voxel_counts: UInt64Array
    """Voxels of segment i + 1, shape (n,)."""
    overlap_labels: UInt64Array
    overlap_objects: UInt64Array
    overlap_counts: UInt64Array
    """Voxels that a label shares with an object of the agglomeration volume, shape (m,); empty without one."""

    def encode(self) -> bytes:
        """Bytes of the table's file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> SegmentTable:
        """Table out of the bytes of its file."""
        with np.load(io.BytesIO(data)) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def run_label_batch(plan: WatershedPlan, coordinates: npt.ArrayLike) -> None:
    """Pass A for some chunks, coordinates of shape (n, 3); each may be run again at any time."""
    for coordinate in np.asarray(coordinates, np.int64).reshape(-1, 3):
        label_chunk(plan, coordinate)


def label_chunk(plan: WatershedPlan, coordinate: npt.ArrayLike) -> SegmentTable:
    """Write the supervoxels of one chunk, then its segment table, which is the done-marker.

    Raises
    ------
    InputError
        If the source holds negative labels here, or more pieces than the segment bits can number.
    """
    box = plan.grid.box(2, coordinate)
    labels = plan.source.read(box)
    if labels.dtype.kind == "i" and int(labels.min(initial=0)) < 0:
        raise InputError(f"{plan.source.name} holds negative labels in {box}.")
    pieces = label_pieces(labels)
    _check_room(plan, coordinate, pieces)
    chunk_id = plan.layout.chunk_ids(1, coordinate)
    ids = np.where(pieces.segments == 0, np.uint64(0), plan.layout.node_ids(chunk_id, pieces.segments))
    open_volume(plan.target, writable=True)[box.slices].write(ids).result()
    overlaps: tuple[npt.NDArray[Any], ...] = (np.empty(0, np.uint64),) * 3
    table = SegmentTable(pieces.labels, pieces.voxel_counts, *overlaps)
    kv.write_bytes(plan.target, plan.marker(Stage.LABELS, coordinate), table.encode())
    return table


def _check_room(plan: WatershedPlan, coordinate: npt.ArrayLike, pieces: ChunkPieces) -> None:
    room = plan.layout.max_segment(1)
    if len(pieces.labels) > room:
        raise InputError(
            f"chunk {tuple(np.asarray(coordinate).tolist())} holds {len(pieces.labels)} supervoxels; "
            f"its ids have room for {room}.",
            remedy="Lower CHUNK_SIZE or SPATIAL_BITS.",
        )


def read_tables(plan: WatershedPlan, coordinates: npt.ArrayLike) -> list[SegmentTable]:
    """Segment tables of chunks, coordinates of shape (n, 3), read concurrently.

    Raises
    ------
    NotReadyError
        If pass A has not finished one of them.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    found = kv.read_many(plan.target, [plan.marker(Stage.LABELS, c) for c in coords])
    missing = [tuple(c.tolist()) for c, data in zip(coords, found, strict=True) if data is None]
    if missing:
        raise NotReadyError(
            f"the supervoxels of chunk {missing[0]} are not made yet.", remedy="Run the label pass of all chunks first."
        )
    return [SegmentTable.decode(data) for data in found if data is not None]
