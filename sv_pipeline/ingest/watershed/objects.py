"""The table with the object of every label, made once between the two passes. Owns ``.watershed/objects.npz``.

The table holds 16 bytes per label, and each process that makes edges holds one copy.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

from sv_pipeline.errors import NotReadyError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.companions import check_named
from sv_pipeline.ingest.watershed.labels import read_tables
from sv_pipeline.ingest.watershed.plan import OBJECTS_KEY, WatershedPlan
from sv_pipeline.ingest.watershed.tables import ObjectTable, majority_objects
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import readable_file

__all__ = ["make_object_table", "objects_of"]

TABLES_AT_ONCE = 256


def make_object_table(plan: WatershedPlan) -> None:
    """Gather the labels of all chunks, check the tables that name labels, and store the object of each label.

    With an agglomeration volume, a label belongs to the object with which it shares most voxels (in a tie, the lowest).
    A label that shares most voxels with background, or that has object 0 or no row in a table, is an object of its own.
    """
    if kv.read_bytes(plan.target, OBJECTS_KEY) is not None:
        return
    labels = np.empty(0, np.uint64)
    overlaps = np.empty((3, 0), np.uint64)
    coordinates = plan.grid.coordinates(2)
    for start in range(0, len(coordinates), TABLES_AT_ONCE):
        tables = read_tables(plan, coordinates[start : start + TABLES_AT_ONCE])
        labels = np.unique(np.concatenate([labels, *(t.labels for t in tables)]))
        found = [np.stack([t.overlap_labels, t.overlap_objects, t.overlap_counts]) for t in tables]
        overlaps = np.concatenate([overlaps, *found], axis=1)
    companions = plan.companions
    check_named(labels, companions, plan.source_config)
    if companions.object_volume is not None:
        table = majority_objects(*overlaps)
    else:
        table = companions.object_table or ObjectTable(np.empty(0, np.uint64), np.empty(0, np.uint64))
    buffer = io.BytesIO()
    np.savez(buffer, label=table.labels, object=table.objects)
    kv.write_bytes(plan.target, OBJECTS_KEY, buffer.getvalue())


def objects_of(plan: WatershedPlan, labels: UInt64Array) -> UInt64Array:
    """Return the object of each label; 0 for labels that are objects of their own.

    Raises
    ------
    NotReadyError
        If the table has not been made yet.
    """
    return _stored_table(plan.target, plan.fingerprint).of(labels)


@lru_cache(maxsize=1)
def _stored_table(target: str, _fingerprint: str) -> ObjectTable:
    data = kv.read_bytes(target, OBJECTS_KEY)
    if data is None:
        raise NotReadyError(
            f"the objects of {target} are not known yet.", remedy="Finish the label pass of all chunks first."
        )
    return read_object_table(data, target + OBJECTS_KEY)


def read_object_table(data: bytes, where: str) -> ObjectTable:
    """Decode the table from the bytes of its file; raises DamagedError, which names the file ``where``."""
    with readable_file(where), np.load(io.BytesIO(data)) as arrays:
        return ObjectTable(arrays["label"], arrays["object"])
