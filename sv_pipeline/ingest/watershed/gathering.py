"""Gathers facts about labels from the tables of many chunks in near linear time. Reads nothing itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.ids import UInt64Array

__all__ = ["OverlapSums", "SeenLabels"]


class SeenLabels:
    """Which of some named labels occur. It needs memory for the named labels, not for those that occur.

    Parameters
    ----------
    named
        The labels to look for, in any order, shape (n,).
    """

    def __init__(self, named: UInt64Array) -> None:
        self._named = np.unique(named)
        self._seen = np.zeros(len(self._named), np.bool_)
        self._example = np.zeros(0, np.uint64)

    def add(self, labels: UInt64Array) -> None:
        """Note labels that occur, shape (n,)."""
        self._example = self._example if len(self._example) else labels[:1].copy()
        if len(self._named) and len(labels):
            places = np.minimum(np.searchsorted(self._named, labels), len(self._named) - 1)
            self._seen[places[self._named[places] == labels]] = True

    def found(self) -> UInt64Array:
        """Return the named labels that occur, and one other label if there is any, sorted."""
        return np.union1d(self._named[self._seen], self._example)


class OverlapSums:
    """The numbers of voxels that labels share with objects, summed up over chunks.

    The sums are kept in sorted runs, each at least twice as long as the next: so a pair is merged about log2(n) times,
    however many chunks there are, and the memory is that of all different pairs, 24 bytes each, and of one merge.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []
        self.merged = 0
        """Number of pairs that all merges took in, which measures the work."""

    def add(self, labels: UInt64Array, objects: UInt64Array, counts: UInt64Array) -> None:
        """Add numbers of shared voxels, arrays of shape (n,); a pair may occur more than once."""
        if not len(labels):
            return
        self._runs.append(self._sum([np.stack([labels, objects, counts]).astype(np.uint64)]))
        while len(self._runs) > 1 and 2 * self._runs[-1].shape[1] > self._runs[-2].shape[1]:
            last = self._runs.pop()
            self._runs.append(self._sum([self._runs.pop(), last]))

    def total(self) -> tuple[UInt64Array, UInt64Array, UInt64Array]:
        """Return labels, objects and counts, each pair once, sorted by label and object; shape (n,) each."""
        while len(self._runs) > 1:
            last = self._runs.pop()
            self._runs.append(self._sum([self._runs.pop(), last]))
        labels, objects, counts = self._runs[0] if self._runs else np.zeros((3, 0), np.uint64)
        return labels, objects, counts

    def _sum(self, parts: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
        pairs = np.concatenate(parts, axis=1)
        self.merged += pairs.shape[1]
        pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
        first = np.flatnonzero(np.r_[True, (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)])
        return np.stack([pairs[0, first], pairs[1, first], np.add.reduceat(pairs[2], first)])
