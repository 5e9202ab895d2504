"""What an atomic edge may be: one rule for tables, ingest, verify and cuts, applied to values in their stored type.

==================  =========================================================================
affinity            a finite float32 of at least 0; of pieces of one label (``cross``): inf
area                below 2^63: more is a negative number that was cast
ends                two different supervoxels
pair                once in a file, in either direction
==================  =========================================================================

Names what is wrong; files and messages are of those who ask.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array

__all__ = ["BrokenRule", "as_stored", "edge_faults", "repeated", "unusable_affinities", "usable_affinities"]

BoolArray = npt.NDArray[np.bool_]

AREA_LIMIT = np.uint64(1 << 63)
STRONGEST = np.finfo(np.float32).max
"""Affinity of an edge that says inf but is none of those that may."""


class BrokenRule(NamedTuple):
    """Edges that break one rule."""

    text: str
    """What is wrong, as a statement about an edge."""
    edges: BoolArray
    """Shape (n,); at least one is True."""


def as_stored(affinities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Affinities in the type they are stored in; those that do not fit become inf, which the rule then names."""
    with np.errstate(over="ignore", invalid="ignore"):
        return affinities.astype(np.float32, copy=False)


def unusable_affinities(affinities: npt.NDArray[np.float32], cross: BoolArray | bool = False) -> BoolArray:
    """Which affinities break the rule, shape of ``affinities``; ``cross`` says which edges must have inf."""
    return np.asarray(np.where(cross, affinities != np.inf, ~(np.isfinite(affinities) & (affinities >= 0))))


def usable_affinities(
    affinities: npt.NDArray[np.float32], may_be_inf: BoolArray | bool = False
) -> npt.NDArray[np.float32]:
    """Affinities that a cut can work with, whatever was stored before the rule was held.

    What is no number, or negative, holds nothing together: 0. An edge that says inf without being one of those that
    may is the strongest of all, but can be cut: else a supervoxel would be cut in its stead.
    """
    usable = np.where(affinities > 0, affinities, np.float32(0))
    return np.where(np.isinf(usable) & ~np.asarray(may_be_inf), STRONGEST, usable)


def repeated(pairs: UInt64Array, files: UInt64Array | None = None) -> BoolArray:
    """Which pairs, shape (n, 2), stand in their file a second time, in either direction."""
    ordered = np.sort(pairs, axis=1)
    columns = [ordered[:, 1], ordered[:, 0], np.zeros(len(pairs), np.uint64) if files is None else files]
    order = np.lexsort(columns)
    same = np.ones(max(len(pairs) - 1, 0), np.bool_)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    again = np.zeros(len(pairs), np.bool_)
    again[order[1:][same]] = True
    return again


def edge_faults(
    pairs: UInt64Array, affinities: npt.NDArray[np.float32], areas: UInt64Array, cross: BoolArray
) -> list[BrokenRule]:
    """The rules that edges break by themselves, repeats aside; arrays of shape (n, 2), (n,), (n,), (n,)."""
    unusable = unusable_affinities(affinities, cross)
    found = [
        BrokenRule("its affinity is not a finite number of at least 0", unusable & ~cross & ~(affinities == np.inf)),
        BrokenRule("cross edges, and only they, have affinity inf", unusable & (cross | (affinities == np.inf))),
        BrokenRule("its area is 2^63 or more, a negative number that was cast", areas >= AREA_LIMIT),
        BrokenRule("it joins a supervoxel to itself", pairs[:, 0] == pairs[:, 1]),
    ]
    return [fault for fault in found if fault.edges.any()]
