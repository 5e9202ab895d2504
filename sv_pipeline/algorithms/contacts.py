"""Contacts of labels in an array: which labels touch, their voxel faces, their mean affinity. Knows no ids, no chunks.

A *face contact* is a voxel face between two different labels. Two labels touch *diagonally* where two of their voxels
share an edge or a corner only. Label 0 is background and touches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "DIAGONALS",
    "Contacts",
    "LabelPairs",
    "affinity_of_contact",
    "diagonal_pairs",
    "face_contacts",
]

LabelPairs = npt.NDArray[np.int64]
"""Pairs of labels, shape (n, 2), lower label first, unique, sorted."""

DIAGONALS: tuple[tuple[int, int, int], ...] = tuple(
    (x, y, z)
    for x in (-1, 0, 1)
    for y in (-1, 0, 1)
    for z in (-1, 0, 1)
    if (x, y, z) > (0, 0, 0) and abs(x) + abs(y) + abs(z) > 1
)
"""One vector of each pair of opposite shifts to the 20 neighbours that share no face: 10 vectors."""


@dataclass(frozen=True)
class Contacts:
    """Face contacts of an array of labels."""

    pairs: LabelPairs
    areas: npt.NDArray[np.int64]
    """Number of voxel faces of each pair, shape (n,)."""
    affinities: npt.NDArray[np.float32] | None
    """Mean affinity over the faces of each pair, shape (n,); None without an affinity volume."""


def face_contacts(labels: npt.NDArray[np.integer[Any]], affinities: npt.NDArray[Any] | None = None) -> Contacts:
    """Find the pairs of labels that share voxel faces.

    Parameters
    ----------
    labels
        Small integers (0 .. n), shape (x, y, z).
    affinities
        Affinities of shape (x, y, z, 3); channel ``a`` at voxel ``v`` belongs to the face between ``v`` and ``v -
        e_a``.
    """
    n = int(labels.max(initial=0)) + 1
    packed, values = [], []
    for axis in range(3):
        lower, upper = _shifted(labels, tuple(int(i == axis) for i in range(3)))
        touching = (lower != upper) & (lower != 0) & (upper != 0)
        packed.append(_pack(lower[touching], upper[touching], n))
        if affinities is not None:
            behind = affinities[tuple(slice(1, None) if i == axis else slice(None) for i in range(3))]
            values.append(behind[..., axis][touching].astype(np.float64))
    unique, inverse, areas = np.unique(np.concatenate(packed), return_inverse=True, return_counts=True)
    means = None
    if affinities is not None:
        # float64 sums in voxel order: two neighbouring chunks that measure the same contact get exactly the same mean.
        sums = np.bincount(inverse, weights=np.concatenate(values), minlength=len(unique))
        means = (sums / np.maximum(areas, 1)).astype(np.float32)
    return Contacts(_unpack(unique, n), areas.astype(np.int64), means)


def diagonal_pairs(labels: npt.NDArray[np.integer[Any]], groups: npt.NDArray[np.integer[Any]]) -> LabelPairs:
    """Find pairs of different labels of one group that have voxels sharing an edge or a corner (and maybe faces too).

    Parameters
    ----------
    labels
        Small integers (0 .. n), shape (x, y, z).
    groups
        Group of each label, shape (n + 1,); labels of group 0 are never paired.
    """
    n = len(groups)
    group_of = groups[labels]
    found = []
    for shift in DIAGONALS:
        lower, upper = _shifted(labels, shift)
        group_lower, group_upper = _shifted(group_of, shift)
        touching = (group_lower == group_upper) & (lower != upper) & (group_lower != 0)
        found.append(np.unique(_pack(lower[touching], upper[touching], n)))
    return _unpack(np.unique(np.concatenate(found)), n)


def affinity_of_contact(
    areas: npt.ArrayLike, surfaces1: npt.ArrayLike, surfaces2: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Return a substitute for a measured affinity: ``area / (1 + smaller surface)``, in (0, 1).

    It is the fraction of the smaller supervoxel's surface that the contact takes up. It is high inside a neurite, where
    a process is cut across, and low where two neurites pass each other. It depends on the two supervoxels alone and not
    on the agglomeration, so that a false merger stays as weak as its contact.
    Parameters
    ----------
    areas
        Number of voxel faces of each contact, shape (n,).
    surfaces1, surfaces2
        Number of voxel faces of the whole surface of either side, shape (n,).
    """
    smaller = np.minimum(np.asarray(surfaces1, np.float64), np.asarray(surfaces2, np.float64))
    fraction = (np.asarray(areas, np.float64) / (1 + smaller)).astype(np.float32)
    return np.asarray(np.minimum(fraction, np.nextafter(np.float32(1), np.float32(0))), np.float32)


def _shifted(array: npt.NDArray[Any], shift: tuple[int, ...]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two views of the same shape: voxels v, and voxels v + shift."""
    here = tuple(slice(max(0, -s), -s if s > 0 else None) for s in shift)
    there = tuple(slice(max(0, s), s if s < 0 else None) for s in shift)
    return array[here], array[there]


def _pack(first: npt.NDArray[Any], second: npt.NDArray[Any], n: int) -> npt.NDArray[np.int64]:
    return np.asarray(np.minimum(first, second).astype(np.int64) * n + np.maximum(first, second), np.int64)


def _unpack(packed: npt.NDArray[np.int64], n: int) -> LabelPairs:
    return np.stack(np.divmod(packed, n), axis=-1)
