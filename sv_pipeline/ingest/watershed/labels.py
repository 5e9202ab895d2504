"""Pass A: the supervoxels of each chunk, and the chunk's segment table. It does not look beyond the chunk."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.supervoxels import label_overlaps, label_pieces
from sv_pipeline.errors import NotReadyError
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.companions import check_labels
from sv_pipeline.ingest.watershed.plan import WatershedPass, WatershedPlan, check_room, chunk_details
from sv_pipeline.storage import kv
from sv_pipeline.storage.error_dump import dump_errors
from sv_pipeline.storage.precomputed import open_volume
from sv_pipeline.storage.retry import retry_transport
from sv_pipeline.storage.stored_json import readable_file

__all__ = ["SegmentTable", "label_chunk", "read_tables", "run_label_batch"]

NO_LABELS: UInt64Array = np.empty(0, np.uint64)


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """Table of the segments of one chunk, which pass A writes for later passes."""

    labels: UInt64Array
    """Source label of segment i + 1, shape (n,)."""
    voxel_counts: UInt64Array
    """Number of voxels of segment i + 1, shape (n,)."""
    surfaces: UInt64Array
    """Number of voxel faces of the surface of segment i + 1, shape (n,)."""
    overlap_labels: UInt64Array
    overlap_objects: UInt64Array
    overlap_counts: UInt64Array
    """Number of voxels that each overlap label shares with its object of the agglomeration volume, shape (m,).

    All three arrays are empty without an agglomeration volume.
    """

    def encode(self) -> bytes:
        """Encode the table as the bytes of its file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes, where: str) -> SegmentTable:
        """Decode the table from the bytes of its file; raises DamagedError, which names the file ``where``."""
        with readable_file(where), np.load(io.BytesIO(data)) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


def run_label_batch(
    plan: WatershedPlan, coordinates: npt.ArrayLike, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Run pass A for some chunks, coordinates of shape (n, 3), that are not done. It may be repeated at any time.

    ``advance`` is called with 1 whenever a chunk is done.
    """
    for coordinate in np.asarray(coordinates, np.int64).reshape(-1, 3):
        # A worker that was held up must not write chunks again that another has finished: a base may refer to them.
        if kv.read_bytes(plan.target, plan.marker(WatershedPass.LABELS, coordinate)) is None:
            with dump_errors("labels_" + "_".join(map(str, coordinate)), partial(chunk_details, plan, coordinate)):
                label_chunk(plan, coordinate)
        advance(1)


def label_chunk(plan: WatershedPlan, coordinate: npt.ArrayLike, part: Box | None = None) -> SegmentTable:
    """Write the supervoxels of one chunk, then its segment table, which is the done-marker.

    Parameters
    ----------
    part
        Label only this box of the chunk, for a sample that needs no more of it. Default: the whole chunk.

    Raises
    ------
    InputError
        If the source holds negative labels in this chunk, or more pieces than there are ids for them.
    """
    box = plan.grid.box(2, coordinate) if part is None else part
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
    """Read the segment tables of chunks, coordinates of shape (n, 3), concurrently.

    Raises
    ------
    NotReadyError
        If pass A has not finished one of the chunks.
    """
    coords = np.asarray(coordinates, np.int64).reshape(-1, 3)
    keys = [plan.marker(WatershedPass.LABELS, c) for c in coords]
    found = kv.read_many(plan.target, keys)
    missing = [tuple(c.tolist()) for c, data in zip(coords, found, strict=True) if data is None]
    if missing:
        raise NotReadyError(
            f"the supervoxels of chunk {missing[0]} have not been made yet.",
            remedy="Run the label pass of all chunks first.",
        )
    pairs = zip(keys, found, strict=True)
    return [SegmentTable.decode(data, plan.target + key) for key, data in pairs if data is not None]
