"""Tables of a user about labels: which labels belong to one object, and the affinity of two labels.

This module owns the meaning of such tables and their checks; ``columns`` reads them. It does not know chunks or
supervoxel ids. pandas takes a quarter of a second to load and most ingests have no tables, so functions import it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.edge_rules import as_stored, unusable_affinities
from sv_pipeline.errors import InputError
from sv_pipeline.ids import UInt64Array
from sv_pipeline.ingest.watershed.array_files import read_headers
from sv_pipeline.ingest.watershed.columns import read_columns
from sv_pipeline.ingest.watershed.source import split_key

__all__ = [
    "UNLISTED_AFFINITY",
    "EdgeTable",
    "ObjectTable",
    "is_table",
    "majority_objects",
    "read_edge_table",
    "read_object_table",
    "table_fingerprint",
]

UNLISTED_AFFINITY = np.float32(0.001)
"""Affinity of two labels that touch but are not in the edge table, if one is given."""

OBJECT_COLUMNS = ("label", "object")
EDGE_COLUMNS = ("label_a", "label_b", "affinity")


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """Object of each listed label; arrays of shape (n,), sorted by label. Labels of object 0 are their own objects."""

    labels: UInt64Array
    objects: UInt64Array

    def of(self, labels: UInt64Array) -> UInt64Array:
        """Return the object of each label, same shape; 0 for labels that have none or are not listed."""
        if not len(self.labels):
            return np.zeros_like(labels)
        index = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[index] == labels, self.objects[index], np.uint64(0))


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Affinity of pairs of labels; arrays of shape (n,)."""

    labels_a: UInt64Array
    """The lower label."""
    labels_b: UInt64Array
    affinities: npt.NDArray[np.float32]

    def of(self, labels_a: UInt64Array, labels_b: UInt64Array) -> npt.NDArray[np.float32]:
        """Return the affinity of each pair of labels, in either order; a low default for pairs that are not listed."""
        import pandas as pd

        wanted = pd.DataFrame({"a": np.minimum(labels_a, labels_b), "b": np.maximum(labels_a, labels_b)})
        known = pd.DataFrame({"a": self.labels_a, "b": self.labels_b, "affinity": self.affinities})
        found = wanted.merge(known, on=["a", "b"], how="left")["affinity"].to_numpy(np.float32)
        return np.where(np.isnan(found), UNLISTED_AFFINITY, found)

    def labels(self) -> UInt64Array:
        """Return all listed labels, sorted."""
        return np.unique(np.concatenate([self.labels_a, self.labels_b]))


def is_table(path: str) -> bool:
    """Return whether a path is a table, not a volume: any ``.csv``, or an ``.npz`` with the columns of a table."""
    if path.lower().endswith(".csv"):
        return True
    file, key = split_key(path)
    if not file.endswith(".npz") or key is not None or not Path(file).is_file():
        return False
    names = set(read_headers(file))
    return names.issuperset(OBJECT_COLUMNS) or names.issuperset(EDGE_COLUMNS)


def read_object_table(path: str) -> ObjectTable:
    """Read a table of ``label, object``; a label of object 0 is an object of its own.

    Raises
    ------
    InputError
        If the table cannot be read, or puts one label into two objects, or background into an object.
    """
    columns = read_columns(path, dict.fromkeys(OBJECT_COLUMNS, "uint64"))
    pairs = np.unique(np.stack([columns["label"], columns["object"]], axis=-1), axis=0)
    labels, objects = pairs[:, 0], pairs[:, 1]
    twice = labels[1:][labels[1:] == labels[:-1]]
    if len(twice):
        raise InputError(f"{path} puts label {twice[0]} into more than one object.", remedy="Keep one row per label.")
    if len(labels) and labels[0] == 0 and objects[0] != 0:
        raise InputError(f"{path} puts label 0, the background, into object {objects[0]}.", remedy="Remove that row.")
    return ObjectTable(labels[labels != 0].copy(), objects[labels != 0].copy())


def read_edge_table(path: str) -> EdgeTable:
    """Read a table of ``label_a, label_b, affinity``. A column ``area`` is ignored: areas are measured in the voxels.

    Raises
    ------
    InputError
        If the table cannot be read, names background, or joins a label to itself; if an affinity is not a finite
        float32 of at least 0, or a pair has two affinities.
    """
    import pandas as pd

    columns = read_columns(path, {"label_a": "uint64", "label_b": "uint64", "affinity": "float64"})
    first, second, affinity = (columns[name] for name in EDGE_COLUMNS)
    low, high = np.minimum(first, second), np.maximum(first, second)
    faults = {
        "the affinity is not a finite number of at least 0, as float32": unusable_affinities(as_stored(affinity)),
        "it joins a label to itself": low == high,
        "it names label 0, the background": low == 0,
    }
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise InputError(f"{path}, row {row + 1} ({first[row]}, {second[row]}, {affinity[row]}): {fault}.")
    table = pd.DataFrame({"a": low, "b": high, "affinity": as_stored(affinity)}).drop_duplicates()
    twice = table[table.duplicated(["a", "b"])]
    if len(twice):
        raise InputError(f"{path} gives the pair ({twice['a'].iloc[0]}, {twice['b'].iloc[0]}) two affinities.")
    return EdgeTable(*(table[name].to_numpy() for name in ("a", "b", "affinity")))


def majority_objects(labels: UInt64Array, objects: UInt64Array, counts: UInt64Array) -> ObjectTable:
    """Return the object with which each label shares most voxels; in a tie, the lowest one.

    Parameters
    ----------
    labels, objects, counts
        Numbers of voxels that a label shares with an object, shape (n,); a pair may occur more than once.
    """
    import pandas as pd

    overlaps = pd.DataFrame({"label": labels, "object": objects, "count": counts})
    total = overlaps.groupby(["label", "object"])["count"].sum().reset_index()
    best = total.sort_values(["label", "count", "object"], ascending=[True, False, True]).drop_duplicates("label")
    return ObjectTable(best["label"].to_numpy(np.uint64), best["object"].to_numpy(np.uint64))


def table_fingerprint(table: ObjectTable | EdgeTable) -> str:
    """Return a hash of a table's content."""
    digest = hashlib.blake2b(digest_size=16)
    for array in vars(table).values():
        digest.update(array.tobytes())
    return digest.hexdigest()
