"""Pass A: the supervoxels of each chunk. Owns the chunk's segment table; does not look beyond the chunk."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.supervoxels import label_overlaps, label_pieces
from sv_pipeline.errors import NotReadyError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.companions import check_labels
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, check_room
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_json import readable_file

__all__ = ["SegmentTable", "label_chunk", "read_tables", "run_label_batch"]

NO_LABELS: UInt64Array = np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """What pass A leaves of one chunk for later passes."""

    labels: UInt64Array
    """Source label of segment i + 1, shape (n,)."""
    voxel_counts: UInt64Array
    """Voxels of segment i + 1, shape (n,)."""
    surfaces: UInt64Array
    """Voxel faces of the surface of segment i + 1, shape (n,)."""
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
    def decode(cls, data: bytes, where: str) -> SegmentTable:
        """Table out of the bytes of its file; DamagedError names it."""
        with readable_file(where), np.load(io.BytesIO(data)) as arrays:
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
    check_labels(labels, f"{plan.source.name} ({box})")
    pieces = label_pieces(labels)
    check_room(len(pieces.labels), plan.layout.max_segment(1), coordinate)
    overlaps: tuple[UInt64Array, UInt64Array, UInt64Array] = (NO_LABELS, NO_LABELS, NO_LABELS)
    object_volume = plan.companions.object_volume
    if object_volume is not None:
        objects = object_volume.read(box)
        check_labels(objects, f"{object_volume.name} ({box})")
        overlaps = label_overlaps(labels, objects)

    chunk_id = plan.layout.chunk_ids(1, coordinate)
    id_of_segment = plan.layout.node_ids(chunk_id, np.arange(len(pieces.labels) + 1))
    id_of_segment[0] = 0
    ids = id_of_segment[pieces.segments]
    target = open_volume(plan.target, writable=True)[box.slices]
    retry_transport(lambda: target.write(ids).result(), what=f"writing {box} of {plan.target}")
    table = SegmentTable(pieces.labels, pieces.voxel_counts, pieces.surfaces, *overlaps)
    kv.write_bytes(plan.target, plan.marker(WatershedPass.LABELS, coordinate), table.encode())
    return table


def read_tables(plan: WatershedPlan, coordinates: npt.ArrayLike) -> list[SegmentTable]:
    """Segment tables of chunks, coordinates of shape (n, 3), read concurrently.

    Raises
    ------
    NotReadyError
        If pass A has not finished one of them.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    keys = [plan.marker(WatershedPass.LABELS, c) for c in coords]
    found = kv.read_many(plan.target, keys)
    missing = [tuple(c.tolist()) for c, data in zip(coords, found, strict=True) if data is None]
    if missing:
        raise NotReadyError(
            f"the supervoxels of chunk {missing[0]} are not made yet.", remedy="Run the label pass of all chunks first."
        )
    pairs = zip(keys, found, strict=True)
    return [SegmentTable.decode(data, plan.target + key) for key, data in pairs if data is not None]
