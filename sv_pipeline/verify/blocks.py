"""Iteration over a volume in blocks that fit in memory, which several threads read and check, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from sv_pipeline.errors import CorruptionError, DamagedError
from sv_pipeline.grid import Box, ChunkGrid
from sv_pipeline.memory import memory_budget
from sv_pipeline.storage.retry import retry_transport

__all__ = [
    "ALL",
    "BLOCK_VOXELS",
    "BoxGrid",
    "Share",
    "aligned_boxes",
    "block_voxels",
    "chunk_groups",
    "in_order",
    "read_box",
    "readable",
    "sampled",
]

BLOCK_VOXELS = 1 << 24
"""Maximum number of voxels in one block (128 MiB of ids), unless one chunk alone has more."""
BYTES_PER_VOXEL = 40
"""Memory that a check of voxels takes at its peak for each voxel of a block: ids of two volumes, and masks."""

IntArray = npt.NDArray[np.int64]
Triple = tuple[int, int, int]
Task = TypeVar("Task")
Result = TypeVar("Result")
Item = TypeVar("Item")


class BoxGrid(Sequence[Box]):
    """Boxes of one size that tile a larger box. Each is made when it is asked for, since there may be very many.

    Parameters
    ----------
    bounds
        The box to cover; the last boxes along each axis are clipped to it.
    size
        Size of one box, (x, y, z), in voxels.
    """

    def __init__(self, bounds: Box, size: Triple) -> None:
        self._bounds = bounds
        self._size = np.asarray(size, np.int64)
        self._shape = tuple(-(-np.asarray(bounds.shape) // self._size))

    def __len__(self) -> int:
        return int(np.prod(self._shape))

    @overload
    def __getitem__(self, index: int) -> Box: ...
    @overload
    def __getitem__(self, index: slice) -> list[Box]: ...
    def __getitem__(self, index: int | slice) -> Box | list[Box]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = np.array(np.unravel_index(index % len(self), self._shape))
        start = self._bounds.start + place * self._size
        return Box.of(start, start + self._size).clip(self._bounds)


def block_voxels() -> int:
    """Return the maximum number of voxels in one block, so that its check fits the memory budget of a worker."""
    return min(BLOCK_VOXELS, memory_budget() // BYTES_PER_VOXEL)


def aligned_boxes(bounds: Box, storage_chunk: Triple, limit: int = BLOCK_VOXELS) -> BoxGrid:
    """Boxes that tile ``bounds``, each made of whole storage chunks and holding at most ``limit`` voxels."""
    return BoxGrid(bounds, _grown(storage_chunk, limit, bounds.shape))


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the blocks of a check, which are checked apart from each other."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this share also checks what does not belong to any block."""
        return self.number == 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Select the items of this share: neighbours, in their order."""
        if self.count == 1:
            return items
        first, stop = (len(items) * k // self.count for k in (self.number, self.number + 1))
        return items[first:stop]


ALL = Share()


def chunk_groups(grid: ChunkGrid, sample: int | None, seed: int, share: Share = ALL) -> Iterator[IntArray]:
    """Layer 2 chunk coordinates, shape (n, 3), in groups whose voxels are fetched by one read.

    Parameters
    ----------
    grid
        The chunk grid.
    sample
        Number of chunks, chosen at random, each in a group of its own; None = all chunks, neighbours together.
    seed
        Seed of the random choice.
    share
        The share of the groups that is wanted.
    """
    chunks = Box((0, 0, 0), grid.shape(2))
    if sample is not None and sample < grid.count(2):
        groups: Sequence[Box] = sampled(BoxGrid(chunks, (1, 1, 1)), sample, seed)
    else:
        size = _grown(grid.chunk_size, block_voxels(), grid.bounds.shape)
        x, y, z = (int(n) for n in np.floor_divide(size, grid.chunk_size))
        groups = BoxGrid(chunks, (x, y, z))
    for group in share.of(groups):
        inside = np.stack(np.unravel_index(np.arange(group.volume), group.shape), axis=-1)
        yield (inside + group.start).astype(np.int64)


def sampled(items: Sequence[Item], sample: int | None, seed: int) -> Sequence[Item]:
    """``sample`` of the items, chosen at random and in their order; all items if there are not more than that."""
    if sample is None or sample >= len(items):
        return items
    chosen = np.random.default_rng(seed).choice(len(items), sample, replace=False)
    return [items[int(i)] for i in np.sort(chosen)]


def _grown(size: Triple, limit: int, enough: Triple) -> Triple:
    """``size``, doubled along its smallest axes while it is below ``enough`` and has at most ``limit`` voxels."""
    current = list(size)
    while True:
        axes = [axis for axis in range(3) if current[axis] < enough[axis]]
        if not axes or 2 * int(np.prod(current)) > limit:
            return current[0], current[1], current[2]
        axis = min(axes, key=lambda a: current[a])
        current[axis] *= 2


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results of ``work`` in the order of the tasks; at most ``workers`` blocks are in memory at a time."""
    if workers <= 1:
        yield from map(work, tasks)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_box(store: ts.TensorStore, box: Box, what: str) -> npt.NDArray[np.uint64]:
    """Read the voxels of a box as uint64 in Fortran order, axes (x, y, z).

    Raises
    ------
    CorruptionError
        If a stored chunk cannot be decoded.
    UnavailableError
        If the storage does not answer.
    """

    def read() -> npt.NDArray[np.uint64]:
        return np.asarray(store[box.slices].read(order="F").result(), dtype=np.uint64, order="F")

    with readable(f"{what} cannot be read in {box}"):
        return retry_transport(read, what=f"reading {what} {box}")


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn a DamagedError of TensorStore or of a parser into a CorruptionError whose message begins with ``what``."""
    try:
        yield
    except DamagedError as error:
        raise CorruptionError(f"{what}: {error.message}", remedy=error.remedy) from error
