"""The table with the object of every label, made once between the two passes. Owns ``.watershed/objects.npz``.

The table holds 16 bytes per label, and each process that makes edges holds one copy.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sv_pipeline.errors import NotReadyError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.companions import check_named
from sv_pipeline.ingest.watershed.gathering import OverlapSums, SeenLabels
from sv_pipeline.ingest.watershed.labels import SegmentTable, read_tables
from sv_pipeline.ingest.watershed.plan import OBJECTS_KEY, WatershedPlan
from sv_pipeline.ingest.watershed.tables import ObjectTable, majority_objects
from sv_pipeline.storage import kv
from sv_pipeline.storage.stored_json import readable_file

__all__ = ["make_object_table", "objects_of"]

TABLES_AT_ONCE = 256


def make_object_table(plan: WatershedPlan, only: npt.ArrayLike | None = None) -> None:
    """Gather the labels of all chunks, check the tables that name labels, and store the object of each label.

    With an agglomeration volume, a label belongs to the object with which it shares most voxels (in a tie, the lowest).
    A label that shares most voxels with background, or that has object 0 or no row in a table, is an object of its own.

    Parameters
    ----------
    only
        Coordinates, shape (n, 3), of the only chunks to gather labels from, for a sample; the tables are then not
        checked, since they may name labels of other chunks.
    """
    if kv.read_bytes(plan.target, OBJECTS_KEY) is not None:
        return
    companions, overlaps = plan.companions, OverlapSums()
    named = [t.labels for t in [companions.object_table] if t is not None]
    named += [t.labels() for t in [companions.edge_table] if t is not None]
    seen = SeenLabels(np.concatenate([np.empty(0, np.uint64), *named]))
    for tables in _tables(plan, only):
        seen.add(np.concatenate([t.labels for t in tables]))
        found = [np.stack([t.overlap_labels, t.overlap_objects, t.overlap_counts]) for t in tables]
        overlaps.add(*np.concatenate(found, axis=1))
    if only is None:
        check_named(seen.found(), companions, plan.source_config)
    if companions.object_volume is not None:
        table = majority_objects(*overlaps.total())
    else:
        table = companions.object_table or ObjectTable(np.empty(0, np.uint64), np.empty(0, np.uint64))
    buffer = io.BytesIO()
    np.savez(buffer, label=table.labels, object=table.objects)
    kv.write_bytes(plan.target, OBJECTS_KEY, buffer.getvalue())


def _tables(plan: WatershedPlan, only: npt.ArrayLike | None) -> Iterator[list[SegmentTable]]:
    """Yield the tables of all chunks, or of some, a few at a time; all coordinates at once would take too much room."""
    chosen = None if only is None else np.asarray(only, np.int64).reshape(-1, 3)
    shape, count = plan.grid.shape(2), plan.grid.count(2) if chosen is None else len(chosen)
    for start in range(0, count, TABLES_AT_ONCE):
        stop = min(start + TABLES_AT_ONCE, count)
        if chosen is None:
            yield read_tables(plan, np.stack(np.unravel_index(np.arange(start, stop), shape), axis=-1))
        else:
            yield read_tables(plan, chosen[start:stop])


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
