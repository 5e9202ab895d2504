"""The volumes and tables that go with a segmentation: its agglomeration and its affinities, opened and checked.

This module checks that they fit the segmentation; the checks of the tables themselves are in ``tables``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.edge_rules import as_stored, unusable_affinities
from sv_pipeline.config import SourceConfig
from sv_pipeline.errors import InputError
from sv_pipeline.grid import Box
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.source import SourceVolume, open_source, split_key
from sv_pipeline.ingest.watershed.tables import (
    EdgeTable,
    ObjectTable,
    is_table,
    read_edge_table,
    read_object_table,
)
from sv_pipeline.storage.stored_scale import StoredScale

__all__ = [
    "Companions",
    "check_labels",
    "check_named",
    "open_companions",
    "open_labels",
    "read_affinities",
    "source_scales",
]


@dataclass(frozen=True, eq=False)
class Companions:
    """Agglomeration and affinities of a segmentation, each as a volume, as a table, or not given."""

    object_volume: SourceVolume | None = None
    object_table: ObjectTable | None = None
    affinity_volume: SourceVolume | None = None
    edge_table: EdgeTable | None = None


def open_labels(source: SourceConfig) -> SourceVolume:
    """Open the segmentation; raises InputError if it cannot be opened or does not hold integers."""
    volume = open_source(source.segmentation, resolution=source.resolution, voxel_offset=source.voxel_offset)
    if volume.dtype.kind not in "iu":
        raise InputError(
            f"{volume.name} holds {volume.dtype}, not integer labels.", remedy="Convert it to uint8 .. uint64."
        )
    return volume


def open_companions(source: SourceConfig, bounds: Box) -> Companions:
    """Open the agglomeration and affinities of a segmentation with these bounds.

    Raises
    ------
    InputError
        If one of them cannot be read or does not fit the segmentation.
    """
    objects, affinities = source.agglomeration, source.affinities
    object_table = is_table(objects) if objects is not None else False
    edge_table = is_table(affinities) if affinities is not None else False
    return Companions(
        object_volume=_object_volume(objects, bounds) if objects is not None and not object_table else None,
        object_table=_object_table(objects, file_stamp(objects)) if objects is not None and object_table else None,
        affinity_volume=_affinity_volume(affinities, bounds) if affinities is not None and not edge_table else None,
        edge_table=_edge_table(affinities, file_stamp(affinities)) if affinities is not None and edge_table else None,
    )


def source_scales(source: SourceConfig) -> dict[str, tuple[StoredScale, Box | None]]:
    """Return the precomputed volumes among the sources by field name, each with the box that is read; None = all."""
    labels = open_labels(source)
    companions = open_companions(source, labels.bounds)
    # source.voxel_offset may move the segmentation, but not the other volumes.
    parts = {
        "segmentation": (labels, None),
        "agglomeration": (companions.object_volume, labels.bounds),
        "affinities": (companions.affinity_volume, labels.bounds),
    }
    return {
        name: (volume.stored, part)
        for name, (volume, part) in parts.items()
        if volume is not None and volume.stored is not None
    }


def file_stamp(path: str) -> str:
    """Return size and modification time of a local file as text; empty for anything else."""
    file = Path(split_key(path)[0])
    return f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file.is_file() else ""


@lru_cache(maxsize=2)
def _object_table(path: str, _stamp: str) -> ObjectTable:
    return read_object_table(path)


@lru_cache(maxsize=2)
def _edge_table(path: str, _stamp: str) -> EdgeTable:
    return read_edge_table(path)


def _object_volume(path: str, bounds: Box) -> SourceVolume:
    volume = _aligned(path, bounds, n_dimensions=3)
    if volume.dtype.kind not in "iu":
        raise InputError(f"agglomeration {volume.name} holds {volume.dtype}, not integer labels.")
    return volume


def _affinity_volume(path: str, bounds: Box) -> SourceVolume:
    volume = _aligned(path, bounds, n_dimensions=4)
    if volume.channels != 3:
        raise InputError(f"affinities {volume.name} have {volume.channels} channels; expected 3 (x, y, z).")
    if volume.dtype.kind != "f" and volume.dtype != np.uint8:
        raise InputError(f"affinities {volume.name} hold {volume.dtype}; expected floats or uint8.")
    return volume


def _aligned(path: str, bounds: Box, *, n_dimensions: int) -> SourceVolume:
    """Open a volume that must cover the segmentation: a file by its shape, a store by its own coordinates."""
    is_file = split_key(path)[0].endswith((".npz", ".npy"))
    volume = open_source(path, voxel_offset=bounds.start if is_file else None, n_dimensions=n_dimensions)
    fits = volume.bounds == bounds if is_file else bounds.clip(volume.bounds) == bounds
    if not fits:
        raise InputError(
            f"{volume.name} ({volume.bounds}) does not cover the segmentation ({bounds}).",
            remedy="Both must have the same shape and position.",
        )
    return volume


def read_affinities(volume: SourceVolume, box: Box) -> npt.NDArray[np.float32]:
    """Read the affinities of a box, shape (x, y, z, 3). Values stored as uint8 are scaled to the range 0 to 1.

    Raises
    ------
    InputError
        If an affinity is negative, or not finite as float32.
    """
    stored = volume.read(box)
    values = as_stored(stored) / np.float32(255) if stored.dtype == np.uint8 else as_stored(stored)
    wrong = unusable_affinities(values)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        voxel = tuple((np.asarray(at[:3]) + box.start).tolist())
        raise InputError(
            f"affinities {volume.name} hold {stored[at]} at voxel {voxel}, channel {at[3]}, which is "
            "negative or not finite as float32.",
            remedy="Export the affinities again.",
        )
    return values


def check_labels(voxels: npt.NDArray[np.integer], where: str) -> None:
    """Raise InputError if a label is negative."""
    lowest = int(voxels.min(initial=0))
    if lowest < 0:
        raise InputError(f"{where} holds negative labels (lowest {lowest}).", remedy="Labels are at least 0.")


def check_named(labels: UInt64Array, companions: Companions, source: SourceConfig) -> None:
    """Check that tables name only labels that exist.

    Parameters
    ----------
    labels
        All labels of the segmentation, sorted, without background.

    Raises
    ------
    InputError
        If there is no label at all, or a table names a label that the segmentation does not hold.
    """
    if not len(labels):
        raise InputError(f"{source.segmentation} holds no label, only background.")
    named = []
    if companions.object_table is not None:
        named.append((source.agglomeration, companions.object_table.labels))
    if companions.edge_table is not None:
        named.append((source.affinities, companions.edge_table.labels()))
    for path, mentioned in named:
        unknown = np.setdiff1d(mentioned, labels, assume_unique=True)
        if len(unknown):
            raise InputError(
                f"{path} names {len(unknown)} labels that {source.segmentation} does not hold, first {unknown[0]}.",
                remedy="Check that the two belong together, or remove those rows.",
            )
