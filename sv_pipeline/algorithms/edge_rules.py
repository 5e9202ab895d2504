"""Rules for atomic edges, shared by tables, ingest, verify and cuts, and applied to values in their stored type.

==================  =========================================================================
affinity            a finite float32 of at least 0; inf for pieces of one label (``cross``)
area                below 2^63: a larger value is a negative number that was cast
ends                two different supervoxels
pair                occurs once in a file, in either direction
==================  =========================================================================

The module describes what is wrong with edges; callers add the file and raise the error.
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
"""Affinity that replaces inf where inf is not allowed."""


class BrokenRule(NamedTuple):
    """Edges that break one rule."""

    text: str
    """What is wrong, as a statement about one edge."""
    edges: BoolArray
    """Which edges break the rule, shape (n,); at least one is True."""


def as_stored(affinities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Convert affinities to their stored type; values that do not fit become inf, which the rule then reports."""
    with np.errstate(over="ignore", invalid="ignore"):
        return affinities.astype(np.float32, copy=False)


def unusable_affinities(affinities: npt.NDArray[np.float32], cross: BoolArray | bool = False) -> BoolArray:
    """Return which affinities break the rule; ``cross`` tells which edges must have inf. Both have the same shape."""
    return np.asarray(np.where(cross, affinities != np.inf, ~(np.isfinite(affinities) & (affinities >= 0))))


def usable_affinities(
    affinities: npt.NDArray[np.float32], may_be_inf: BoolArray | bool = False
) -> npt.NDArray[np.float32]:
    """Convert stored affinities, which may be older than the rule, to values that a cut can work with.

    A negative value or nan becomes 0, since it is no evidence of a connection. An inf where it is not allowed becomes
    the largest finite value: the edge stays the strongest, but it can be cut; otherwise a supervoxel would be cut
    instead.
    """
    usable = np.where(affinities > 0, affinities, np.float32(0))
    return np.where(np.isinf(usable) & ~np.asarray(may_be_inf), STRONGEST, usable)


def repeated(pairs: UInt64Array, files: UInt64Array | None = None) -> BoolArray:
    """Return which pairs, shape (n, 2), repeat an earlier pair of their file, in either direction; shape (n,)."""
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
    """Return the broken rules, except for repeats; the arrays have shapes (n, 2), (n,), (n,), (n,)."""
    unusable = unusable_affinities(affinities, cross)
    found = [
        BrokenRule("its affinity is not a finite number of at least 0", unusable & ~cross & ~(affinities == np.inf)),
        BrokenRule("cross edges, and only they, have affinity inf", unusable & (cross | (affinities == np.inf))),
        BrokenRule("its area is 2^63 or more, a negative number that was cast", areas >= AREA_LIMIT),
        BrokenRule("it joins a supervoxel to itself", pairs[:, 0] == pairs[:, 1]),
    ]
    return [fault for fault in found if fault.edges.any()]
