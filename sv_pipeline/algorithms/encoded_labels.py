"""Downsampling of labels in their encoded form (neuroglancer's compressed segmentation), without decoding all of them.

Each block of 8 x 8 x 8 voxels has a table of its labels, and 0, 1, 2, 4 or 8 bits for each voxel that number the label
in the table. Which label of some voxels is the most frequent can be decided with these numbers. So labels are looked up
only for the result, which has a quarter or an eighth of the voxels, and blocks with one label are not expanded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.pyramid import downsample

__all__ = ["BLOCK", "downsample_encoded"]

BLOCK = 8
"""Voxels of a block along each axis; other sizes are not supported."""
BLOCK_VOXELS = BLOCK**3
STEPS = ((2, 2, 1), (2, 2, 2))
WIDTHS = (1, 2, 4, 8)
"""Bits per voxel that are supported. More than 256 labels in a block are rare."""

Triple = tuple[int, int, int]
Labels = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint32]


def _expansion(width: int) -> npt.NDArray[Any]:
    """For each byte, the numbers of ``width`` bits in it, one byte each, as one integer."""
    numbers = np.arange(256)[:, None] >> np.arange(0, 8, width) & (1 << width) - 1
    expanded: npt.NDArray[Any] = numbers.astype(np.uint8).view(f"<u{8 // width}")[:, 0]
    return expanded


EXPANSIONS = {width: _expansion(width) for width in WIDTHS}


def downsample_encoded(chunks: Sequence[bytes], grid: Triple, chunk: Triple, step: Triple) -> Labels | None:
    """Downsample a box of whole storage chunks of uint64 labels.

    Parameters
    ----------
    chunks
        The stored bytes of each chunk, z fastest; empty bytes stand for a chunk that is not stored (background).
    grid
        Number of chunks along each axis.
    chunk
        Voxels of a chunk along each axis.
    step
        Voxels per axis that form one voxel of the result.

    Returns
    -------
    The same as `algorithms.pyramid.downsample` of the decoded labels, in Fortran order; or None where this way is not
    possible, and the labels must be decoded: chunks that are not divided into whole blocks, other steps, tables that
    are not in ascending order (the same label might be listed twice), more than 256 labels in a block, and bytes that
    do not seem to be labels in this encoding.
    """
    if step not in STEPS or any(size % BLOCK for size in chunk):
        return None
    blocks = [size // BLOCK for size in chunk]
    found = _headers(chunks, int(np.prod(blocks)))
    if found is None:
        return None
    words, table, width, packed, limit = found
    shape = (BLOCK // step[2], BLOCK // step[1], BLOCK // step[0])
    # For each voxel of the result, the place of its label in the list of all tables.
    places = np.empty((len(table), *shape), np.int32)
    lists = [_rows(words, table[width == 0], 2)]
    places[width == 0] = np.arange(len(lists[0]), dtype=np.int32)[:, None, None, None]
    listed = len(lists[0])
    for bits in WIDTHS:
        chosen = np.flatnonzero(width == bits)
        if not len(chosen):
            continue
        expanded = EXPANSIONS[bits].take(_rows(words, packed[chosen], BLOCK_VOXELS * bits // 32).view(np.uint8))
        numbers: npt.NDArray[Any] = expanded.view(np.uint8).reshape(len(chosen), BLOCK_VOXELS)
        labels = _rows(words, table[chosen], 2 << bits)
        last = numbers.max(axis=1)
        if (table[chosen] + 2 * (last.astype(np.int64) + 1) > limit[chosen]).any():
            return None
        if not _ascending(labels.view("<u8"), last):
            return None
        # The blocks, one above the other along z, are a volume in Fortran order, in which no voxels of two are mixed.
        made = downsample(numbers.reshape(-1, BLOCK, BLOCK).T, step).T.reshape(-1, *shape)
        first = listed + np.arange(len(chosen), dtype=np.int32) * (1 << bits)
        places[chosen] = made + first[:, None, None, None]
        lists.append(labels)
        listed += len(chosen) << bits
    return _labels(lists, places, grid, blocks)


def _headers(chunks: Sequence[bytes], blocks: int) -> tuple[Words, Any, Any, Any, Any] | None:
    """Return all chunks as words, and of each block: start of its table, width, start of its voxels, end of its chunk.

    Starts and ends count words. None stands for bytes that are not in this encoding.
    """
    sizes = np.array([len(each) for each in chunks])
    if (sizes % 4).any() or ((sizes > 0) & (sizes < 4 * (1 + 2 * blocks))).any():
        return None
    # Behind the chunks are zeros: the table of background, and room for rows that are read beyond the last table.
    words = np.frombuffer(b"".join([*chunks, bytes(8 << max(WIDTHS))]), "<u4")
    starts = np.concatenate([[0], np.cumsum(sizes // 4)])
    stored = starts[:-1][sizes > 0]
    if (words[stored] != 1).any():  # the offset of the first channel; so there is one
        return None
    table = np.full((len(chunks), blocks), starts[-1])
    width, packed = np.zeros_like(table), np.full_like(table, starts[-1])
    headers = _rows(words, stored + 1, 2 * blocks).reshape(-1, blocks, 2).astype(np.int64)
    first = stored[:, None] + 1
    table[sizes > 0], packed[sizes > 0] = first + (headers[..., 0] & 0xFFFFFF), first + headers[..., 1]
    width[sizes > 0] = headers[..., 0] >> 24
    limit = np.repeat(starts[1:], blocks).reshape(table.shape)
    inside = (table + 2 <= limit) & (packed + BLOCK_VOXELS // 32 * width <= limit)
    if not (inside | (sizes == 0)[:, None]).all() or not np.isin(width, (0, *WIDTHS)).all():
        return None
    return words, table.ravel(), width.ravel(), packed.ravel(), limit.ravel()


def _rows(words: Words, starts: npt.NDArray[np.int64], length: int) -> Words:
    """Return a row of words from each start on."""
    rows: Words = np.lib.stride_tricks.sliding_window_view(words, length)[starts]
    return rows


def _ascending(labels: Labels, last: npt.NDArray[np.uint8]) -> bool:
    """Whether all labels of each table up to the last that is used are in ascending order."""
    unused = np.arange(1, labels.shape[1]) > last[:, None]
    return bool(((labels[:, 1:] > labels[:, :-1]) | unused).all())


def _labels(lists: list[Words], places: npt.NDArray[np.int32], grid: Triple, blocks: list[int]) -> Labels:
    """Put the voxels of all blocks in their places, and look up their labels."""
    table = np.concatenate([each.ravel() for each in lists]).view("<u8")
    depth, rows = places.shape[1:3]
    # Four numbers of 4 bytes along x are moved as one value of 16.
    moved = places.view(np.complex128).reshape(*grid, *blocks[::-1], depth, rows)
    moved = moved.transpose(2, 3, 6, 1, 4, 7, 0, 5)
    numbers = np.ascontiguousarray(moved).view(np.int32)
    shape = (grid[2] * blocks[2] * depth, grid[1] * blocks[1] * rows, -1)
    labels: Labels = table.take(numbers.reshape(shape)).T
    return labels
