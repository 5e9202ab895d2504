"""The downsampling kernel: from a block of labels to the next coarser mips. Does no I/O and knows no volume.

Blocks of ``factor`` voxels start at the first voxel of the array; a block that extends beyond the array uses the voxels
inside. A result voxel depends on its own block only. Therefore a volume may be downsampled in pieces with bit for bit
the same result, as long as the pieces start at multiples of the factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tinybrain

from sv_pipeline.errors import ConfigError

__all__ = ["downsample", "halvings", "holds_labels_of_blocks", "pyramid"]

Triple = tuple[int, int, int]
Labels = npt.NDArray[np.uint64]


def downsample(labels: Labels, factor: Triple) -> Labels:
    """Downsample labels by ``factor``: each result voxel is the most frequent label of its block.

    Parameters
    ----------
    labels
        Array (x, y, z); Fortran order is fastest.
    factor
        Voxels of a block per axis; powers of two.

    Returns
    -------
    Array of shape ``ceil(shape / factor)`` in Fortran order. Ties, and factors above 2, follow tinybrain (COUNTLESS): a
    block of 2 x 2 x 1 without a pair takes its last voxel, a block of 2 x 2 x 2 its first most frequent label. A factor
    of 4 is two halvings. An axis that is halved alone takes the first voxel of each pair.

    Raises
    ------
    ConfigError
        If a factor is not a power of two.
    """
    for step in halvings(factor):
        labels = _halve(labels, step)
    return np.asfortranarray(labels)


def pyramid(labels: Labels, factors: Sequence[Triple]) -> list[Labels]:
    """Return one array for each of the successive ``factors``, each made from the one before, without the input."""
    result: list[Labels] = []
    for factor in factors:
        labels = downsample(labels, factor)
        result.append(labels)
    return result


def holds_labels_of_blocks(coarse: Labels, fine: Labels, factor: Triple) -> npt.NDArray[np.bool_]:
    """Check whether each voxel of a coarser mip has the label of one of the voxels that it covers.

    Parameters
    ----------
    coarse
        Labels of the coarser mip, axes (x, y, z).
    fine
        Labels that ``coarse`` covers, from the same first voxel; the last blocks may extend beyond the array.
    factor
        Voxels of a block per axis.

    Returns
    -------
    Boolean array of the shape of ``coarse``.
    """
    missing = [n * f - have for n, f, have in zip(coarse.shape, factor, fine.shape, strict=True)]
    whole = np.pad(fine, [(0, n) for n in missing], mode="edge")
    x, y, z = coarse.shape
    blocks = whole.reshape(x, factor[0], y, factor[1], z, factor[2])
    return np.asarray((blocks == coarse[:, None, :, None, :, None]).any(axis=(1, 3, 5)))


def halvings(factor: Triple) -> list[Triple]:
    """Split the factor into steps of 1 or 2 per axis; (4, 2, 1) gives [(2, 2, 1), (2, 1, 1)]."""
    if any(f < 1 or f & (f - 1) for f in factor):
        raise ConfigError(
            f"cannot downsample by {tuple(factor)}.", remedy="Downsampling factors must be powers of two per axis."
        )
    steps: list[Triple] = []
    x, y, z = factor
    while max(x, y, z) > 1:
        steps.append((min(x, 2), min(y, 2), min(z, 2)))
        x, y, z = max(1, x // 2), max(1, y // 2), max(1, z // 2)
    return steps


def _halve(labels: Labels, step: Triple) -> Labels:
    halved_axes = [axis for axis in range(3) if step[axis] == 2]
    if len(halved_axes) == 3:
        # tinybrain's 2 x 2 x 2 kernel ignores strides: the result is wrong for anything but Fortran order.
        return _tinybrain(np.asfortranarray(labels), (2, 2, 2))
    if len(halved_axes) == 2:
        kept = next(axis for axis in range(3) if step[axis] == 1)
        order = (*halved_axes, kept)
        pooled = _tinybrain(np.asfortranarray(labels.transpose(order)), (2, 2, 1))
        return pooled.transpose(np.argsort(order))
    return labels[:: step[0], :: step[1], :: step[2]]


def _tinybrain(labels: Labels, factor: Triple) -> Labels:
    result: Labels = tinybrain.downsample_segmentation(labels, factor, num_mips=1)[0]
    return result
