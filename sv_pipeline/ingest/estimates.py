"""Estimates with intervals: arithmetic of them, the choice of a sample of chunks, and extrapolation. Reads nothing.

The interval of a total is a t-interval of a ratio estimator. With quantities q_i and sizes v_i (voxels) of n chunks
out of N, and V voxels in all chunks::

    R = sum(q_i) / sum(v_i)         total = R V
    s^2 = sum((q_i - R v_i)^2) / (n - 1)
    total +- t(n - 1) * N * sqrt((1 - n / N) * s^2 / n)

The factor 1 - n / N makes the interval empty if all chunks are in the sample: the total is then exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.grid import ChunkGrid

__all__ = ["CONFIDENCE", "Estimate", "extrapolate", "share_unlike", "spread_chunks"]

CONFIDENCE = 0.95
"""Probability with which the interval of a sampled quantity covers its real value, if its scatter is about normal."""
# Powers of the real root of x^4 = x + 1: multiples of these numbers, modulo 1, fill the unit cube evenly.
_STEPS = 1.2207440846057596 ** -np.arange(1, 4)


@dataclass(frozen=True)
class Estimate:
    """A number that is not negative, and the interval in which it is expected."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """Return a number that is known."""
        return cls(float(value), float(value), float(value))

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Estimate:
        """Return the estimate that :meth:`to_dict` has written."""
        return cls(float(raw["value"]), float(raw["low"]), float(raw["high"]))

    @property
    def is_exact(self) -> bool:
        """Whether the interval is a single number."""
        return self.low == self.high

    def covers(self, value: float) -> bool:
        """Return whether a number is inside the interval; differences of rounding are ignored."""
        slack = 1e-9 * max(1.0, abs(value))
        return self.low - slack <= value <= self.high + slack

    def __add__(self, other: Estimate) -> Estimate:
        # Bounds are added, as if both errors had the same sign: the quantities of one volume depend on each other.
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, other: Estimate | float) -> Estimate:
        factor = other if isinstance(other, Estimate) else Estimate.exact(other)
        return Estimate(self.value * factor.value, self.low * factor.low, self.high * factor.high)

    def to_dict(self) -> dict[str, float]:
        """Return values that can be written as JSON."""
        return asdict(self)


def extrapolate(quantities: npt.ArrayLike, voxels: npt.ArrayLike, chunks: int, total_voxels: int) -> Estimate:
    """Estimate the total of a quantity over all chunks from some of them; see the formula of this module.

    Parameters
    ----------
    quantities
        The quantity of each chunk of the sample, shape (n,).
    voxels
        Number of voxels of each chunk of the sample, shape (n,).
    chunks
        Number of all chunks.
    total_voxels
        Number of voxels of all chunks.

    Raises
    ------
    ValueError
        If the sample is empty, or larger than the population, or has one chunk out of several.
    """
    q, v = np.asarray(quantities, np.float64), np.asarray(voxels, np.float64)
    n = len(q)
    if not 0 < n <= chunks or (n == 1 and chunks > 1):
        raise ValueError(f"{n} of {chunks} chunks are no sample")
    if n == chunks:
        return Estimate.exact(float(q.sum()))
    ratio = q.sum() / v.sum()
    variance = float(((q - ratio * v) ** 2).sum()) / (n - 1)
    total = float(ratio * total_voxels)
    from scipy.special import stdtrit  # takes a while to load, and only samples need it

    t = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    half = t * chunks * math.sqrt((1 - n / chunks) * variance / n)
    # What the sample holds is there in any case.
    return Estimate(total, max(float(q.sum()), total - half), total + half)


def share_unlike(n: int, chunks: int) -> float:
    """Return the largest share of all chunks that may differ from a sample of ``n`` equal chunks, with `CONFIDENCE`.

    A sample without scatter tells nothing about the chunks that it does not contain, except that those which differ
    are too few to be met: (1 - share)^n is at least 1 - `CONFIDENCE`.
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / n)) * (1 - n / chunks)


def spread_chunks(grid: ChunkGrid, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Choose distinct chunks of layer 2 that are spread evenly over the volume; no list of all chunks is made.

    The chunks are points of an additive recurrence (multiples of an irrational vector, modulo 1) with a random start.
    Each chunk is chosen with about the same probability.

    Returns
    -------
    Chunk coordinates, shape (count, 3), in the order in which they were chosen.

    Raises
    ------
    ValueError
        If there are fewer chunks.
    """
    total = grid.count(2)
    if count > total:
        raise ValueError(f"{count} of {total} chunks cannot be chosen")
    random = np.random.default_rng(seed)
    if 2 * count > total:
        return grid.coordinates(2)[random.permutation(total)[:count]]
    start, shape = random.random(3), np.asarray(grid.shape(2))
    chosen: dict[tuple[int, ...], None] = {}
    first = 0
    while len(chosen) < count:
        points = (start + np.arange(first, first + count)[:, None] * _STEPS) % 1.0
        chosen |= dict.fromkeys(_triples(np.minimum((points * shape).astype(np.int64), shape - 1)))
        first += count
    return np.array(list(chosen)[:count], np.int64).reshape(-1, 3)


def _triples(coordinates: npt.NDArray[np.int64]) -> Sequence[tuple[int, ...]]:
    return [tuple(row) for row in coordinates.tolist()]
